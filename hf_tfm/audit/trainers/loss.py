"""The loss: its size at the start, the places whose outputs it reads, and what it depends on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...core.errors import reason_of
from ..report import Report
from .batches import FEW_LAYERS
from .chance import check_against_chance
from .loss_references import matching_reference, token_losses
from .probe import body_of, catch_call, computing
from .subject import (
    HALF_TOLERANCE,
    IGNORED,
    TrainerSubject,
    WithoutDropout,
    first_trained_place,
    length_of,
    shorten_rows,
)


LOSS_TOKENS = 256  # computed with all layers
TRAINED_TOKENS = 48  # of each of two rows, computed with few layers
_TOKEN_KINDS = ("causal", "masked", "seq2seq", "tokens")


def check_first_loss(subject: TrainerSubject, report: Report) -> None:
    """P303 to P311, P106: the trainer's own loss of a few rows and of changed rows."""
    if subject.kind == "online" or not subject.short_features:
        report.cannot_see("the first loss: the trainer generates its rows while it trains")
        return
    batch = subject.collate(few_tokens(subject.short_features, LOSS_TOKENS))
    with subject.few_layers() as depth:
        first = loss_in_training(subject, batch, report)
    if first is None:
        return
    report.facts["first loss"] = round(first, 4)
    if not math.isfinite(first):
        report.add("P303", f"the loss of the first rows is {first}")
        return
    check_reference_model(subject, first, depth, report)
    short = subject.short_features[:2]
    few = subject.collate(shorten_rows(short, [first_trained_place(feature) + TRAINED_TOKENS for feature in short]))
    with subject.few_layers(FEW_LAYERS):
        check_dependence(subject, few, report)
        if not has_token_labels(subject, few):
            return
        shift = check_alignment(subject, few, report)
        check_later_tokens(subject, few, report)
        is_mean = check_mean(subject, few, shift, report)
    check_against_chance(subject, batch, first if is_mean else None, depth, report)


def few_tokens(features: Sequence[Any], most: int) -> list[Any]:
    """Returns the first records with together at most this number of tokens, but at least one."""
    records, count = [], 0
    for feature in features:
        count += length_of(feature)
        if records and count > most:
            break
        records.append(feature)
    return records


def loss_in_training(subject: TrainerSubject, batch: Mapping[str, Any], report: Report) -> float | None:
    """Returns the loss of a batch in a step of its own, without dropout; None, with P200, if it cannot be computed."""
    try:
        return loss_of_step(subject, batch)
    except Exception as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
    try:  # a record that was cut may lack a part that the model needs
        loss_of_step(subject, subject.batches[0])
    except Exception as error:
        report.add("P200", f"the loss fails: {type(error).__name__}: {reason_of(error)}")
    else:
        report.cannot_see(f"the first loss of shortened rows: {reason}")
    return None


@torch.no_grad()
def loss_of_step(subject: TrainerSubject, batch: Mapping[str, Any]) -> float:
    """Returns the loss of a batch as a training step of this batch alone computes it, without dropout."""
    samples, count = subject.trainer.get_batch_samples(iter([dict(batch)]), 1, subject.device)
    with WithoutDropout():
        return float(subject.loss(samples[0], count, train=True).mean())


def has_token_labels(subject: TrainerSubject, batch: Mapping[str, Any]) -> bool:
    """Whether the batch has a label for each token, of a model that predicts tokens."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if not isinstance(ids, torch.Tensor) or not isinstance(labels, torch.Tensor) or ids.dim() != 2:
        return False
    return labels.dim() == 2 and not labels.is_floating_point() and subject.kind in _TOKEN_KINDS


def check_reference_model(subject: TrainerSubject, first: float, depth: int, report: Report) -> None:
    """P311: the first loss of DPO is ln 2 if the reference equals the policy."""
    args = subject.args
    kinds = getattr(args, "loss_type", None)
    is_plain = kinds in ("sigmoid", ["sigmoid"]) and not getattr(args, "use_weighting", False)
    is_dpo = any(cls.__name__ == "DPOTrainer" for cls in type(subject.trainer).__mro__)
    if not is_dpo or not is_plain or subject.depth is not None:
        return
    if abs(first - math.log(2)) > (0.05 if subject.tolerance == HALF_TOLERANCE else 5e-3):
        report.add("P311", f"the first DPO loss is {first:.3f} instead of ln 2 = 0.693")


def check_dependence(subject: TrainerSubject, batch: Mapping[str, Any], report: Report) -> None:
    """P306: the loss does not change with the labels."""
    name = next((name for name in ("labels", "label") if isinstance(batch.get(name), torch.Tensor)), None)
    if name is None or subject.kind in ("embedding", "preference", "reward"):
        return
    labels = batch[name]
    if not bool((labels.flatten(1)[:, 1:] if labels.dim() > 1 else labels).ne(IGNORED).any()):
        return
    if labels.is_floating_point():
        changed = labels.flip(0) + 0.5
    else:
        changed = torch.where(labels == IGNORED, labels, (labels + 1) % max(2, number_of_classes(subject)))
    losses = [loss_of_step(subject, {**batch, name: values}) for values in (labels, changed)]
    if losses[0] == losses[1]:
        report.add("P306", f"other {name} give the same loss of {losses[0]:.4f}")


def number_of_classes(subject: TrainerSubject) -> int:
    """Returns the number of tokens, or of classes, that the model chooses from."""
    config = getattr(subject.base, "config", None)
    if config is None:
        return 2
    if subject.kind in ("causal", "masked", "seq2seq"):
        return int(config.get_text_config().vocab_size)
    return int(getattr(config, "num_labels", 2))


def offset_of_labels(ids: torch.Tensor, labels: torch.Tensor) -> int | None:
    """Returns how many places behind its label a token stands in the rows; None if labels are not these tokens."""
    shares = {}
    for offset in (0, 1, 2):
        length = ids.shape[1] - offset
        targets, tokens = labels[:, :length], ids[:, offset:]
        trained = targets != IGNORED
        shares[offset] = float((targets == tokens)[trained].float().mean()) if bool(trained.any()) else 0.0
    best = max(shares, key=lambda offset: (shares[offset], -offset))
    return best if shares[best] > 0.9 else None


def check_alignment(subject: TrainerSubject, batch: Mapping[str, Any], report: Report) -> int | None:
    """
    P304, P106: the loss of a label reads the output at the place before its token (causal), or at its own (masked).

    The place is where the gradient changes with the label, so that this holds for any loss: with smoothing, in chunks,
    or of the user's own.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    if subject.kind not in ("causal", "masked", "tokens") or labels.shape != ids.shape:
        return None
    offset = offset_of_labels(ids, labels) if subject.kind == "causal" else 0
    trained = (labels[:, 3:-3] != IGNORED).nonzero()
    if offset is None or not len(trained):
        return None
    row, place = trained[len(trained) // 2].tolist()
    place += 3
    places = places_that_a_label_changes(subject, batch, row, place)
    if not places:
        return None
    token, expected = place + offset, int(subject.kind == "causal")
    distances = [token - read for read in places]
    if expected in distances:
        return expected - offset
    where, distance = f"row {row + 1}, token {token + 1}", min(distances, key=abs)
    if expected and distance > 1:
        report.add("P106", f"an output is compared with the token {distance} places behind it", where)
    elif expected and distance == 0:
        report.add("P304", "an output is compared with the token that it reads", where)
    else:
        report.add("P304", f"a label is compared with the output {abs(distance)} places beside its token", where)
    return distance - offset


def places_that_a_label_changes(
    subject: TrainerSubject, batch: Mapping[str, Any], row: int, place: int
) -> list[int] | None:
    """Returns the places of the row whose output gets another gradient if the only label of the batch changes."""
    gradients = []
    for change in (1, 2):
        labels = torch.full_like(batch["labels"], IGNORED)
        labels[row, place] = (batch["labels"][row, place] + change) % number_of_classes(subject)
        gradient = gradient_of_outputs(subject, {**batch, "labels": labels})
        if gradient is None:
            return None
        gradients.append(gradient[row])
    difference = (gradients[0] - gradients[1]).norm(dim=-1)
    return (difference > 0.1 * difference.max()).nonzero().flatten().tolist() if float(difference.max()) else []


def gradient_of_outputs(subject: TrainerSubject, batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Returns the gradient of the loss at the body's outputs (rows, length, size); None if they cannot be caught."""
    outputs: list[torch.Tensor] = []

    def replace_outputs(module: nn.Module, args: Any, result: Any) -> Any:
        if outputs or "last_hidden_state" not in result or result["last_hidden_state"].dim() != 3:
            return result
        outputs.append(result["last_hidden_state"].detach().requires_grad_())
        result["last_hidden_state"] = outputs[0]
        return result

    samples, count = subject.trainer.get_batch_samples(iter([dict(batch)]), 1, subject.device)
    handle = body_of(subject.base).register_forward_hook(replace_outputs)
    try:
        with WithoutDropout():
            loss = subject.loss(samples[0], count, train=True)
    finally:
        handle.remove()
    if not outputs or outputs[0].shape[:2] != batch["input_ids"].shape or not loss.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(loss.mean(), outputs, allow_unused=True)
    return gradient


def check_later_tokens(subject: TrainerSubject, batch: Mapping[str, Any], report: Report) -> None:
    """P305: outputs before a token change with this token or with later tokens."""
    if (
        subject.kind != "causal"
        or subject.learns_prompt
        or (call := catch_call(subject, batch, body_of(subject.base))) is None
    ):
        return
    labels = batch["labels"]
    if labels.shape != call.ids.shape:
        return
    ids, compared = call.ids.clone(), []
    for row, values in enumerate(labels):
        trained = (values[1:] != IGNORED).nonzero().flatten() + 1
        if len(trained):
            middle = int(trained[len(trained) // 2])
            ids[row, middle:] = ids[row, middle:].flip(0)
            compared.append((row, trained[trained <= middle] - 1, middle))
    with computing(subject):
        outputs = call.compute().float(), call.with_ids(ids).compute().float()
    tolerance = subject.tolerance / 10  # the shapes are the same, so that even half precision computes almost the same
    for row, places, middle in compared:
        one, other = outputs[0][row, places], outputs[1][row, places]
        if (
            not torch.equal(ids[row], call.ids[row])
            and (difference := (one - other).norm(dim=-1).max() / one.norm(dim=-1).mean()) > tolerance
        ):
            what = f"outputs change by {float(difference):.0%} of their size with the tokens that come behind them"
            report.add("P305", what, f"row {row + 1}, tokens before {middle + 1}")
            return


def check_mean(subject: TrainerSubject, batch: Mapping[str, Any], shift: int | None, report: Report) -> bool:
    """
    P307: returns whether the loss is the mean over trained tokens, and tells what it is if not.

    Without a known shift, P304 and P106 where the loss is the mean of labels that are shifted otherwise.
    """
    value = loss_of_step(subject, batch)
    losses = token_losses(subject, batch)
    if losses is None:
        return False
    usual = int(subject.kind == "causal") if shift is None else shift
    if usual not in losses.shifts:
        return False
    name, level = matching_reference(value, losses, subject.args.gradient_accumulation_steps, usual, shift is not None)
    if level in ("warning", "note"):
        report.add("P307", f"the loss of {value:.4f} is {name}", level=level)
    elif level == "twice":
        report.add("P106", f"the loss of {value:.4f} is {name}")
    elif level == "none":
        report.add("P304", f"the loss of {value:.4f} is {name}")
    elif level is None:
        report.cannot_see("the size of the loss: it is not a usual mean of the cross-entropy")
    return level == "right"
