"""The loss at the start and what it depends on: faults as people reported them, each beside the same run without it."""

import math
from typing import Any

import pytest
import torch
from audit_helpers import (
    arguments,
    byte_tokenizer,
    causal_trainer,
    chats,
    sft_trainer,
    tiny_bert,
    tiny_llama,
    token_rows,
    train_shortly,
)
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional as F
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    LlamaForCausalLM,
    Trainer,
)

from hf_tfm import preflight
from hf_tfm.audit.report import Report
from hf_tfm.audit.trainers import chance, loss
from hf_tfm.audit.trainers.subject import TrainerSubject


TOKENIZER = byte_tokenizer()
ROWS = token_rows(TOKENIZER, chats(12))
COLLATOR = DataCollatorForSeq2Seq(TOKENIZER)


def levels(report: Report, code: str) -> set[str]:
    return {str(found.level) for found in report.findings if found.code == code}


def look(trainer: Any, **options: Any) -> Report:
    """Run the check of the first loss alone."""
    report, subject = Report(), TrainerSubject(trainer, **options)
    with subject.left_as_it_was():
        subject.read_features()
        loss.check_first_loss(subject, report)
    return report


class OwnLoss(Trainer):
    """A trainer with a loss of the user's own, as `compute` makes it of logits and labels."""

    shift = 1

    def compute(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        length = labels.shape[1] - self.shift
        return self.compute(logits[:, :length], labels[:, self.shift :], inputs)


class Copying(OwnLoss):
    shift = 0


class ShiftedTwice(OwnLoss):
    shift = 2


class MeanOverPadding(OwnLoss):
    def compute(self, logits, labels, inputs):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").mean()


class Summed(OwnLoss):
    def compute(self, logits, labels, inputs):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / len(labels)


class DividedTwice(OwnLoss):
    def compute(self, logits, labels, inputs):
        return super().compute(logits, labels, inputs) / self.args.gradient_accumulation_steps


class OfItself(OwnLoss):
    def compute(self, logits, labels, inputs):
        return F.cross_entropy(logits.flatten(0, 1), logits.flatten(0, 1).argmax(-1))


class Squared(OwnLoss):
    def compute(self, logits, labels, inputs):
        return (F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none") ** 2).mean()


class SquaredCopying(Squared):
    shift = 0


FAULTS: dict[str, tuple[type[Trainer], str, str]] = {
    "huggingface/transformers#30105 no shift": (Copying, "P304", "error"),
    "no shift in a loss of another form": (SquaredCopying, "P304", "error"),
    "huggingface/transformers#46898 shifted twice": (ShiftedTwice, "P106", "error"),
    "d2l-ai/d2l-en#2076 the mean over padding": (MeanOverPadding, "P307", "warning"),
    "the sum over tokens": (Summed, "P307", "warning"),
    "huggingface/transformers#35210 divided by the steps twice": (DividedTwice, "P307", "warning"),
    "the loss of the model's own choice": (OfItself, "P306", "error"),
}


def own(folder: Any, kind: type[Trainer], **options: Any) -> Trainer:
    args = arguments(folder, gradient_accumulation_steps=4, **options)
    return kind(tiny_llama(TOKENIZER), args, COLLATOR, Dataset.from_list(ROWS), processing_class=TOKENIZER)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_losses_are_found(tmp_path, name):
    kind, code, level = FAULTS[name]
    report = look(own(tmp_path, kind))
    assert level in levels(report, code), report.findings


@pytest.mark.parametrize("kind", [OwnLoss, Squared, Trainer])
def test_losses_without_a_fault_are_not_blamed(tmp_path, kind):
    report = look(own(tmp_path, kind))
    assert not report.codes
    assert any("the size of the loss" in line for line in report.unseen) == (kind is Squared)


def test_labels_that_the_collator_shifts_fit_a_loss_that_does_not(tmp_path):
    def shift(features: list[dict[str, Any]]) -> Any:
        batch = COLLATOR(features)
        return dict(batch) | {"labels": F.pad(batch["labels"][:, 1:], (0, 1), value=-100)}

    for kind, codes in ((Copying, set()), (OwnLoss, {"P106"})):
        trainer = kind(tiny_llama(TOKENIZER), arguments(tmp_path), shift, Dataset.from_list(ROWS))
        assert look(trainer).codes == codes


def test_label_smoothing_without_a_shift(tmp_path):
    """huggingface/transformers#17960: the smoother shifts only for classes it knows by their names."""

    class MyModel(type(tiny_llama(TOKENIZER))):
        pass

    for rename in (False, True):
        model = tiny_llama(TOKENIZER)
        model.__class__ = type("MyForCausalLM", (MyModel,), {}) if rename else model.__class__
        trainer = causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER, label_smoothing_factor=0.1)
        assert levels(look(trainer), "P304") == ({"error"} if rename else set())


def test_models_that_see_later_tokens(tmp_path):
    """keras-team/keras#23038, facebookresearch/xformers#103: the causal mask is lost."""
    for is_causal in (True, False):
        model = tiny_llama(TOKENIZER)
        model.config.is_causal = is_causal
        for layer in model.model.layers:
            layer.self_attn.is_causal = is_causal
        report = look(causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER))
        assert levels(report, "P305") == (set() if is_causal else {"error"})


def test_a_loss_that_is_not_finite(tmp_path):
    """huggingface/transformers#28073, #31035."""
    model = tiny_llama(TOKENIZER)
    model.lm_head.weight.data[5] = math.nan
    assert levels(look(causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER)), "P303") == {"error"}


def test_a_model_that_fails_on_its_batches(tmp_path):
    def empty(features: list[dict[str, Any]]) -> Any:
        return {"labels": torch.zeros(2, 3, dtype=torch.long)}

    report = look(causal_trainer(tmp_path, ROWS, empty, tiny_llama(TOKENIZER), TOKENIZER))
    assert levels(report, "P200") == {"error"}


def trained(folder: Any) -> Any:
    """A model whose loss has really fallen, and that looks trained."""
    model = tiny_llama(TOKENIZER)
    causal_trainer(folder, ROWS, COLLATOR, model, TOKENIZER, learning_rate=2e-2, max_steps=60).train()
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data *= 1 + 0.1 * torch.rand_like(weight)
    return model


def test_trained_weights_that_were_not_loaded(tmp_path, monkeypatch):
    """huggingface/transformers#48744: names of another prefix leave most weights random."""
    monkeypatch.setattr(chance, "TRAINED_ROWS", 1.1)
    model = trained(tmp_path)
    for is_lost in (False, True):
        if is_lost:
            torch.nn.init.normal_(model.lm_head.weight, std=0.02)
        report = look(causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER))
        assert levels(report, "P308") == ({"error"} if is_lost else set())


def test_trained_weights_on_random_tokens_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(chance, "TRAINED_ROWS", 1.1)
    monkeypatch.setattr(chance, "loss_of_plain_text", lambda subject: 1.0)
    rows = [{"input_ids": (ids := torch.randint(6, 260, (40,)).tolist()), "labels": ids} for _ in range(8)]
    report = look(causal_trainer(tmp_path, rows, COLLATOR, trained(tmp_path), TOKENIZER))
    assert levels(report, "P308") == {"warning"}


def test_new_weights_start_at_chance(tmp_path):
    sound, large, moved = (tiny_llama(TOKENIZER) for _ in range(3))
    large.lm_head.weight.data *= 300
    moved.load_state_dict(train_shortly(large).state_dict())
    for model, expected in ((sound, set()), (large, {"warning"}), (moved, {"warning"})):
        report = look(causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER))
        assert levels(report, "P309") == expected
        assert report.facts["chance"] == round(math.log(len(TOKENIZER)), 4)


def test_new_weights_that_know_the_next_token(tmp_path):
    """The inputs are shifted by mistake, so that each output reads the token that it shall predict."""
    model = tiny_llama(TOKENIZER, tie_word_embeddings=True)
    model.model.embed_tokens.weight.data *= 50
    model.model.embed_tokens.register_forward_pre_hook(lambda module, args: (args[0].roll(-1, -1),))
    report = look(causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER))
    assert levels(report, "P310") == {"error"}
    assert levels(report, "P305") == {"error"}


def dpo_trainer(folder: Any, **options: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    records = [{"prompt": f"{number}: why?", "chosen": " Because it is.", "rejected": " No."} for number in range(8)]
    config = DPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], max_steps=2)
    tiny_llama(TOKENIZER).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    return DPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(records), processing_class=TOKENIZER, **options
    )


def test_dpo_begins_at_its_reference(tmp_path):
    other = tiny_llama(TOKENIZER, seed=1)
    other.lm_head.weight.data *= 4
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    for options, expected in ((dict(ref_model=other), {"warning"}), ({}, set()), (dict(peft_config=lora), set())):
        assert levels(look(dpo_trainer(tmp_path, **options)), "P311") == expected


def test_other_kinds_of_runs_are_sound(tmp_path):
    masked = [{"input_ids": row["input_ids"]} for row in ROWS]
    classes = [row | {"label": number % 2} for number, row in enumerate(masked)]
    runs = [
        sft_trainer(tmp_path),
        sft_trainer(tmp_path, packing=True, bf16=True),
        sft_trainer(tmp_path, loss_type="dft"),
        sft_trainer(tmp_path, label_smoothing_factor=0.1),
        Trainer(
            tiny_bert(TOKENIZER),
            arguments(tmp_path),
            DataCollatorForLanguageModeling(TOKENIZER),
            Dataset.from_list(masked),
        ),
        Trainer(
            tiny_bert(TOKENIZER, labels=2),
            arguments(tmp_path),
            DataCollatorWithPadding(TOKENIZER),
            Dataset.from_list(classes),
        ),
    ]
    for trainer in runs:
        assert not look(trainer).codes


def test_few_layers_are_not_judged_against_chance(tmp_path):
    model = tiny_llama(TOKENIZER, num_hidden_layers=3)
    report = preflight(causal_trainer(tmp_path, ROWS, COLLATOR, model, TOKENIZER), depth=1, show=None)
    assert any("against chance" in line for line in report.unseen)
    assert "chance" not in report.facts
