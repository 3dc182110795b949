"""
Faults of resuming and of choosing checkpoints that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

import shutil

import pytest
import torch
from audit_helpers import arguments, byte_tokenizer, chats, tiny_llama, token_rows
from datasets import Dataset
from planted import assert_found, assert_sound, planted
from safetensors.torch import load_file, save_file
from transformers import DataCollatorForSeq2Seq, Trainer


def make_trainer(folder, count=16, **options):
    tokenizer = byte_tokenizer()
    settings = dict(max_steps=8, save_strategy="steps", save_steps=4, learning_rate=1e-3, logging_steps=1)
    rows = Dataset.from_list(token_rows(tokenizer, chats(count)))
    return Trainer(
        model=tiny_llama(tokenizer),
        args=arguments(folder, **settings | options),
        train_dataset=rows,
        eval_dataset={"law": rows, "news": rows},
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """The checkpoint of a run that was stopped after 4 of its 8 steps."""
    folder = tmp_path_factory.mktemp("stopped")
    make_trainer(folder).train()
    return folder / "checkpoint-4"


def other_batch_size(checkpoint, fault):
    return {"per_device_train_batch_size": 2, "num_train_epochs": 2} if fault else {}


def more_records(checkpoint, fault):
    return {"count": 24} if fault else {}


def weights_only(checkpoint, fault):
    if fault:
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (checkpoint / name).unlink()
    return {}


def no_scheduler(checkpoint, fault):
    if fault:
        (checkpoint / "scheduler.pt").unlink()
    return {}


def no_random_state(checkpoint, fault):
    if fault:
        (checkpoint / "rng_state.pth").unlink()
    return {}


def not_a_number(checkpoint, fault):
    if fault:
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return {}


FAULTS = [
    planted("huggingface/transformers#43718", other_batch_size, "P711"),
    planted("huggingface/accelerate#2016", more_records, "P711"),
    planted("unitaryai/detoxify#45", weights_only, "P712"),
    planted("ultralytics/yolov5#292", no_scheduler, "P712"),
    planted("huggingface/transformers#40691", no_random_state, "P712"),
    planted("huggingface/transformers#28122", not_a_number, "P713"),
]


@pytest.mark.parametrize(("change", "codes"), FAULTS)
def test_finds_the_reported_fault(change, codes, stopped_run, tmp_path):
    checkpoint = shutil.copytree(stopped_run, tmp_path / "checkpoint-4")
    options = change(checkpoint, True)
    assert_found(make_trainer(tmp_path, **options), codes, resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(("change", "codes"), FAULTS)
def test_is_silent_without_the_fault(change, codes, stopped_run, tmp_path):
    checkpoint = shutil.copytree(stopped_run, tmp_path / "checkpoint-4")
    options = change(checkpoint, False)
    assert_sound(make_trainer(tmp_path, **options), resume_from_checkpoint=checkpoint)


def run_that_keeps_one_checkpoint(folder, fault):
    """huggingface/transformers#31142: a loss of one of several evaluations is to be as large as possible."""
    return make_trainer(
        folder,
        eval_strategy="steps",
        eval_steps=4,
        metric_for_best_model="eval_law_loss",
        load_best_model_at_end=True,
        greater_is_better=fault,
    )


def test_finds_that_the_worst_checkpoint_is_kept(tmp_path):
    assert_found(run_that_keeps_one_checkpoint(tmp_path, True), frozenset({"P805"}))


def test_is_silent_where_the_best_checkpoint_is_kept(tmp_path):
    assert_sound(run_that_keeps_one_checkpoint(tmp_path, False))
