"""Checks of the labels of masked language models."""

from collections.abc import Mapping
from typing import Any

import torch

from ...data.batches import IGNORED
from ..report import Report
from .subject import TrainerSubject
from .token_labels import check_padding, check_range


FEWEST_TOKENS = 60  # of text; fewer say nothing about a share
LARGEST_SHARE = 0.6  # of the tokens that may be masked


def check_masked_labels(subject: TrainerSubject, report: Report) -> None:
    """P111: the masked tokens, their share and their replacements. P107: labels that are not the original tokens."""
    rows = [row for row in subject.rows if row.labels is not None]
    if not rows:
        report.cannot_see("labels: the batches have no label for each token")
        return
    if any(hides_later_tokens(batch.get("attention_mask")) for batch in subject.batches):
        report.cannot_see("masked tokens: the first batches predict the next token, with the later ones hidden")
        return
    if {label for row in rows for label in row.labels or ()} - {IGNORED} == {0, 1}:
        report.cannot_see("labels: they mark replaced tokens, as in ELECTRA's pretraining")
        return
    check_range(subject, report)
    check_padding(subject, report)
    tokenizer = subject.tokenizer
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    mask = getattr(tokenizer, "mask_token_id", None)
    places = [
        (token, label) for row in rows for token, label in zip(row.input_ids, row.labels or ()) if label != IGNORED
    ]
    text = sum(token not in special or token == mask for row in rows for token in row.input_ids)
    if text < FEWEST_TOKENS:
        report.cannot_see(f"the share of masked tokens: the first rows have only {text} tokens")
        return
    if not places:
        report.add("P111", f"none of {text:,} tokens is masked")
        return
    equal = sum(token == label for token, label in places)
    masks = sum(token == mask for token, _ in places)
    if all(label in special for _, label in places):
        report.add("P111", f"all {len(places)} masked tokens are special tokens")
    elif equal > len(places) / 2:
        report.add(
            "P111",
            f"{equal:,} of {len(places):,} labels are of tokens that the model can see",
            why="The model learns to copy its input.",
            mend="Let labels be -100 except at masked tokens; use DataCollatorForLanguageModeling with mlm=True.",
        )
    elif mask is not None and not masks:
        report.add("P111", f"none of {len(places)} trained places is the mask token", repr(tokenizer.mask_token))
    elif len(places) > LARGEST_SHARE * text:
        report.add("P111", f"{len(places):,} of {text:,} tokens are masked", level="warning")
    check_originals(subject, report)


def hides_later_tokens(mask: Any) -> bool:
    """Returns whether a mask of shape (rows, 1, length, length), True for visible tokens, hides all later ones."""
    return isinstance(mask, torch.Tensor) and mask.dim() == 4 and not mask.triu(1).any()


def check_originals(subject: TrainerSubject, report: Report) -> None:
    """P107: the labels are not the tokens that the records have at the masked places."""
    originals = {
        tuple(int(token) for token in feature["input_ids"])
        for feature in subject.features
        if isinstance(feature, Mapping) and "input_ids" in feature and "labels" not in feature
    }
    lengths = {len(original) for original in originals}
    rows = [
        [token if label == IGNORED else label for token, label in zip(row.input_ids, row.labels or ())]
        for row in subject.rows
        if len(row.input_ids) in lengths and any(row.trained)
    ]
    wrong = sum(tuple(row) not in originals for row in rows)
    if wrong > len(rows) / 2:
        report.add("P107", f"in {wrong} of {len(rows)} rows the labels are not the tokens that were masked")
