"""Planted faults of pooling in models and losses of users, and the sound runs beside them."""

from pathlib import Path

import pytest
import torch
from audit_helpers import SENTENCES, arguments, byte_tokenizer, find_nothing_wrong
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertModel, DataCollatorWithPadding, Trainer

from hf_tfm import preflight


class Pooled(nn.Module):
    """A classifier as people write it: the mean over the body's outputs, and a linear layer."""

    def __init__(self, size: int, reads_padding: bool):
        super().__init__()
        settings = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
        self.encoder = BertModel(BertConfig(vocab_size=size, **settings))
        self.head = nn.Linear(32, 2)
        self.reads_padding = reads_padding

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = torch.ones_like(attention_mask) if self.reads_padding else attention_mask
        pooled = (outputs * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(pooled)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def pooled_trainer(folder: Path, reads_padding: bool) -> Trainer:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    rows = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(SENTENCES)]
    model = Pooled(len(tokenizer), reads_padding)
    collator = DataCollatorWithPadding(tokenizer)
    return Trainer(model, arguments(folder), collator, Dataset.from_list(rows), processing_class=tokenizer)


def test_mean_over_padding(tmp_path: Path) -> None:
    report = preflight(pooled_trainer(tmp_path, reads_padding=True), show=None)
    assert "P201" in {found.code for found in report.errors}
    find_nothing_wrong(pooled_trainer(tmp_path, reads_padding=False))


def test_losses_that_draw_at_random_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pooled_trainer(tmp_path, reads_padding=False)
    compute = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda *args, **options: compute(*args, **options) + torch.rand(()))
    report = preflight(trainer, show=None)
    assert "P201" not in report.codes and any("padding in the loss" in unseen for unseen in report.unseen)
