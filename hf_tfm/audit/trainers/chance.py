"""The first loss against chance: trained models know better, and new ones cannot."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..report import Report
from .loss_references import token_losses
from .probe import body_of, computing
from .subject import IGNORED, TrainerSubject


# Trained weights spread: those of norms around their mean, and rows of matrices in their lengths, where random rows
# are of almost equal length. New norms are constant.
TRAINED_NORMS = 0.05
TRAINED_ROWS = 2.0
_PLAIN_TEXT = "The cat sat on the mat. It was a sunny day, and the children were playing in the garden."


def norm_weights(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """Returns the weights of those modules that are norms, in fp32."""
    weights = [getattr(module, "weight", None) for module in modules if "Norm" in type(module).__name__]
    return [
        weight.detach().float()
        for weight in weights
        if isinstance(weight, torch.Tensor) and weight.dim() == 1 and len(weight) > 1
    ]


def spread_of_norms(model: nn.Module) -> float | None:
    """Returns the mean relative deviation in the weights of a model's norms; None if it has none."""
    spreads = [float(weight.std() / weight.abs().mean().clamp(min=1e-6)) for weight in norm_weights(model.modules())]
    return sum(spreads) / len(spreads) if spreads else None


def has_new_head(model: nn.Module) -> bool:
    """Returns whether the norms outside of a model's body are constant, as in a head without trained weights."""
    norms = norm_weights(set(model.modules()) - set(body_of(model).modules()))
    return bool(norms) and not any(weight.std() for weight in norms)


def spread_of_rows(model: nn.Module) -> float:
    """Returns the deviation in the lengths of rows, relative to that of random matrices, in the median matrix."""
    matrices = [weight.detach() for weight in model.parameters() if weight.dim() == 2 and min(weight.shape) > 8]
    sampled = matrices[:: max(1, len(matrices) // 16)]
    lengths = [(weight.float().norm(dim=1), weight.shape[1]) for weight in sampled]
    ratios = [float(length.std() / length.mean()) * math.sqrt(2 * size) for length, size in lengths]
    return statistics.median(ratios) if ratios else 0.0


def check_against_chance(
    subject: TrainerSubject, batch: Mapping[str, Any], first: float | None, depth: int, report: Report
) -> None:
    """
    P308, P309, P310: the first loss of a model of tokens against ln(vocabulary).

    Args:
        first: Mean loss over the trained tokens; computed here if the trainer's loss is another.
        depth: Number of layers that it was computed with.
    """
    spread = spread_of_norms(subject.base)
    if subject.kind not in ("causal", "masked", "seq2seq") or spread is None:
        return
    if subject.depth is not None:
        report.cannot_see(f"the first loss against chance: it is computed with {depth} layers")
        return
    if first is None:
        losses = token_losses(subject, batch)
        if losses is None:
            return
        first = float(torch.cat(losses.shifts[int(subject.kind == "causal")]).mean())
    vocabulary = int(subject.base.config.get_text_config().vocab_size)
    chance = math.log(vocabulary)
    report.facts["chance"] = round(chance, 4)
    figures = f"{first:.2f}, and chance is ln {vocabulary:,} = {chance:.2f}"
    is_trained = spread > TRAINED_NORMS and spread_of_rows(subject.base) > TRAINED_ROWS
    if is_trained and has_new_head(subject.base):
        report.cannot_see("the first loss against chance: the head is new")
    elif is_trained and first >= 0.95 * chance:
        is_lost = loss_of_plain_text(subject) >= 0.95 * chance
        what = f"the first loss of trained weights is {figures}"
        report.add("P308", what, level="error" if is_lost else "warning")
    elif first > 1.5 * chance:
        # With tied embeddings, a new model of great width predicts the token that it reads.
        is_tied = getattr(subject.base.config.get_text_config(), "tie_word_embeddings", False)
        level = "note" if is_tied and spread < TRAINED_NORMS else None
        report.add("P309", f"the first loss of {'new' if spread < 1e-6 else 'these'} weights is {figures}", level=level)
    elif spread < 1e-6 and first < 0.5 * chance and subject.kind == "causal":
        if (other := loss_of_new_tokens(subject, batch)) is not None and other < 0.5 * chance:
            report.add("P310", f"the first loss of new weights is {figures}")


def loss_of_plain_text(subject: TrainerSubject) -> float:
    """Returns the mean loss of an English sentence, which any language model predicts better than chance."""
    if subject.tokenizer is None or subject.kind == "seq2seq":
        return 0.0
    ids = torch.tensor([subject.tokenizer(_PLAIN_TEXT)["input_ids"]], device=subject.device)
    if int(ids.max()) >= subject.base.get_input_embeddings().weight.shape[0]:
        return math.inf
    inputs, labels = ids, ids.clone()
    if subject.kind == "masked":
        chosen = torch.arange(ids.shape[1], device=subject.device) % 6 == 3
        inputs = torch.where(chosen, subject.tokenizer.mask_token_id, ids)
        labels = torch.where(chosen, ids, IGNORED)
    with computing(subject):
        logits = subject.model(input_ids=inputs, attention_mask=torch.ones_like(ids))["logits"].float()
    if subject.kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED))


def loss_of_new_tokens(subject: TrainerSubject, batch: Mapping[str, Any]) -> float | None:
    """
    Returns the mean loss of trained tokens that differ from the one before, or None if there are none.

    A new model with tied embeddings may predict the token that it reads, and be right where tokens repeat.
    """
    labels, ids = batch["labels"].clone(), batch["input_ids"]
    if labels.shape != ids.shape:
        return None
    labels[:, 1:][labels[:, 1:] == ids[:, :-1]] = IGNORED
    losses = token_losses(subject, {**batch, "labels": labels})
    every = torch.cat(losses.shifts[1]) if losses is not None else torch.empty(0)
    return float(every.mean()) if len(every) else None
