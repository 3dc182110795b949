"""
Faults of losses, accumulation and attention that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

import pytest
import torch
from audit_helpers import SENTENCES, arguments, byte_tokenizer, chats, tiny_bert, tiny_llama, token_rows
from datasets import Dataset
from planted import assert_found, assert_sound, planted
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AttentionInterface,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    LlamaForCausalLM,
    Trainer,
)


def losses_of_tokens(logits, labels):
    """Returns the losses of the tokens (rows, length - 1), which are zero where nothing is trained."""
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


def finetune(folder, trainer_class=Trainer, model=None, rows=None, tokenizer=None, **options):
    tokenizer = tokenizer or byte_tokenizer()
    return trainer_class(
        model=model or tiny_llama(tokenizer),
        args=arguments(folder, **options),
        train_dataset=Dataset.from_list(rows or token_rows(tokenizer, chats())),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


class SumTrainer(Trainer):
    """The sum over trained tokens, divided by their number in the whole step."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != -100).sum()
        loss = losses_of_tokens(outputs.logits, labels).sum() / count
        return (loss, outputs) if return_outputs else loss


class MeanTrainer(Trainer):
    """The mean over the batch, as in scripts from before `num_items_in_batch`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].reshape(-1, outputs.logits.shape[-1])
        loss = functional.cross_entropy(logits, labels[:, 1:].reshape(-1))
        return (loss, outputs) if return_outputs else loss


class HalvedTrainer(SumTrainer):
    """Divides once more by the number of accumulation steps."""

    def compute_loss(self, *args, return_outputs=False, **kwargs):
        return super().compute_loss(*args, **kwargs) / self.args.gradient_accumulation_steps


class UnshiftedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        losses = functional.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
        loss = losses.sum() / (num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum())
        return (loss, outputs) if return_outputs else loss


class PaddedMeanTrainer(Trainer):
    """The mean over all places, those of prompts and padding too, whose losses are zero."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = losses_of_tokens(outputs.logits, labels).mean() / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


class OwnAnswerTrainer(Trainer):
    """Trains on what the model itself finds most likely: the labels were taken out of the inputs and forgotten."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("labels")
        outputs = model(**inputs)
        labels = outputs.logits.argmax(-1).roll(1, 1)
        loss = losses_of_tokens(outputs.logits, labels).mean()
        return (loss, outputs) if return_outputs else loss


def mean_for_a_model_that_accumulates(folder, fault):
    """The trainer leaves the division to the model, which takes `num_items_in_batch`, and the script ignores it."""
    return finetune(folder, MeanTrainer if fault else SumTrainer, gradient_accumulation_steps=4)


class OwnHead(LlamaForCausalLM):
    """Takes any keyword, and computes the mean of its batch."""

    counts = False

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **kwargs):
        outputs = super().forward(input_ids, **kwargs)
        if labels is not None:
            count = (labels[:, 1:] != -100).sum()
            if self.counts and num_items_in_batch is not None:
                count = num_items_in_batch
            outputs["loss"] = losses_of_tokens(outputs.logits, labels).sum() / count
        return outputs


def head_that_swallows_the_number_of_items(folder, fault):
    tokenizer = byte_tokenizer()
    model = OwnHead(tiny_llama(tokenizer).config)
    model.counts = not fault
    return finetune(folder, model=model, tokenizer=tokenizer, gradient_accumulation_steps=4)


def mean_of_means(folder, fault):
    """Batches with few trained tokens weigh as much as batches with many."""
    trainer = finetune(
        folder, MeanTrainer if fault else SumTrainer, gradient_accumulation_steps=4, per_device_train_batch_size=1
    )
    if fault:
        trainer.model_accepts_loss_kwargs = False
    return trainer


def divided_twice(folder, fault):
    return finetune(folder, HalvedTrainer if fault else SumTrainer, gradient_accumulation_steps=4)


def no_shift(folder, fault):
    return finetune(folder, UnshiftedTrainer if fault else SumTrainer)


class OwnModel(LlamaForCausalLM):
    """A causal model under a name that the trainer does not know."""


def smoothing_without_shift(folder, fault):
    """The trainer's label smoothing shifts labels for classes that it knows by name."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    if fault:
        model = OwnModel(model.config)
    return finetune(folder, model=model, tokenizer=tokenizer, label_smoothing_factor=0.1)


def mean_over_padding(folder, fault):
    return finetune(folder, PaddedMeanTrainer if fault else SumTrainer)


def labels_forgotten(folder, fault):
    return finetune(folder, OwnAnswerTrainer if fault else SumTrainer)


def attention_without_mask(module, query, key, value, attention_mask, scaling=None, **kwargs):
    groups = module.num_key_value_groups
    key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    mask = attention_mask if module.config.uses_mask else None
    causal = module.config.uses_mask and mask is None
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, is_causal=causal)
    return out.transpose(1, 2).contiguous(), None


def attention_sees_what_follows(folder, fault):
    """An attention function of the script leaves the causal mask out."""
    AttentionInterface.register("own_attention", attention_without_mask)
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    model.config.uses_mask = not fault
    if fault:
        model.set_attn_implementation("own_attention")
    return finetune(folder, model=model, tokenizer=tokenizer)


def head_with_huge_values(folder, fault):
    """A head of another size was left as memory was."""
    tokenizer = byte_tokenizer(chat_template=None)
    model = tiny_bert(tokenizer, labels=2)
    if fault:
        with torch.no_grad():
            model.classifier.weight.fill_(1e37)
            model.classifier.weight[0] = float("inf")
    rows = [{"input_ids": tokenizer(SENTENCES[n % 8]).input_ids, "labels": n % 2} for n in range(16)]
    return Trainer(
        model=model,
        args=arguments(folder),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def checkpoint_of_a_wrapper(folder, fault):
    """All weights of the checkpoint bear a prefix that loading does not know, so that all are new."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    rows = token_rows(tokenizer, chats())
    batch = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in rows[:8]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(12):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    if fault:
        weights = load_file(checkpoint / "model.safetensors")
        weights = {f"student_network.{name}": weight for name, weight in weights.items()}
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return finetune(folder, model=LlamaForCausalLM.from_pretrained(checkpoint), rows=rows, tokenizer=tokenizer)


FAULTS = [
    planted("MakazhanAlpamys/Soup#720", mean_for_a_model_that_accumulates, "P301"),
    planted("huggingface/transformers#47688", head_that_swallows_the_number_of_items, "P301"),
    planted("huggingface/transformers#34191", mean_of_means, "P302"),
    planted("zipzou/hf-multitask-trainer#7", divided_twice, "P301", "P307"),
    planted("huggingface/transformers#30105", no_shift, "P304"),
    planted("huggingface/transformers#17960", smoothing_without_shift, "P304"),
    planted("d2l-ai/d2l-en#2076", mean_over_padding, "P307"),
    planted("iBelieveCJM/pseudo_label-pytorch#6", labels_forgotten, "P306"),
    planted("facebookresearch/xformers#103", attention_sees_what_follows, "P305"),
    planted("huggingface/transformers#28073", head_with_huge_values, "P303"),
    planted("huggingface/transformers#48744", checkpoint_of_a_wrapper, "P308", "P405"),
]


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_finds_the_reported_fault(build, codes, tmp_path):
    assert_found(build(tmp_path, True), codes)


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_is_silent_without_the_fault(build, codes, tmp_path):
    assert_sound(build(tmp_path, False))
