"""Planted faults of labels in runs as people write them, and the sound runs beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import (
    SENTENCES,
    arguments,
    byte_tokenizer,
    causal_trainer,
    chats,
    sft_trainer,
    tiny_bert,
    tiny_llama,
    token_rows,
)
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    default_data_collator,
)

from hf_tfm import preflight
from hf_tfm.audit.report import Report


IGNORED = -100
Rows = list[dict[str, Any]]


def codes(report: Report, level: str) -> set[str]:
    return {found.code for found in report.of_level(level)}


def chat_report(folder: Path, change: Callable[[Rows], Any] | None = None, turns: int = 1, **options: Any) -> Report:
    """Returns the report of a plain Trainer on chats whose rows `change` has changed."""
    tokenizer = options.pop("tokenizer", None) or byte_tokenizer()
    rows = token_rows(tokenizer, chats(turns=turns))
    if change is not None:
        change(rows)
    collator = options.pop("collator", None) or DataCollatorForSeq2Seq(tokenizer)
    return preflight(causal_trainer(folder, rows, collator, tiny_llama(tokenizer), tokenizer, **options), show=None)


@pytest.mark.parametrize("turns", [1, 3])
def test_sound_chats_have_no_findings(tmp_path: Path, turns: int) -> None:
    report = chat_report(tmp_path, turns=turns)
    assert not report.errors and not report.warnings


def test_mask_of_all_zeros(tmp_path: Path) -> None:
    """huggingface/trl#4201: assistant masks of only zeros, and the loss is 0 from the first step."""

    def change(rows: Rows) -> None:
        for row in rows:
            row["labels"] = [IGNORED] * len(row["labels"])

    assert "P101" in codes(chat_report(tmp_path, change), "error")


def test_rows_whose_answer_is_cut_off_entirely(tmp_path: Path) -> None:
    """huggingface/trl#6668: a long prompt leaves no trained token, and the loss of such a batch is NaN or 0."""

    def change(rows: Rows) -> None:
        for row in rows[::3]:
            row["labels"] = [IGNORED] * len(row["labels"])

    report = chat_report(tmp_path, change)
    assert "P109" in codes(report, "warning") and "P101" not in report.codes


def test_collator_overwrites_labels(tmp_path: Path) -> None:
    """oobabooga/textgen#4031: a collator makes labels anew and drops those of the rows."""
    tokenizer = byte_tokenizer()

    def collate(rows: Rows) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}

    assert "P102" in codes(chat_report(tmp_path, collator=collate), "error")


def test_everything_is_trained_though_the_settings_ask_for_answers(tmp_path: Path) -> None:
    """huggingface/trl#5988: the trainer was told to train answers only, and trains whole conversations."""
    pytest.importorskip("trl")
    trainer = sft_trainer(tmp_path, assistant_only_loss=True)
    assert not preflight(trainer, show=None).codes
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"labels": row["input_ids"]})
    assert "P102" in codes(preflight(trainer, show=None), "error")


def test_whole_conversations_on_purpose_are_a_note(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["labels"] = list(row["input_ids"])

    report = chat_report(tmp_path, change)
    assert "P115" in codes(report, "note") and not report.codes


def test_prompts_of_completions_are_trained(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    records = [{"prompt": f"{text}:", "completion": f" {text.upper()}"} for text in SENTENCES * 2]
    trainer = sft_trainer(tmp_path, records)
    sound = preflight(trainer, show=None)
    assert not sound.errors and len(sound.warnings) <= 1
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"labels": row["input_ids"]})
    assert "P102" in codes(preflight(trainer, show=None), "error")


def test_inverted_mask(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            pairs = zip(row["input_ids"], row["labels"])
            row["labels"] = [IGNORED if label != IGNORED else token for token, label in pairs]

    assert "P102" in codes(chat_report(tmp_path, change), "error")


def test_later_questions_are_trained(tmp_path: Path) -> None:
    """huggingface/trl#1184: the mask finds the first question only, so that later ones are trained."""

    def change(rows: Rows) -> None:
        for row in rows:
            first = next(place for place, label in enumerate(row["labels"]) if label != IGNORED)
            row["labels"][first:] = row["input_ids"][first:]

    assert "P102" in codes(chat_report(tmp_path, change, turns=3), "warning")


def test_end_of_answers_is_never_trained(tmp_path: Path) -> None:
    """axolotl-ai-cloud/axolotl#2229, huggingface/trl#976: the model never stops."""
    end = byte_tokenizer().eos_token_id

    def change(rows: Rows) -> None:
        for row in rows:
            row["labels"] = [IGNORED if label == end else label for label in row["labels"]]

    assert "P104" in codes(chat_report(tmp_path, change, turns=2), "error")


def test_padding_is_the_end_token_and_is_masked_by_id(tmp_path: Path) -> None:
    """huggingface/transformers#23530: with pad_token = eos_token the collator masks the end of each text."""
    tokenizer = byte_tokenizer(eos_token="</s>", pad_token="</s>")
    rows = [{"input_ids": tokenizer(text + "</s>")["input_ids"]} for text in SENTENCES * 2]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    report = preflight(causal_trainer(tmp_path, rows, collator, tiny_llama(tokenizer), tokenizer), show=None)
    found = next(found for found in report.errors if found.code == "P104")
    assert "padding token" in found.why
    labelled = [{**row, "labels": row["input_ids"]} for row in rows]
    trainer = causal_trainer(tmp_path, labelled, DataCollatorForSeq2Seq(tokenizer), tiny_llama(tokenizer), tokenizer)
    assert not preflight(trainer, show=None).codes


def test_padding_is_the_end_token_of_answers_and_is_masked_by_id(tmp_path: Path) -> None:
    """huggingface/trl#976: the same in chats, by a collator for completions."""
    tokenizer = byte_tokenizer(pad_token="<|im_end|>")

    def collate(rows: Rows) -> dict[str, torch.Tensor]:
        batch = DataCollatorForSeq2Seq(tokenizer)(rows)
        batch["labels"][batch["labels"] == tokenizer.pad_token_id] = IGNORED
        return dict(batch)

    assert "P104" in codes(chat_report(tmp_path, tokenizer=tokenizer, collator=collate), "error")
    assert not chat_report(tmp_path, tokenizer=tokenizer).codes


def padding_collator(tokenizer: Any, with_mask: bool) -> Callable[[Rows], dict[str, torch.Tensor]]:
    """Returns a collator that copies the inputs as labels, padding included."""

    def collate(rows: Rows) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        if not with_mask:
            del batch["attention_mask"]
        return {**batch, "labels": batch["input_ids"].clone()}

    return collate


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_padding_is_trained(tmp_path: Path, pad: str, with_mask: bool) -> None:
    """huggingface/trl#1625: labels are a copy of padded input_ids."""
    tokenizer = byte_tokenizer(eos_token="</s>", pad_token=pad)
    rows = [{"input_ids": tokenizer(text + "</s>")["input_ids"]} for text in SENTENCES * 2]
    collator = padding_collator(tokenizer, with_mask)
    report = preflight(causal_trainer(tmp_path, rows, collator, tiny_llama(tokenizer), tokenizer), show=None)
    assert "P103" in codes(report, "error")


def shift(rows: Rows) -> None:
    for row in rows:
        row["labels"] = [*row["labels"][1:], IGNORED]


def test_labels_are_shifted_twice(tmp_path: Path) -> None:
    """huggingface/transformers#32944: users shift labels, and the model does so again."""
    assert "P106" in codes(chat_report(tmp_path, shift), "error")


class UnshiftedTrainer(Trainer):
    """Compares outputs with labels at the same place, as labels that are shifted before want it."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        return (loss, outputs) if return_outputs else loss


def test_labels_shifted_for_a_loss_that_does_not_shift(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = token_rows(tokenizer, chats())
    shift(rows)
    trainer = UnshiftedTrainer(
        tiny_llama(tokenizer),
        arguments(tmp_path),
        DataCollatorForSeq2Seq(tokenizer),
        Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert not preflight(trainer, show=None).codes & {"P104", "P106", "P107", "P110"}


def test_labels_of_another_tokenizer(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["labels"] = [label if label == IGNORED else (label * 7 + 3) % 200 for label in row["labels"]]

    assert "P107" in codes(chat_report(tmp_path, change), "error")


@pytest.mark.parametrize("label", [50_000, -1])
def test_labels_beyond_the_vocabulary(tmp_path: Path, label: int) -> None:
    """meta-llama/llama-cookbook#74: labels are -1 instead of -100 where nothing is trained."""

    def change(rows: Rows) -> None:
        rows[0]["labels"][-1] = label

    assert "P112" in codes(chat_report(tmp_path, change), "error")


def test_first_token_of_answers_is_lost(tmp_path: Path) -> None:
    """huggingface/trl#598: the mask by the tokens of a response template is one token too long."""

    def change(rows: Rows) -> None:
        for row in rows:
            first = next(place for place, label in enumerate(row["labels"]) if label != IGNORED)
            row["labels"][first] = IGNORED

    assert "P110" in codes(chat_report(tmp_path, change), "error")


def test_only_last_answer_is_trained(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            last = max(place for place, label in enumerate(row["labels"]) if label == IGNORED)
            row["labels"][:last] = [IGNORED] * last

    report = chat_report(tmp_path, change, turns=3)
    assert not report.codes and "P110" in codes(report, "note")


def test_answers_are_cut_off(tmp_path: Path) -> None:
    """huggingface/trl#6025: the limit of length cuts answers, and the model learns no end."""

    def change(rows: Rows) -> None:
        for row in rows:
            row["input_ids"], row["labels"] = row["input_ids"][:110], row["labels"][:110]

    assert "P108" in codes(chat_report(tmp_path, change), "warning")


def test_beginnings_are_cut_off(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["input_ids"], row["labels"] = row["input_ids"][-110:], row["labels"][-110:]

    assert "P108" in codes(chat_report(tmp_path, change), "warning")


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_conversations_are_sound(tmp_path: Path, strategy: str) -> None:
    pytest.importorskip("trl")
    report = preflight(sft_trainer(tmp_path, packing=True, packing_strategy=strategy), show=None)
    assert not report.errors and not report.codes & {"P104", "P108", "P110"}


def masked_report(folder: Path, rate: float = 0.15, change: Any = None, rows: Rows | None = None) -> Report:
    tokenizer = byte_tokenizer()
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=rate or 0.15)

    def collate(rows: Rows) -> dict[str, torch.Tensor]:
        batch = dict(collator(rows))
        if not rate:
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return change(batch) if change else batch

    rows = rows or [tokenizer(text) for text in SENTENCES * 2]
    trainer = causal_trainer(folder, rows, collate, tiny_bert(tokenizer), tokenizer)
    return preflight(trainer, show=None)


def test_masked_tokens(tmp_path: Path) -> None:
    assert not masked_report(tmp_path).codes
    assert "P111" in codes(masked_report(tmp_path, rate=0.0), "error")
    assert "P111" in codes(masked_report(tmp_path, rate=0.9), "warning")


def test_masked_model_that_sees_its_labels(tmp_path: Path) -> None:
    """huggingface/transformers#20797: labels are input_ids also where nothing is masked, and the loss is near 0."""

    def change(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        original = batch["input_ids"].where(batch["labels"] == IGNORED, batch["labels"])
        return {**batch, "labels": original.masked_fill(batch["attention_mask"] == 0, IGNORED)}

    assert "P111" in codes(masked_report(tmp_path, change=change), "error")


def test_masked_labels_are_not_the_original(tmp_path: Path) -> None:
    def change(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        labels = batch["labels"]
        return {**batch, "labels": labels.where(labels == IGNORED, (labels + 1) % 200)}

    assert "P107" in codes(masked_report(tmp_path, change=change), "error")


def class_report(
    folder: Path, labels: Sequence[Any], classes: int = 3, names: Sequence[str] = (), **options: Any
) -> Report:
    tokenizer = byte_tokenizer()
    records = [{**tokenizer(SENTENCES[number % 8]), "label": label} for number, label in enumerate(labels)]
    dataset = Dataset.from_list(records)
    if names:
        dataset = dataset.cast_column("label", ClassLabel(names=list(names)))
    settings = arguments(folder, **options.pop("arguments", {}))
    model = tiny_bert(tokenizer, labels=classes, **options)
    trainer = Trainer(model, settings, DataCollatorWithPadding(tokenizer), dataset, processing_class=tokenizer)
    return preflight(trainer, show=None)


def test_sound_classifiers(tmp_path: Path) -> None:
    mixed = [number % 3 for number in range(16)]
    assert not class_report(tmp_path, mixed).codes
    assert not class_report(tmp_path, sorted(mixed)).codes, "the trainer shuffles"
    assert not class_report(tmp_path, [number / 7 for number in range(16)], classes=1).codes
    several = [[1.0, 0.0, float(number % 2)] for number in range(16)]
    assert not class_report(tmp_path, several, problem_type="multi_label_classification").codes


def test_labels_out_of_range(tmp_path: Path) -> None:
    """huggingface/transformers#10449: a label that the model has no output for ends in a device-side assert."""
    assert "P112" in codes(class_report(tmp_path, [number % 3 + 1 for number in range(16)]), "error")


def test_only_one_label(tmp_path: Path) -> None:
    assert "P117" in codes(class_report(tmp_path, [1] * 16), "error")


def test_sorted_labels_that_are_not_shuffled(tmp_path: Path) -> None:
    """Sorted files, read one after another, train one label after another."""
    labels = sorted(number % 3 for number in range(48))
    report = class_report(tmp_path, labels, arguments={"train_sampling_strategy": "sequential"})
    assert "P117" in codes(report, "error")


def test_names_of_labels_are_in_another_order(tmp_path: Path) -> None:
    """huggingface/transformers#12822: checkpoints of natural language inference name their classes in other orders."""
    names = ["entailment", "neutral", "contradiction"]
    labels = [number % 3 for number in range(16)]
    id2label = dict(enumerate(["contradiction", "neutral", "entailment"]))
    assert "P118" in codes(class_report(tmp_path, labels, names=names, id2label=id2label), "warning")
    assert not class_report(tmp_path, labels, names=names, id2label=dict(enumerate(names))).codes
    assert not class_report(tmp_path, labels, names=names).codes, "names that nobody gave are a note"


def tag_report(folder: Path, change: Callable[[Rows], None] | None = None) -> Report:
    tokenizer = byte_tokenizer()
    rows: Rows = []
    for text in SENTENCES * 2:
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("</s>")]
        rows.append({"input_ids": ids, "labels": [IGNORED, *[token % 3 for token in ids[1:-1]], IGNORED]})
    if change is not None:
        change(rows)
    torch.manual_seed(0)
    settings = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=3)
    model = BertForTokenClassification(BertConfig(vocab_size=len(tokenizer), **settings))
    collator = DataCollatorForTokenClassification(tokenizer)
    return preflight(causal_trainer(folder, rows, collator, model, tokenizer), show=None)


def test_tags(tmp_path: Path) -> None:
    assert not tag_report(tmp_path).codes

    def remove(rows: Rows) -> None:
        for row in rows:
            row["labels"] = [IGNORED] * len(row["labels"])

    def raise_one(rows: Rows) -> None:
        rows[0]["labels"][1] = 9

    assert "P101" in codes(tag_report(tmp_path, remove), "error")
    assert "P112" in codes(tag_report(tmp_path, raise_one), "error")


def test_tags_that_are_not_aligned(tmp_path: Path) -> None:
    """The tags of words stand at the tokens of the row one by one, the begin token included."""

    def change(rows: Rows) -> None:
        for row in rows:
            tags = [tag for tag in row["labels"] if tag != IGNORED][: len(row["labels"]) // 2]
            row["labels"] = tags + [IGNORED] * (len(row["labels"]) - len(tags))

    assert "P107" in codes(tag_report(tmp_path, change), "error")


def target_report(folder: Path, collate: Any = None, ended: bool = True) -> Report:
    tokenizer = byte_tokenizer(eos_token="</s>")
    torch.manual_seed(0)
    settings = dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, pad_token_id=0, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), eos_token_id=2, **settings))
    end = "</s>" if ended else ""
    rows = [
        {"input_ids": tokenizer(text)["input_ids"], "labels": tokenizer(text.upper() + end)["input_ids"]}
        for text in SENTENCES * 2
    ]
    collator = collate(tokenizer, model) if collate else DataCollatorForSeq2Seq(tokenizer, model)
    return preflight(causal_trainer(folder, rows, collator, model, tokenizer), show=None)


def test_targets(tmp_path: Path) -> None:
    assert not target_report(tmp_path).codes
    assert "P003" in target_report(tmp_path, ended=False).codes


def test_padding_of_targets_is_trained(tmp_path: Path) -> None:
    """huggingface/transformers#9909: labels are padded with the token of padding instead of -100."""

    def collate(tokenizer: Any, model: Any) -> Any:
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=tokenizer.pad_token_id)

    assert "P103" in codes(target_report(tmp_path, collate), "error")


def test_decoder_reads_its_targets(tmp_path: Path) -> None:
    def collate(tokenizer: Any, model: Any) -> Any:
        inner = DataCollatorForSeq2Seq(tokenizer)
        return lambda rows: (batch := dict(inner(rows))) | {"decoder_input_ids": batch["labels"].clamp(min=0)}

    assert "P305" in codes(target_report(tmp_path, collate), "error")


SETTINGS: dict[str, Any] = dict(per_device_train_batch_size=4, max_steps=4, use_cpu=True, report_to=[], bf16=False)


def preference_report(folder: Path, records: Rows, **options: Any) -> Report:
    from trl import DPOConfig, DPOTrainer

    tokenizer = byte_tokenizer()
    trainer = DPOTrainer(
        tiny_llama(tokenizer),
        tiny_llama(tokenizer),
        args=DPOConfig(output_dir=str(folder), **SETTINGS | options),
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )
    return preflight(trainer, show=None)


def reward_report(folder: Path, records: Rows) -> Report:
    from trl import RewardConfig, RewardTrainer

    tokenizer = byte_tokenizer()
    settings = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=1)
    trainer = RewardTrainer(
        LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **settings)),
        args=RewardConfig(output_dir=str(folder), **SETTINGS),
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )
    return preflight(trainer, show=None)


def pairs(count: int = 16, equal: bool = False) -> Rows:
    def say(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return [
        {
            "prompt": say("user", f"{number}: tell me of {SENTENCES[number % 8]}"),
            "chosen": say("assistant", SENTENCES[(number + 1) % 8]),
            "rejected": say("assistant", SENTENCES[(number + (1 if equal else 3)) % 8]),
        }
        for number in range(count)
    ]


def test_pairs(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    assert not preference_report(tmp_path, pairs()).codes
    assert "P113" in codes(preference_report(tmp_path, pairs(equal=True)), "error")
    assert "P114" in preference_report(tmp_path, pairs(), max_length=95).codes


def test_rewards_of_different_questions(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    whole = [{name: record["prompt"] + record[name] for name in ("chosen", "rejected")} for record in pairs()]
    assert not reward_report(tmp_path, whole).codes
    shifted = [{**record, "rejected": whole[number - 1]["rejected"]} for number, record in enumerate(whole)]
    assert "P119" in codes(reward_report(tmp_path, shifted), "error")


def test_labels_of_unknown_batches_cannot_be_seen(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, values: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.layer(values) - targets).square().mean()}

    rows = [{"values": [float(number)] * 4, "targets": [1.0]} for number in range(16)]
    trainer = Trainer(Net(), arguments(tmp_path), default_data_collator, Dataset.from_list(rows))
    report = preflight(trainer, show=None)
    assert not report.errors and any("labels" in line for line in report.unseen)
