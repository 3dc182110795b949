"""
Faults of collators, padding and packing that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

import pytest
import torch
from audit_helpers import (
    SENTENCES,
    arguments,
    byte_tokenizer,
    causal_trainer,
    chats,
    tiny_bert,
    tiny_llama,
    token_rows,
)
from datasets import Dataset
from planted import assert_found, assert_sound, padded, planted
from transformers import (
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
)


def text_rows(tokenizer, count=16, end=""):
    return [{"input_ids": tokenizer(f"{n}: {SENTENCES[n % 8]}{end}").input_ids} for n in range(count)]


def labelled_rows(tokenizer, count=16):
    return [row | {"labels": number % 2} for number, row in enumerate(text_rows(tokenizer, count))]


def classify(folder, rows, collator, model, **options):
    """A classifier trained by a plain Trainer that knows the tokenizer from its collator only."""
    dataset = Dataset.from_list(rows)
    return Trainer(model=model, args=arguments(folder, **options), train_dataset=dataset, data_collator=collator)


# Packing


def flatten(rows, first_label=-100, attention=False):
    """All rows one behind the other, whose positions start again."""
    ids, labels, positions = [], [], []
    for row in rows:
        ids += row["input_ids"]
        labels += [first_label if first_label is not None else row["input_ids"][0], *row["input_ids"][1:]]
        positions += range(len(row["input_ids"]))
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    if attention:
        batch["attention_mask"] = [1] * len(ids)
    return {name: torch.tensor([values]) for name, values in batch.items()}


def packed_with_a_mask(folder, fault):
    """With a mask of ones, the model takes the packed rows for one, though positions start again."""
    tokenizer = byte_tokenizer()
    collate = lambda rows: flatten(rows, attention=fault)  # noqa: E731
    return causal_trainer(folder, text_rows(tokenizer, end="<|im_end|>"), collate, tiny_llama(tokenizer), tokenizer)


def packed_encoder(folder, fault):
    """Encoders attend to all that is in the row, whatever the positions are."""
    tokenizer = byte_tokenizer(chat_template=None)
    masked = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=3)

    def collate(rows):
        if not fault:
            return masked(rows)
        batch = flatten(rows)
        batch["input_ids"], batch["labels"] = masked.torch_mask_tokens(batch["input_ids"])
        return batch

    return causal_trainer(folder, text_rows(tokenizer), collate, tiny_bert(tokenizer), tokenizer)


def first_tokens_of_documents_trained(folder, fault):
    tokenizer = byte_tokenizer()
    collate = lambda rows: flatten(rows, None if fault else -100)  # noqa: E731
    return causal_trainer(folder, text_rows(tokenizer, end="<|im_end|>"), collate, tiny_llama(tokenizer), tokenizer)


def positions_run_on(folder, fault):
    """Packed rows are longer than the model's positions, which do not start again."""
    tokenizer = byte_tokenizer()

    def collate(rows):
        batch = flatten(rows * 3)
        if fault:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        return batch

    model = tiny_llama(tokenizer, max_position_embeddings=128)
    return causal_trainer(folder, text_rows(tokenizer, end="<|im_end|>"), collate, model, tokenizer)


# Padding


def absolute_positions_from_the_left(folder, fault):
    """GPT-2 counts positions from the left edge, padding too."""
    tokenizer = byte_tokenizer(padding_side="left" if fault else "right")
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=4
        )
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return causal_trainer(folder, text_rows(tokenizer, end="<|im_end|>"), collator, model, tokenizer)


def padding_between_prompt_and_answer(folder, fault):
    """Prompts and answers are padded apart, and put together with the padding between them."""
    tokenizer = byte_tokenizer()
    rows = [
        {
            "prompt": tokenizer(f"{number}: say {SENTENCES[number % 8]}").input_ids,
            "answer": tokenizer(SENTENCES[number % 5].upper() + "<|im_end|>").input_ids,
        }
        for number in range(16)
    ]

    def collate(rows):
        if not fault:
            whole = [
                {
                    "input_ids": row["prompt"] + row["answer"],
                    "labels": [-100] * len(row["prompt"]) + row["answer"],
                }
                for row in rows
            ]
            return DataCollatorForSeq2Seq(tokenizer)(whole)
        prompts = tokenizer.pad([{"input_ids": row["prompt"]} for row in rows], return_tensors="pt")
        answers = tokenizer.pad([{"input_ids": row["answer"]} for row in rows], return_tensors="pt")
        labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
        return {
            "input_ids": torch.cat([prompts["input_ids"], answers["input_ids"]], 1),
            "attention_mask": torch.cat([prompts["attention_mask"], answers["attention_mask"]], 1),
            "labels": torch.cat([torch.full_like(prompts["input_ids"], -100), labels], 1),
        }

    options = dict(remove_unused_columns=False)
    return causal_trainer(folder, rows, collate, tiny_llama(tokenizer), tokenizer, **options)


def mask_of_ones(folder, fault):
    tokenizer = byte_tokenizer(chat_template=None)

    def collate(rows):
        batch = padded(tokenizer, rows)
        if fault:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    return classify(folder, labelled_rows(tokenizer), collate, tiny_bert(tokenizer, labels=2))


def no_mask_and_padding_on_the_left(folder, fault):
    tokenizer = byte_tokenizer(padding_side="left")

    def collate(rows):
        batch = padded(tokenizer, rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {name: batch[name] for name in ("input_ids", "labels") + (() if fault else ("attention_mask",))}

    return causal_trainer(folder, text_rows(tokenizer, end="<|im_end|>"), collate, tiny_llama(tokenizer), tokenizer)


def padding_trained(folder, fault):
    tokenizer = byte_tokenizer()

    def collate(rows):
        batch = padded(tokenizer, rows)
        batch["labels"] = batch["input_ids"].clone()
        if not fault:
            batch["labels"][batch["attention_mask"] == 0] = -100
        return batch

    return causal_trainer(folder, text_rows(tokenizer, end="<|im_end|>"), collate, tiny_llama(tokenizer), tokenizer)


def mask_by_id_hides_ends_of_turns(folder, fault):
    """The mask is made from the ids, and the padding token also ends each turn."""
    tokenizer = byte_tokenizer(pad_token="<|im_end|>")

    def collate(rows):
        batch = DataCollatorForSeq2Seq(tokenizer)(rows)
        if fault:
            batch["attention_mask"] = (batch["input_ids"] != tokenizer.pad_token_id).long()
        return batch

    return causal_trainer(folder, token_rows(tokenizer, chats(turns=2)), collate, tiny_llama(tokenizer), tokenizer)


def class_read_at_padding(folder, fault):
    """The classifier reads the last token that is not its own padding token, and the collator pads with another."""
    tokenizer = byte_tokenizer(chat_template=None)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=2 if fault else tokenizer.pad_token_id,
        num_labels=2,
    )
    model = LlamaForSequenceClassification(config)
    return classify(folder, labelled_rows(tokenizer), DataCollatorWithPadding(tokenizer), model)


def padding_masked(folder, fault):
    """A masked-language-model collator of a script draws from all tokens, padding too."""
    tokenizer = byte_tokenizer(chat_template=None)

    def collate(rows):
        batch = padded(tokenizer, rows)
        chosen = torch.rand(batch["input_ids"].shape) < 0.3
        if not fault:
            chosen &= batch["attention_mask"] == 1
        batch["labels"] = batch["input_ids"].masked_fill(~chosen, -100)
        batch["input_ids"] = batch["input_ids"].masked_fill(chosen, tokenizer.mask_token_id)
        return batch

    return causal_trainer(folder, text_rows(tokenizer), collate, tiny_bert(tokenizer), tokenizer)


def positions_of_another_family(folder, fault):
    """RoBERTa counts positions from its padding token's id plus one; the collator gives them from 0."""
    tokenizer = byte_tokenizer(("<s>", "<pad>", "</s>", "<mask>"), chat_template=None, eos_token="</s>")
    masked = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=3)

    def collate(rows):
        batch = masked(rows)
        if fault:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).repeat(len(rows), 1)
        return batch

    torch.manual_seed(0)
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=130,
            pad_token_id=1,
        )
    )
    return causal_trainer(folder, text_rows(tokenizer), collate, model, tokenizer)


class CentredClassifier(BertForSequenceClassification):
    """Subtracts the mean of the batch, as some recipes of contrastive learning do."""

    centred = True

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        if self.centred:
            pooled = pooled - pooled.mean(0)
        logits = self.classifier(pooled)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if loss is not None else {"logits": logits}


def rows_mixed(folder, fault):
    tokenizer = byte_tokenizer(chat_template=None)
    model = CentredClassifier(tiny_bert(tokenizer, labels=2).config)
    model.centred = fault
    model.accepts_loss_kwargs = False
    return classify(folder, labelled_rows(tokenizer), DataCollatorWithPadding(tokenizer), model)


FAULTS = [
    planted("huggingface/transformers#46634", packed_with_a_mask, "P203"),
    planted("huggingface/nanoVLM#204", packed_encoder, "P203"),
    planted("NVIDIA-BioNeMo/bionemo-recipes#1449", first_tokens_of_documents_trained, "P206"),
    planted("alex-hh/profam#495", positions_run_on, "P204", "P209"),
    planted("huggingface/trl#469", absolute_positions_from_the_left, "P201"),
    planted("bigscience-workshop/t-zero#32", padding_between_prompt_and_answer, "P201", "P209"),
    planted("tloen/alpaca-lora#107", mask_of_ones, "P201", "P205"),
    planted("tloen/alpaca-lora#315", no_mask_and_padding_on_the_left, "P201", "P205"),
    planted("allenai/open-instruct#632", padding_trained, "P103"),
    planted("huggingface/trl#6357", mask_by_id_hides_ends_of_turns, "P205"),
    planted("huggingface/transformers#35352", class_read_at_padding, "P201"),
    planted("huggingface/transformers#11155", padding_masked, "P103"),
    planted("huggingface/transformers#47496", positions_of_another_family, "P209", "P201"),
    planted("allenai/reward-bench#137", rows_mixed, "P202"),
]


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_finds_the_reported_fault(build, codes, tmp_path):
    assert_found(build(tmp_path, True), codes)


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_is_silent_without_the_fault(build, codes, tmp_path):
    assert_sound(build(tmp_path, False))
