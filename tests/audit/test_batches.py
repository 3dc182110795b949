"""Padding, packing and neighbours: faults as people reported them, each beside the same run without it."""

from collections.abc import Callable
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
)
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
)

from hf_tfm import preflight
from hf_tfm.audit.report import Report
from hf_tfm.audit.trainers import batches
from hf_tfm.audit.trainers.batch_content import Padding, documents_of, places_of_record, places_within
from hf_tfm.audit.trainers.subject import TrainerSubject


TOKENIZER = byte_tokenizer()
ROWS = token_rows(TOKENIZER, chats(12))
PAD, END = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def levels(report: Report, code: str) -> set[str]:
    return {str(found.level) for found in report.findings if found.code == code}


def sound(report: Report) -> bool:
    """Whether neither errors nor warnings of batches were found."""
    return not [code for code in report.codes if code.startswith("P2")]


def look(trainer: Any) -> Report:
    """Run the checks of batches alone."""
    report, subject = Report(), TrainerSubject(trainer)
    with subject.left_as_it_was():
        subject.read_features()
        batches.check_positions(subject, report)
        batches.check_padding_and_packing(subject, report)
    assert not report.unseen
    return report


def gpt2(**options: Any) -> GPT2LMHeadModel:
    config = dict(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, n_positions=256, pad_token_id=PAD)
    return GPT2LMHeadModel(GPT2Config(**config | options))


def padded(features: list[dict[str, Any]], left: bool = False, pad: int = PAD) -> dict[str, torch.Tensor]:
    """A batch as a careful collator of one's own makes it."""
    length = max(len(feature["input_ids"]) for feature in features)

    def fill(values: list[int], value: int) -> list[int]:
        rest = [value] * (length - len(values))
        return rest + values if left else values + rest

    columns = {
        "input_ids": [fill(feature["input_ids"], pad) for feature in features],
        "labels": [fill(feature["labels"], -100) for feature in features],
        "attention_mask": [fill([1] * len(feature["input_ids"]), 0) for feature in features],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def packed(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One row of all documents, whose positions start again with each."""
    return {
        "input_ids": torch.tensor([[token for feature in features for token in feature["input_ids"]]]),
        "labels": torch.tensor([[label for feature in features for label in [-100, *feature["labels"][1:]]]]),
        "position_ids": torch.tensor([[place for feature in features for place in range(len(feature["input_ids"]))]]),
    }


def with_all_ones(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = packed(features)
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def with_first_labels(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = packed(features)
    return batch | {"labels": batch["input_ids"]}


def without_restarts(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = packed(features)
    return batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


def from_one(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = packed(features)
    return batch | {"position_ids": batch["position_ids"] + 1}


def without_positions(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = packed(features)
    del batch["position_ids"]
    return batch


def masked_by_id(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = padded(features, pad=END)
    return batch | {"attention_mask": (batch["input_ids"] != END).long()}


def all_attended(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = padded(features, left=True)
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def without_mask(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = padded(features, left=True)
    del batch["attention_mask"]
    return batch


def padded_inside(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Prompts and answers padded apart, so that padding stands between them."""
    starts = [next(place for place, label in enumerate(one["labels"]) if label != -100) for one in features]
    prompts = [{name: one[name][:start] for name in one} for one, start in zip(features, starts)]
    answers = [{name: one[name][start:] for name in one} for one, start in zip(features, starts)]
    halves = padded(prompts), padded(answers)
    return {name: torch.cat([half[name] for half in halves], dim=1) for name in halves[0]}


FAULTS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "huggingface/transformers#46634 a mask of ones switches packing off": (with_all_ones, "P203", "error"),
    "axolotl-ai-cloud/axolotl#3796 positions run on over documents": (without_restarts, "P203", "error"),
    "huggingface/nanoVLM#204 packed without positions": (without_positions, "P203", "warning"),
    "NVIDIA-BioNeMo/bionemo-recipes#1449 first tokens trained": (with_first_labels, "P206", "warning"),
    "positions begin at one": (from_one, "P209", "warning"),
    "huggingface/trl#6357 a mask by id hides ends of turns": (masked_by_id, "P205", "error"),
    "tloen/alpaca-lora#107 padding is attended": (all_attended, "P205", "error"),
    "no mask at all": (without_mask, "P205", "error"),
    "bigscience-workshop/t-zero#32 padding inside": (padded_inside, "P201", "error"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_collators_are_found(tmp_path, name):
    collator, code, level = FAULTS[name]
    rows = token_rows(TOKENIZER, chats(12, turns=2)) if collator is masked_by_id else ROWS
    report = look(causal_trainer(tmp_path, rows, collator, tiny_llama(TOKENIZER), TOKENIZER))
    assert level in levels(report, code), report.findings


SOUND = {
    "padded right": padded,
    "padded left": lambda features: padded(features, left=True),
    "packed": packed,
    "stock": DataCollatorForSeq2Seq(TOKENIZER),
    "stock to a multiple": DataCollatorForSeq2Seq(TOKENIZER, pad_to_multiple_of=64),
    "flattened": DataCollatorWithFlattening(),
}


@pytest.mark.parametrize("name", SOUND)
def test_collators_without_a_fault_are_not_blamed(tmp_path, name):
    report = look(causal_trainer(tmp_path, ROWS, SOUND[name], tiny_llama(TOKENIZER), TOKENIZER))
    assert sound(report), report.findings


def test_padding_on_the_left_of_learned_positions(tmp_path):
    """tloen/alpaca-lora#315, huggingface/trl#469: GPT-2 counts the padding, unless it gets position_ids."""
    right, left = (
        look(causal_trainer(tmp_path, ROWS, lambda features, side=side: padded(features, side), gpt2(), TOKENIZER))
        for side in (False, True)
    )
    assert sound(right), right.findings
    assert "error" in levels(left, "P201")


def test_positions_beyond_the_model(tmp_path):
    """mosaicml/llm-foundry#1464: packed rows are longer than the positions; an error if they are learned."""
    learned, rotary = gpt2(n_positions=96), tiny_llama(TOKENIZER, max_position_embeddings=96)
    for model, level in ((learned, "error"), (rotary, "warning")):
        report, subject = Report(), TrainerSubject(causal_trainer(tmp_path, ROWS, without_positions, model, TOKENIZER))
        subject.read_features()
        batches.check_positions(subject, report)
        assert levels(report, "P204") == {level}


def test_flattened_rows_of_an_encoder(tmp_path):
    """Encoders of transformers do not read position_ids as documents, so that flattened rows leak."""
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    for collator, code in ((DataCollatorForLanguageModeling(TOKENIZER), None), (packed, "P203")):
        train = rows if code is None else ROWS
        model = tiny_bert(TOKENIZER, max_position_embeddings=512)
        report = look(Trainer(model, arguments(tmp_path), collator, Dataset.from_list(train)))
        assert sound(report) if code is None else "error" in levels(report, code), report.findings


def classes() -> Dataset:
    return Dataset.from_list([{"input_ids": row["input_ids"], "label": number % 2} for number, row in enumerate(ROWS)])


def test_the_classifier_pools_another_token(tmp_path):
    """huggingface/transformers#35352, #35911: with another pad id than the batch's, the last padding is pooled."""
    for pad, is_found in ((PAD, False), (TOKENIZER.mask_token_id, True)):
        model = GPT2ForSequenceClassification(
            GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, n_positions=256, pad_token_id=pad)
        )
        report = look(Trainer(model, arguments(tmp_path), DataCollatorWithPadding(TOKENIZER), classes()))
        assert levels(report, "P201") == ({"error"} if is_found else set())


def test_a_mask_of_ones_in_an_encoder(tmp_path):
    def attend(features: list[dict[str, Any]]) -> Any:
        batch = DataCollatorWithPadding(TOKENIZER)(features)
        return dict(batch) | {"attention_mask": torch.ones_like(batch["input_ids"])}

    for collator, is_found in ((DataCollatorWithPadding(TOKENIZER), False), (attend, True)):
        report = look(Trainer(tiny_bert(TOKENIZER, labels=2), arguments(tmp_path), collator, classes()))
        assert levels(report, "P205") == levels(report, "P201") == ({"error"} if is_found else set())


def test_positions_of_roberta_begin_behind_the_padding_token(tmp_path):
    """huggingface/transformers#47496: given positions from 0 are two places beside those of the pretraining."""

    def count(features: list[dict[str, Any]], first: int) -> Any:
        batch = dict(DataCollatorWithPadding(TOKENIZER)(features))
        return batch | {"position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"]) + first}

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    for first in (PAD + 1, 0):
        model = RobertaForSequenceClassification(
            RobertaConfig(vocab_size=len(TOKENIZER), max_position_embeddings=256, pad_token_id=PAD, **sizes)
        )
        collator = lambda features, first=first: count(features, first)  # noqa: E731
        report = look(Trainer(model, arguments(tmp_path), collator, classes()))
        assert sound(report) if first else "error" in levels(report, "P209"), report.findings


class Normed(torch.nn.Module):
    """Norms the outputs over the rows of a batch."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer, self.norm = layer, torch.nn.BatchNorm1d(32)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(states).transpose(1, 2)).transpose(1, 2)


def test_positions_that_are_all_zero_do_not_take_long(tmp_path, monkeypatch):
    """Each token looks like a document of its own; some of them are computed alone."""
    calls = []
    alone = batches.Call.alone
    monkeypatch.setattr(batches.Call, "alone", lambda *args: calls.append(args) or alone(*args))

    def collate(features):
        batch = padded(features)
        return batch | {"position_ids": torch.zeros_like(batch["input_ids"])}

    report = look(causal_trainer(tmp_path, ROWS, collate, tiny_llama(TOKENIZER), TOKENIZER))
    assert levels(report, "P209") == {"error"} and len(calls) <= 4 * batches.COMPUTED_DOCUMENTS


def test_rows_that_change_one_another(tmp_path):
    """allenai/reward-bench#137: results depend on what else is in the batch."""
    model = tiny_llama(TOKENIZER)
    model.model.norm = Normed(model.model.norm)
    report = look(causal_trainer(tmp_path, ROWS, padded, model, TOKENIZER))
    assert levels(report, "P202") == {"error"}


@pytest.mark.parametrize(
    "options",
    [
        dict(packing=True),
        dict(packing=True, packing_strategy="wrapped", max_length=64),
        dict(padding_free=True, max_length=None),
        dict(pad_to_multiple_of=64),
        dict(gradient_checkpointing=True, packing=True),
        dict(bf16=True, packing=True),
    ],
)
def test_runs_of_trl_are_sound(tmp_path, options):
    report = look(sft_trainer(tmp_path, **options))
    assert sound(report), report.findings


def test_packing_with_a_cache_leaks(tmp_path):
    """The mask of packed documents is made only without a cache (huggingface/transformers#46634)."""
    trainer = causal_trainer(tmp_path, ROWS, packed, tiny_llama(TOKENIZER), TOKENIZER, use_cache=True)
    assert "error" in levels(look(trainer), "P203")


def test_columns_of_numbers_that_are_dropped_are_noted(tmp_path):
    rows = [row | {"weight": 0.5, "text": "x"} for row in ROWS]
    report = look(causal_trainer(tmp_path, rows, padded, tiny_llama(TOKENIZER), TOKENIZER))
    (found,) = [found for found in report.findings if found.code == "P207"]
    assert found.what == "the trainer drops the columns weight"


def test_concatenated_blocks_are_noted(tmp_path):
    ids = [token for row in ROWS for token in row["input_ids"]]
    rows = [{"input_ids": ids[start : start + 64]} for start in range(0, len(ids) - 63, 64)]
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    report = preflight(causal_trainer(tmp_path, rows, collator, tiny_llama(TOKENIZER), TOKENIZER), show=None)
    assert levels(report, "P208") == {"note"}


def test_places_of_records_and_documents():
    row = torch.tensor([5, 6, 0, 7, 0, 0])
    assert places_within(row, Padding(0, False)) == [0, 1, 2, 3]
    assert places_within(row, Padding(0, True)) == [0, 1, 2, 3, 4]
    assert places_of_record(row, {"input_ids": [5, 6, 0, 7]}, Padding(0, False)) == [0, 1, 2, 3]
    assert places_of_record(row, {"input_ids": [0, 7, 0, 0]}, Padding(0, False)) == [2, 3, 4, 5]
    assert places_of_record(row, {"input_ids": row.tolist()}, Padding(0, True)) is None
    assert places_of_record(row, {"input_ids": [9, 9]}, Padding(0, False)) is None
    positions = torch.tensor([0, 1, 0, 1, 2, 0])
    assert documents_of([0, 1, 2, 3, 4], positions, None) == [[0, 1], [2, 3, 4]]
    assert documents_of([0, 1, 2], None, [1, 2]) == [[0], [1, 2]]
