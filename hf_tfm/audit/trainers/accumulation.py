"""Accumulation: one step of several batches is a step of all their rows at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..report import Report
from .batches import FEW_LAYERS
from .subject import (
    TrainerSubject,
    WithoutDropout,
    chunks,
    first_trained_place,
    group_by_form,
    has_trained_token,
    length_of,
    shorten,
    shorten_rows,
)


ROW_TOKENS = 128  # of each row whose gradients are compared
_LIBRARIES = ("transformers", "trl", "sentence_transformers")
_TOKEN_KINDS = ("causal", "masked", "seq2seq", "tokens")


class Comparison(NamedTuple):
    """The size of one gradient relative to another, and the relative size of their difference."""

    ratio: float
    difference: float


def check_accumulation(subject: TrainerSubject, report: Report) -> None:
    """
    P301, P302: steps of the trainer's own `training_step` with the same rows, divided in different ways.

    See huggingface/transformers#34191: before it, the mean of the batches' means was taken.
    """
    if subject.kind == "online" or not subject.features:
        report.cannot_see("accumulation: the trainer generates its rows while it trains")
        return
    features = varied_features(subject)
    with subject.few_layers(FEW_LAYERS), WithoutDropout():
        whole = subject.collate(features)
        parts = divide(subject, features, whole)
        first = parts[0] if parts else whole
        once = gradients_of(subject, [first])
        if not once or not all(bool(gradient.isfinite().all()) for gradient in once):
            return  # weights without a gradient are another check's
        twice = compare(gradients_of(subject, [first, first]), once)
        apart = compare(gradients_of(subject, parts), gradients_of(subject, [whole])) if parts else None
    steps = subject.args.gradient_accumulation_steps
    is_used = steps > 1 or subject.args.world_size > 1
    exact = 0.1 if subject.tolerance > 0.01 else 0.03
    if abs(twice.ratio - 1) > exact:
        what = f"two batches of the same rows give a gradient {twice.ratio:.2f} times as large as one of them"
        is_stock = has_stock_loss(subject)
        if is_used or not is_stock:
            level = "note" if not is_used else "warning" if is_stock else "error"
            report.add("P301", f"{what}; the run accumulates {steps}", level=level)
    elif apart is None:
        report.cannot_see("accumulation: the collator draws at random, so that rows cannot be divided")
    elif apart.difference > exact:
        what = f"{len(parts)} batches of {len(features)} rows give a gradient that differs by {apart.difference:.0%}"
        is_by_design = subject.kind not in _TOKEN_KINDS or balances_experts(subject)
        report.add(
            "P302", f"{what} from that of all rows at once", level=None if is_used and not is_by_design else "note"
        )


def has_stock_loss(subject: TrainerSubject) -> bool:
    """
    Whether the loss is a library's: of its trainer and its model.

    Losses of many models of transformers multiply by the accumulation steps (huggingface/transformers#47688). Adam
    hardly sees that, but clipping and the logged loss do.
    """
    owner = next(cls for cls in type(subject.trainer).__mro__ if "compute_loss" in vars(cls))
    is_own = getattr(subject.trainer, "compute_loss_func", None) is not None
    return not is_own and all(cls.__module__.split(".")[0] in _LIBRARIES for cls in (owner, type(subject.base)))


def balances_experts(subject: TrainerSubject) -> bool:
    """Whether the loss has a part that balances the experts of a batch, which is no sum over rows."""
    config = getattr(subject.base, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "output_router_logits", False))


def varied_features(subject: TrainerSubject) -> list[Any]:
    """Returns a few records, cut so that their numbers of trained tokens differ much."""
    form = group_by_form(subject.features)[0]
    trained = [feature for feature in form if has_trained_token(feature)] or form
    if subject.kind not in _TOKEN_KINDS:
        return [shorten(feature, ROW_TOKENS) for feature in sorted(trained, key=length_of)[:4]]
    trained.sort(key=lambda feature: (first_trained_place(feature), -length_of(feature)))
    # A masked LM draws the tokens that it trains, and seldom any among few.
    counts = (ROW_TOKENS // 2, ROW_TOKENS) if subject.kind == "masked" else (ROW_TOKENS // 8, ROW_TOKENS // 2)
    features = trained[: len(counts)]
    return shorten_rows(features, [first_trained_place(feature) + count for feature, count in zip(features, counts)])


def gradients_of(subject: TrainerSubject, batches: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Returns the gradients, after one step of these batches, of the weights that get one; they are set to None."""
    trainer, model = subject.trainer, subject.trainer.model
    trainer.current_gradient_accumulation_steps = len(batches)
    model.zero_grad(set_to_none=True)
    samples, count = trainer.get_batch_samples(iter([dict(batch) for batch in batches]), len(batches), subject.device)
    for sample in samples:
        trainer.training_step(model, sample, count)
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    return gradients


def compare(gradients: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> Comparison:
    """Returns the difference of a step's gradients from those of a reference step."""
    if len(gradients) != len(reference):
        return Comparison(1.0, 1.0)
    sums = [
        torch.stack([(first - second).norm(), first.norm(), second.norm()]).double().cpu() ** 2
        for first, second in zip(gradients, reference)
    ]
    difference, size, base = torch.stack(sums).sum(0).sqrt().tolist()
    return Comparison(size / max(base, 1e-30), difference / max(base, 1e-30))


def divide(subject: TrainerSubject, features: Sequence[Any], whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Returns the batches of parts of the rows: single rows, or pairs where losses compare rows with each other.

    A collator that draws at random would give other rows, so that its batch is cut; none if that is not possible.
    """
    size = 1 if subject.kind in _TOKEN_KINDS else 2
    if len(features) < 2 * size:
        size = 1
    if are_equal(subject.collate(features), whole):
        return [subject.collate(chunk) for chunk in chunks(features, size)]
    tensors = [value for value in whole.values() if isinstance(value, torch.Tensor)]
    if len(tensors) < len(whole) or any(value.dim() == 0 or len(value) != len(features) for value in tensors):
        return []
    return [
        {name: value[start : start + size] for name, value in whole.items()} for start in range(0, len(features), size)
    ]


def are_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the tensors of two batches are equal."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items() if isinstance(value, torch.Tensor)
    )
