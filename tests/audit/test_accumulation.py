"""Accumulation under the trainer's own loss: faults as people reported them, each beside the same run without it."""

from typing import Any

import pytest
import torch
from audit_helpers import arguments, byte_tokenizer, chats, sft_trainer, tiny_bert, tiny_llama, token_rows
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer

from hf_tfm.audit.report import Report
from hf_tfm.audit.trainers import accumulation
from hf_tfm.audit.trainers.subject import TrainerSubject


TOKENIZER = byte_tokenizer()
ROWS = token_rows(TOKENIZER, chats(12))
COLLATOR = DataCollatorForSeq2Seq(TOKENIZER)


def look(trainer: Any) -> dict[str, str]:
    """Returns codes and levels of the check of accumulation."""
    report, subject = Report(), TrainerSubject(trainer)
    with subject.left_as_it_was():
        subject.read_features()
        accumulation.check_accumulation(subject, report)
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert not report.unseen
    return {found.code: str(found.level) for found in report.findings}


class MeanLoss(Trainer):
    """The mean over the tokens of each batch, as an own compute_loss takes it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class CountedLoss(Trainer):
    """The sum over tokens, divided by the tokens of the whole step."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch


def causal(folder: Any, kind: type[Trainer], steps: int = 4, **options: Any) -> Trainer:
    args = arguments(folder, gradient_accumulation_steps=steps)
    return kind(tiny_llama(TOKENIZER), args, COLLATOR, Dataset.from_list(ROWS), **options)


def test_a_mean_of_each_batch_is_multiplied(tmp_path):
    """huggingface/transformers#47688, #37766: the trainer takes it for divided by num_items_in_batch."""
    assert look(causal(tmp_path, MeanLoss)) == {"P301": "error"}
    assert look(causal(tmp_path, MeanLoss, steps=1)) == {"P301": "note"}


def test_a_mean_of_means_weighs_short_rows_more(tmp_path):
    """huggingface/transformers#34191."""
    trainer = causal(tmp_path, MeanLoss)
    trainer.model_accepts_loss_kwargs = False
    assert look(trainer) == {"P302": "warning"}
    trainer.args.gradient_accumulation_steps = 1
    assert look(trainer) == {"P302": "note"}


def test_a_loss_over_all_tokens_that_is_divided_again(tmp_path):
    trainer = causal(tmp_path, CountedLoss)
    trainer.loss_is_scaled_for_ga = False
    assert look(trainer) == {"P301": "error"}


@pytest.mark.parametrize("kind", [CountedLoss, Trainer])
def test_losses_over_the_tokens_of_a_step_are_exact(tmp_path, kind):
    assert look(causal(tmp_path, kind)) == {}


def test_a_stock_loss_that_multiplies_is_a_warning(tmp_path):
    """huggingface/transformers#47688: BERT's own loss is a mean, whatever the number of steps."""
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    trainer = Trainer(
        tiny_bert(TOKENIZER),
        arguments(tmp_path, gradient_accumulation_steps=2),
        DataCollatorForLanguageModeling(TOKENIZER),
        Dataset.from_list(rows),
    )
    trainer.model_accepts_loss_kwargs = True
    assert look(trainer) == {"P301": "warning"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(packing=True),
        dict(padding_free=True, max_length=None),
        dict(bf16=True),
        dict(gradient_checkpointing=True),
        dict(peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])),
    ],
)
def test_runs_of_trl_are_exact(tmp_path, options):
    assert look(sft_trainer(tmp_path, gradient_accumulation_steps=2, **options)) == {}


def test_classes_are_exact_where_the_loss_is_a_mean_of_rows(tmp_path):
    rows = [{"input_ids": row["input_ids"], "label": number % 2} for number, row in enumerate(ROWS)]
    trainer = Trainer(
        tiny_bert(TOKENIZER, labels=2),
        arguments(tmp_path, gradient_accumulation_steps=2),
        DataCollatorWithPadding(TOKENIZER),
        Dataset.from_list(rows),
    )
    trainer.loss_is_scaled_for_ga = False
    assert look(trainer) == {}


def test_losses_that_compare_rows_are_a_note(tmp_path):
    class Contrast(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            states = F.normalize(model(input_ids=inputs["input_ids"]).logits, dim=-1)
            return F.cross_entropy(5 * states @ states.T, torch.arange(len(states)))

    rows = [{"input_ids": row["input_ids"], "label": number % 2} for number, row in enumerate(ROWS)]
    trainer = Contrast(
        tiny_bert(TOKENIZER, labels=8),
        arguments(tmp_path, gradient_accumulation_steps=2),
        DataCollatorWithPadding(TOKENIZER),
        Dataset.from_list(rows),
    )
    trainer.loss_is_scaled_for_ga = False
    assert look(trainer) == {"P302": "note"}


def test_the_optimizer_is_not_made(tmp_path):
    trainer = causal(tmp_path, Trainer)
    look(trainer)
    assert trainer.optimizer is None
    assert trainer.state.global_step == 0
