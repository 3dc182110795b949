"""Checks of the labels of encoder-decoder models: the targets that the decoder writes."""

import torch

from ...data.batches import IGNORED
from ..report import Report
from .answer_labels import stop_ids
from .subject import TrainerSubject


def check_target_labels(subject: TrainerSubject, report: Report) -> None:
    """Check the targets: trained at all, padding left out, ended, and not seen by the decoder."""
    labels = [batch["labels"] for batch in subject.batches if isinstance(batch.get("labels"), torch.Tensor)]
    if not labels:
        report.cannot_see("labels: the batches have no labels")
        return
    targets = [[label for label in row if label != IGNORED] for values in labels for row in values.tolist()]
    empty = sum(not target for target in targets)
    if empty == len(targets):
        report.add("P101", f"none of the targets of {len(targets)} records has a trained token")
        return
    if empty:
        report.add("P109", f"{empty} of {len(targets)} targets have no trained token")
    check_target_range(subject, targets, report)
    check_target_ends(subject, [target for target in targets if target], report)
    check_decoder_inputs(subject, report)


def check_target_range(subject: TrainerSubject, targets: list[list[int]], report: Report) -> None:
    """P112: labels that the model has no outputs for."""
    size = subject.base.config.get_text_config(decoder=True).vocab_size
    outside = [label for target in targets for label in target if not 0 <= label < size]
    if outside:
        report.add(
            "P112", f"{len(outside)} labels are outside of the model's {size:,} tokens, for example {outside[0]}"
        )


def check_target_ends(subject: TrainerSubject, targets: list[list[int]], report: Report) -> None:
    """P103: padding behind targets is trained. P003: no target has the end token. P108: the longest ones lack it."""
    if subject.tokenizer is None:
        return
    pad, end = subject.tokenizer.pad_token_id, subject.tokenizer.eos_token_id
    padded = [target for target in targets if len(target) > 1 and target[-1] == pad and target[-2] in (pad, end)]
    if padded:
        report.add("P103", f"padding is trained in {len(padded)} of {len(targets)} targets")
        return
    # Behind the end token mBART writes the language.
    ends = stop_ids(subject)
    unended = [target for target in targets if not ends & set(target[-2:])]
    if not unended:
        return
    longest = max(map(len, targets))
    if len(unended) == len(targets):
        adds_end = subject.tokenizer(text_target="x")["input_ids"][-1:] == [end]
        report.add(
            "P003", f"none of {len(targets)} targets ends with the end token", level=None if adds_end else "warning"
        )
    elif all(len(target) == longest for target in unended):
        report.add(
            "P108",
            f"{len(unended)} of {len(targets)} targets end at {longest} tokens without the end token",
            mend="Raise the longest length of targets (max_target_length), or leave such records out.",
        )
    else:
        report.add("P003", f"{len(unended)} of {len(targets)} targets end without the end token", level="warning")


def check_decoder_inputs(subject: TrainerSubject, report: Report) -> None:
    """P305: the decoder reads at each place the token that it should predict there."""
    same = following = 0
    for batch in subject.batches:
        labels, inputs = batch.get("labels"), batch.get("decoder_input_ids")
        if isinstance(labels, torch.Tensor) and isinstance(inputs, torch.Tensor) and labels.shape == inputs.shape:
            trained = labels != IGNORED
            same += int((inputs == labels)[trained].sum())
            following += int((inputs[:, 1:] == labels[:, :-1])[trained[:, 1:]].sum())
    if same > 8 and same > 2 * following:
        report.add(
            "P305",
            f"decoder_input_ids are the labels at {same} places",
            mend="Give labels only, or decoder_input_ids that begin with decoder_start_token_id, one place behind.",
        )
