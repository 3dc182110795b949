"""Generation with a cache and in batches: faults as people reported them, beside the same run without them."""

from typing import Any

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
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, LlamaForCausalLM, Trainer

from hf_tfm.audit.report import Report
from hf_tfm.audit.trainers import generation
from hf_tfm.audit.trainers.subject import TrainerSubject


TOKENIZER = byte_tokenizer()
ROWS = token_rows(TOKENIZER, chats(12))


def look(trainer: Any) -> Report:
    report, subject = Report(), TrainerSubject(trainer)
    with subject.left_as_it_was():
        subject.read_features()
        generation.check_cache(subject, report)
    return report


class WithoutPositions(LlamaForCausalLM):
    """Forgets the positions that generation gives it."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["position_ids"] = torch.zeros_like(inputs["input_ids"]) if self.training_fault == "cache" else None
        if self.training_fault == "batch" and inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return inputs


def run(folder: Any, fault: str | None) -> Trainer:
    model = tiny_llama(TOKENIZER)
    if fault:
        model.__class__, model.training_fault = WithoutPositions, fault
    return causal_trainer(folder, ROWS, DataCollatorForSeq2Seq(TOKENIZER), model, TOKENIZER)


def test_generation_with_a_cache_differs(tmp_path):
    """huggingface/transformers#22707 and its like: the cached step is computed at another position."""
    assert {found.code for found in look(run(tmp_path, "cache")).errors} == {"P501"}


def test_generation_in_batches_differs(tmp_path):
    """huggingface/transformers#43734: padding on the left is read."""
    report = look(run(tmp_path, "batch"))
    assert [found.code for found in report.warnings] == ["P502"]
    assert not report.errors


def test_sound_models_generate_alike(tmp_path):
    for trainer in (run(tmp_path, None), sft_trainer(tmp_path), sft_trainer(tmp_path, packing=True)):
        report = look(trainer)
        assert not report.findings
        assert not report.unseen


def test_models_that_classify_do_not_generate(tmp_path):
    rows = [{"input_ids": row["input_ids"], "label": 0} for row in ROWS]
    model = tiny_bert(TOKENIZER, labels=2)
    report = look(Trainer(model, arguments(tmp_path), DataCollatorWithPadding(TOKENIZER), Dataset.from_list(rows)))
    assert not report.findings
    assert not report.unseen
