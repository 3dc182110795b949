"""Checks of the labels of classifiers, taggers, and models that find answers in texts."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ...data.batches import IGNORED
from ..report import Report
from .subject import TrainerSubject
from .token_labels import check_padding


FEWEST_RECORDS = 8  # fewer may have one label by chance
ORDERED_BATCHES = 8  # in the trainer's own order


def check_class_labels(subject: TrainerSubject, report: Report) -> None:
    """Check the labels of texts, of tokens, or of options."""
    labels = [batch["labels"] for batch in subject.batches if isinstance(batch.get("labels"), torch.Tensor)]
    if not labels:
        report.cannot_see("labels: the batches have no labels")
        return
    if subject.kind == "tokens":
        check_padding(subject, report)
        if not any((values != IGNORED).any() for values in labels):
            report.add("P101", f"none of the tokens in {len(subject.rows)} rows has a label")
            return
        check_tags(subject, report)
    count = subject.base.config.num_labels
    if subject.kind == "choices":
        if labels[0].dim() > 1:
            report.cannot_see("labels: each option has its own, whose meaning only the model knows")
            return
        # A batch may have more options than another.
        count = max(batch["input_ids"].shape[1] for batch in subject.batches)
    problem = getattr(subject.base.config, "problem_type", None)
    is_real = any(values.is_floating_point() for values in labels)
    if is_real and subject.kind == "classification":
        check_real_labels(labels, count, problem, report)
        return
    if count == 1 and subject.kind == "classification":
        report.add("P112", "labels are whole numbers, but the model has one output and learns a regression")
        return
    check_classes(subject, [value for values in labels for value in values.flatten().tolist()], count, report)


def check_real_labels(labels: Sequence[torch.Tensor], count: int, problem: str | None, report: Report) -> None:
    """P112, P117: labels that are real numbers are targets of a regression, or of several classes at once."""
    if problem == "single_label_classification" or (count > 1 and problem is None and labels[0].dim() == 1):
        report.add("P112", f"labels are real numbers, but the model has {count} classes")
        return
    if all(values.shape == labels[0].shape for values in labels) or labels[0].dim() == 1:
        rows = torch.cat(list(labels)).flatten(1) if labels[0].dim() > 1 else torch.cat(list(labels))[:, None]
        if len(rows) >= FEWEST_RECORDS and (rows == rows[0]).all():
            report.add("P117", f"all {len(rows)} records have the label {rows[0].tolist()}")
        if problem == "multi_label_classification" and ((rows < 0) | (rows > 1)).any():
            report.add("P112", "labels of several classes are outside of 0 to 1")


def check_classes(subject: TrainerSubject, values: Sequence[int], count: int, report: Report) -> None:
    """P112, P117, P118: the numbers of classes, how many occur, their order, and their names."""
    counts = Counter(value for value in values if value != IGNORED)
    outside = sorted(value for value in counts if not 0 <= value < count)
    if outside:
        report.add(
            "P112",
            f"labels {', '.join(map(str, outside[:5]))} are outside of 0 to {count - 1} "
            f"({sum(counts[value] for value in outside)} of {counts.total()})",
        )
    if len(counts) == 1 and len(subject.features) >= FEWEST_RECORDS:
        label = next(iter(counts))
        name = (getattr(subject.base.config, "id2label", None) or {}).get(label, label)
        report.add("P117", f"all {counts.total():,} labels of {len(subject.features)} records are {name!r}")
    elif subject.kind == "classification" and len(counts) > 1:
        check_order(subject, counts, report)
    check_names(subject, report)


def check_order(subject: TrainerSubject, counts: Counter[int], report: Report) -> None:
    """P117: the trainer's first batches have one label only, because the records are sorted and not shuffled."""
    sampler, dataset = getattr(subject.loader, "batch_sampler", None), subject.loader.dataset
    if sampler is None or not hasattr(dataset, "__getitem__"):
        return
    places = [place for batch in itertools.islice(sampler, ORDERED_BATCHES) for place in batch]
    records = [record for place in places if isinstance(record := dataset[place], dict)]
    labels = [record.get("label", record.get("labels")) for record in records]
    run = len(list(itertools.takewhile(lambda label: label == labels[0], labels)))
    most_frequent = counts.most_common(1)[0][1] / counts.total()
    if most_frequent**run < 1e-5:
        report.add("P117", f"the first {run} records that the trainer draws have the label {labels[0]}")


def check_tags(subject: TrainerSubject, report: Report) -> None:
    """P107: special tokens have tags and last words have none, so that tags stand at other tokens than their words."""
    special = set(subject.tokenizer.all_special_ids) if subject.tokenizer is not None else set()
    shifted = [
        row
        for row in subject.rows
        if len(row.input_ids) > 2
        and row.input_ids[0] in special
        and row.trained[:1] == [True]
        and IGNORED in [label for token, label in zip(row.input_ids, row.labels or ()) if token not in special]
    ]
    if subject.rows and len(shifted) > 0.8 * len(subject.rows):
        report.add(
            "P107",
            f"in {len(shifted)} of {len(subject.rows)} rows the first special token has a tag, and words have none",
            shifted[0].where,
            why="The tags stand at other tokens than their words.",
            mend="Align tags by word_ids() of the tokenizer, with -100 at special tokens.",
        )


def check_names(subject: TrainerSubject, report: Report) -> None:
    """P118: names of the dataset's classes against the model's, in their order."""
    names = names_of_classes(getattr(subject.trainer, "train_dataset", None))
    known = getattr(subject.base.config, "id2label", None) or {}
    if names is None:
        return
    model = [str(known.get(number, "")) for number in range(len(known))]
    if [name.lower() for name in names] == [name.lower() for name in model]:
        return
    is_default = all(name == f"LABEL_{number}" for number, name in enumerate(model))
    report.add(
        "P118",
        f"the dataset's classes are {', '.join(names[:6])}, the model's {', '.join(model[:6])}",
        level="note" if is_default else "warning",
    )


def names_of_classes(dataset: Any) -> list[str] | None:
    """Returns the names of the classes of a dataset's column of labels or tags; None if it has none."""
    for name, feature in (getattr(dataset, "features", None) or {}).items():
        feature = getattr(feature, "feature", feature)
        if name in ("label", "labels") or name.endswith("tags"):
            if names := getattr(feature, "names", None):
                return list(names)
    return None


def check_question_labels(subject: TrainerSubject, report: Report) -> None:
    """P112, P117: the places of answers in texts."""
    starts, ends, lengths = [], [], []
    for batch in subject.batches:
        start, end = batch.get("start_positions"), batch.get("end_positions")
        if not isinstance(start, torch.Tensor) or not isinstance(end, torch.Tensor):
            report.cannot_see("labels: the batches hold no places of answers")
            return
        starts += start.flatten().tolist()
        ends += end.flatten().tolist()
        lengths += batch["attention_mask"].sum(1).tolist()
    outside = sum(not 0 <= one < length or not 0 <= other < length for one, other, length in zip(starts, ends, lengths))
    reversed_ = sum(one > other for one, other in zip(starts, ends))
    if outside:
        report.add(
            "P112",
            f"{outside} of {len(starts)} answers lie outside of their row",
            why="transformers leaves them out of the loss, or they point at padding.",
            level=None if outside > 0.05 * len(starts) else "warning",
        )
    if reversed_:
        report.add("P112", f"{reversed_} of {len(starts)} answers end before they start")
    check_one_place(zip(starts, ends), report)


def check_one_place(places: Iterable[tuple[int, int]], report: Report) -> None:
    """P117: all answers are at the same place, usually the first token, which means that no answer exists."""
    counts = Counter(places)
    if len(counts) == 1 and counts.total() >= FEWEST_RECORDS:
        report.add("P117", f"all {counts.total()} answers stand at tokens {next(iter(counts))}")
