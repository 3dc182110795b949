"""Checks of labels and loss masks, by the kind of the trainer."""

from collections.abc import Callable

from ..report import Report
from .class_labels import check_class_labels, check_question_labels
from .masked_labels import check_masked_labels
from .pair_labels import check_pairs, check_scores, check_triplets
from .subject import TrainerSubject
from .target_labels import check_target_labels
from .token_labels import check_token_labels


def check_labels(subject: TrainerSubject, report: Report) -> None:
    """Check the labels of the first batches: that they are trained where they shall be, and nowhere else."""
    checks = _CHECKS.get(kind_of_labels(subject))
    if checks is None:
        report.cannot_see(f"labels: this preflight does not know how {type(subject.trainer).__name__} makes them")
        return
    for check in checks:
        check(subject, report)


def kind_of_labels(subject: TrainerSubject) -> str:
    """Returns the kind of the trainer; a model of an unknown class is causal if its labels are the row's tokens."""
    if subject.kind != "unknown":
        return subject.kind
    trained = [
        (token, label)
        for row in subject.rows
        for token, label, is_trained in zip(row.input_ids, row.labels or (), row.trained)
        if is_trained
    ]
    return "causal" if trained and sum(token == label for token, label in trained) > len(trained) / 2 else "unknown"


_CHECKS: dict[str, tuple[Callable[[TrainerSubject, Report], None], ...]] = {
    "causal": (check_token_labels,),
    "masked": (check_masked_labels,),
    "seq2seq": (check_target_labels,),
    "classification": (check_class_labels,),
    "choices": (check_class_labels,),
    "tokens": (check_class_labels,),
    "questions": (check_question_labels,),
    "preference": (check_pairs, check_token_labels),
    "reward": (check_pairs,),
    "embedding": (check_scores, check_triplets),
}
