"""Checks of pairs of chosen and rejected answers, and of scores of pairs of texts."""

from collections.abc import Mapping
from typing import Any

import torch

from ..report import Report
from ..templates.turns import TurnFinder
from .class_labels import FEWEST_RECORDS
from .subject import TrainerSubject


# Scores that losses of sentence-transformers can reach: huggingface/sentence-transformers#1095.
SCORES = {
    "CosineSimilarityLoss": (-1, 1),
    "ContrastiveLoss": (0, 1),
    "OnlineContrastiveLoss": (0, 1),
    "BinaryCrossEntropyLoss": (0, 1),
}


def check_pairs(subject: TrainerSubject, report: Report) -> None:
    """P113: both answers are equal. P114: both are cut off. P117: all answers of KTO have the same label."""
    pairs = read_pairs(subject)
    if not pairs:
        check_wanted(subject, report)
        return
    equal = [number for number, (chosen, rejected) in enumerate(pairs) if chosen == rejected]
    if equal:
        report.add(
            "P113",
            f"{len(equal)} of {len(pairs)} pairs have equal chosen and rejected tokens",
            f"pair {equal[0] + 1}",
            level="error" if len(equal) > len(pairs) / 2 else None,
        )
    lengths = [length for feature in subject.features for length in lengths_of_record(feature)]
    longest = max(len(ids) for pair in pairs for ids in pair)
    limit = getattr(subject.args, "max_length", None)
    cut = [number for number, pair in enumerate(pairs) if all(len(ids) == longest for ids in pair)]
    if cut and (longest == limit or (lengths and max(lengths) > longest)) and len(cut) > 0.01 * len(pairs):
        report.add(
            "P114",
            f"in {len(cut)} of {len(pairs)} pairs both answers are cut at {longest} tokens",
            f"pair {cut[0] + 1}",
        )
    check_shared_prompt(subject, pairs, report)


def read_pairs(subject: TrainerSubject) -> list[tuple[list[int], list[int]]]:
    """Returns tokens of chosen and rejected rows: the first and the second half of each batch, as TRL makes them."""
    pairs = []
    for chunk, batch in zip(subject.batches, rows_of_batches(subject)):
        half = len(batch) // 2
        if "completion_mask" in chunk or subject.kind == "reward":
            pairs += list(zip(batch[:half], batch[half:]))
    return pairs if any("chosen_ids" in feature for feature in subject.features if isinstance(feature, Mapping)) else []


def rows_of_batches(subject: TrainerSubject) -> list[list[list[int]]]:
    """Returns the tokens of the rows of each batch."""
    rows = iter(subject.rows)
    sizes = [len(ids) if isinstance(ids := batch.get("input_ids"), torch.Tensor) else 0 for batch in subject.batches]
    return [[next(rows).input_ids for _ in range(size)] for size in sizes]


def lengths_of_record(feature: Any) -> list[int]:
    """Returns how many tokens both rows of a record have before the collator cuts them."""
    if not isinstance(feature, Mapping) or "chosen_ids" not in feature:
        return []
    prompt = len(feature.get("prompt_ids", ()))
    return [prompt + len(feature[name]) for name in ("chosen_ids", "rejected_ids")]


def check_shared_prompt(subject: TrainerSubject, pairs: list[tuple[list[int], list[int]]], report: Report) -> None:
    """P119: the questions before a chosen and a rejected answer differ."""
    if subject.finder is None:
        return
    prompts = [tuple(first_question(subject.finder, ids) for ids in pair) for pair in pairs]
    different = [number for number, (chosen, rejected) in enumerate(prompts) if chosen != rejected]
    if len(different) > 0.1 * len(pairs):
        what = f"in {len(different)} of {len(pairs)} pairs the questions differ"
        report.add("P119", what, f"pair {different[0] + 1}")


def first_question(finder: TurnFinder, ids: list[int]) -> list[int]:
    """Returns the tokens of a conversation's first user turn."""
    turns = [turn for turn in finder.find(ids) if turn.role == "user"]
    return ids[turns[0].content_start : turns[0].content_end] if turns else []


def check_wanted(subject: TrainerSubject, report: Report) -> None:
    """P117: all answers of a data set for KTO are desirable, or all are undesirable."""
    wanted = [feature["label"] for feature in subject.features if isinstance(feature, Mapping) and "label" in feature]
    if not wanted:
        report.cannot_see("labels: the records are not pairs of chosen and rejected answers")
    elif len(wanted) >= FEWEST_RECORDS and len(set(map(bool, wanted))) == 1:
        report.add("P117", f"all {len(wanted)} answers have the label {wanted[0]}")


def check_scores(subject: TrainerSubject, report: Report) -> None:
    """P117: all pairs of texts have the same score. P112: scores that are not finite, or that no output can reach."""
    labels = [batch["label"].float() for batch in subject.batches if isinstance(batch.get("label"), torch.Tensor)]
    if not labels:
        return
    rows = torch.cat([values.reshape(len(values), -1) for values in labels])
    if not rows.isfinite().all():
        report.add("P112", f"{int((~rows.isfinite()).sum())} of {rows.numel()} scores are not finite")
    if len(rows) >= FEWEST_RECORDS and (rows == rows[0]).all():
        report.add("P117", f"all {len(rows)} records have the label {rows[0].tolist()}", level="warning")
    names = {cls.__name__ for cls in type(getattr(subject.trainer, "loss", None)).__mro__}
    for name in names & SCORES.keys():
        low, high = SCORES[name]
        if beyond := int(((rows < low) | (rows > high)).sum()):
            report.add(
                "P112",
                f"{beyond} of {rows.numel()} scores are not between {low} and {high}, as {name} requires",
                f"up to {rows.max().item():g}",
                why="The model cannot give them, and pushes all pairs to one end.",
                mend="Divide the scores by their largest value.",
            )


def check_triplets(subject: TrainerSubject, report: Report) -> None:
    """P113: a text is both positive and negative for the same anchor: columns are anchor, positive, negatives."""
    triplets = [
        texts
        for feature in subject.features
        if isinstance(feature, Mapping)
        and len(texts := [value for value in feature.values() if isinstance(value, str)]) > 2
    ]
    equal = [number for number, (_, positive, *negatives) in enumerate(triplets) if positive in negatives]
    if equal:
        report.add(
            "P113",
            f"{len(equal)} of {len(triplets)} records have the positive text among the negative ones",
            f"record {equal[0] + 1}",
            level="error" if len(equal) > len(triplets) / 2 else None,
            mend="See how the columns are filled.",
        )
