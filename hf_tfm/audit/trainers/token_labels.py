"""Checks of the labels of causal language models: whether they are the row's tokens, and which are trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...data.batches import IGNORED
from ..report import Report
from .answer_labels import check_answers
from .rows import Document, Row
from .subject import TrainerSubject


SMALL_SHARE = 0.05  # of the tokens; a smaller trained share is noted


def check_token_labels(subject: TrainerSubject, report: Report) -> None:
    """Check the labels of rows of tokens, whatever the rows say."""
    if not subject.rows:
        report.cannot_see("labels: the batches have no rows of tokens")
        return
    documents = [document for document in subject.documents if document.labels is not None]
    if not documents:
        report.cannot_see("labels: the batches have no label for each token")
        return
    check_range(subject, report)
    check_padding(subject, report)
    check_trained_share(documents, subject.rows, report)
    check_overwritten_labels(subject, report)
    trained = [document for document in documents if any(document.trained)]
    if trained and check_tokens(subject, trained, report):
        check_answers(subject, trained, report)


def check_range(subject: TrainerSubject, report: Report) -> None:
    """P112: labels that the model has no outputs for."""
    head = subject.base.get_output_embeddings()
    size = head.weight.shape[0] if isinstance(getattr(head, "weight", None), torch.Tensor) else 0
    size = size or subject.base.config.get_text_config().vocab_size
    outside = [
        (row, label) for row in subject.rows for label in row.labels or () if label != IGNORED and not 0 <= label < size
    ]
    if outside:
        row, label = outside[0]
        report.add(
            "P112", f"{len(outside)} labels are outside of the model's {size:,} tokens, for example {label}", row.where
        )


def check_padding(subject: TrainerSubject, report: Report) -> None:
    """P103: labels of padding, by the attention mask and, without one, by a run of padding at an end of the row."""
    tokenizer = subject.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        pad = getattr(subject.base.config.get_text_config(), "pad_token_id", None)
    is_end = tokenizer is not None and pad == tokenizer.eos_token_id
    counts = [(row, trained_padding(row, pad, is_end)) for row in subject.rows]
    wrong = [(row, count) for row, count in counts if count]
    if wrong:
        tokens = sum(count for _, count in wrong)
        report.add(
            "P103", f"{tokens} tokens of padding are trained in {len(wrong)} of {len(counts)} rows", wrong[0][0].where
        )


def trained_padding(row: Row, pad: int | None, is_end: bool) -> int:
    """Returns the number of a row's trained tokens of padding. A single last one may be the end of the text."""
    hidden = sum(label != IGNORED for label in row.padding_labels)
    if hidden or pad is None or row.labels is None:
        return hidden
    counts = []
    for ids, labels in ((row.input_ids, row.labels), (row.input_ids[::-1], row.labels[::-1])):
        run = next((place for place, token in enumerate(reversed(ids)) if token != pad), 0)
        counts.append(sum(label != IGNORED for label in labels[len(labels) - run + is_end :]) if run > 1 else 0)
    return max(counts)


def check_trained_share(documents: Sequence[Document], rows: Sequence[Row], report: Report) -> None:
    """P101, P109, P116: rows without a trained token, and the share of trained tokens."""
    trained: dict[int, int] = {}
    for document in documents:
        trained[id(document.row)] = trained.get(id(document.row), 0) + sum(document.trained)
    empty = [row for row in rows if row.labels is not None and not trained.get(id(row))]
    tokens = sum(len(row.input_ids) for row in rows)
    share = sum(trained.values()) / max(1, tokens)
    if len(empty) == len(rows):
        report.add("P101", f"none of {tokens:,} tokens in {len(rows)} rows is trained")
    elif empty:
        report.add("P109", f"{len(empty)} of {len(rows)} rows have no trained token", empty[0].where)
    if 0 < share < SMALL_SHARE:
        report.add("P116", f"{share:.1%} of {tokens:,} tokens are trained")


def check_overwritten_labels(subject: TrainerSubject, report: Report) -> None:
    """P102: the collator trains tokens that the labels or masks of the records exclude."""
    masks: dict[tuple[int, ...], list[bool]] = {}
    for feature in subject.features:
        mask = mask_of_record(feature, subject.trainer) if isinstance(feature, Mapping) else None
        if mask is not None:
            ids = tuple(map(int, feature["input_ids"]))
            masks[ids] = [any(pair) for pair in zip(mask, masks.get(ids, mask))]
    wrong, seen = [], 0
    for row in subject.rows:
        mask = masks.get(tuple(row.input_ids))
        if mask is None or row.labels is None or all(mask[1:]):
            continue
        seen += 1
        count = sum(is_trained and not is_meant for is_trained, is_meant in zip(row.trained[1:], mask[1:]))
        if count:
            wrong.append((row, count))
    if wrong:
        row, count = wrong[0]
        report.add(
            "P102",
            f"in {len(wrong)} of {seen} rows the collator trains tokens that the records leave out",
            f"{row.where}: {count} tokens",
        )


def mask_of_record(feature: Mapping[str, Any], trainer: Any) -> list[bool] | None:
    """Returns which tokens a record wants to be trained, by its labels or masks; None if it does not say."""
    ids = feature.get("input_ids")
    if ids is None or not hasattr(ids, "__len__") or not len(ids) or hasattr(ids[0], "__len__"):
        return None
    labels = feature.get("labels")
    if labels is not None and hasattr(labels, "__len__") and len(labels) == len(ids):
        return [int(label) != IGNORED for label in labels]
    names = ["assistant_masks"]
    if getattr(trainer, "completion_only_loss", True):
        names.append("completion_mask")
    for name in names:
        mask = feature.get(name)
        if mask is not None and hasattr(mask, "__len__") and len(mask) == len(ids):
            return [bool(one) for one in mask]
    return None


def check_tokens(subject: TrainerSubject, documents: Sequence[Document], report: Report) -> bool:
    """P106, P107: labels against the tokens at their places and at the next ones. Returns whether they stand there."""
    same = following = informative = trained = different = 0
    first: tuple[Document, int] | None = None
    inputs: dict[int, int] = {}
    for document in documents:
        ids, labels = document.input_ids, document.labels or []
        for place, is_trained in enumerate(document.trained):
            if not is_trained:
                continue
            trained += 1
            if ids[place] != labels[place]:
                different += 1
                first = first or (document, place)
                inputs[ids[place]] = inputs.get(ids[place], 0) + 1
            if place + 1 < len(ids) and ids[place] != ids[place + 1]:
                informative += 1
                same += labels[place] == ids[place]
                following += labels[place] == ids[place + 1]
    if first is None:
        return True
    if informative >= 8 and following > 0.9 * informative and same < 0.1 * informative:
        if reads_first_label(subject):
            report.cannot_see("the trained parts of answers: labels are one place ahead, as the trainer wants")
        else:
            report.add("P106", f"{following} of {informative} labels are the next token of the row", first[0].where)
        return False
    share = different / trained
    if max(inputs.values()) > 0.9 * different and different > 8:
        report.cannot_see("labels against tokens: the inputs are masked where they differ from the labels")
        return True
    level = "error" if share > 0.5 else "warning" if share > 0.02 else "note"
    document, place = first
    report.add(
        "P107",
        f"{different} of {trained} trained labels are not the token at their place",
        f"{document.where}, token {place}: {describe(subject, document.input_ids[place])} has the label "
        f"{describe(subject, (document.labels or [])[place])}",
        level=level,
    )
    return True


def describe(subject: TrainerSubject, token: int) -> str:
    """Returns a token as text if the tokenizer knows it, or its id."""
    tokenizer = subject.tokenizer
    if tokenizer is None or not 0 <= token < len(tokenizer):
        return str(token)
    return repr(tokenizer.decode([token]))


def reads_first_label(subject: TrainerSubject) -> bool:
    """
    Whether the trainer's loss depends on the label of the first token: one that shifts labels itself leaves it out.
    """
    batch = subject.collate(subject.short_features[:2])
    labels = batch["labels"].clone()
    lowest = labels[labels != IGNORED].min()
    changed = labels.clone()
    labels[:, 0], changed[:, 0] = lowest, lowest + 1
    with subject.few_layers(2), torch.no_grad():
        loss, changed_loss = (subject.loss({**batch, "labels": values}).item() for values in (labels, changed))
    return abs(loss - changed_loss) > 1e-6 * max(1.0, abs(loss))
