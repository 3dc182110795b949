"""
A mixture of denoisers for a causal LM (UL2, Tay et al. 2023, https://huggingface.co/papers/2205.05131): some documents
are predicted token by token, others become inputs that are read as a whole and targets that are written.

    causal   <bos> the cat sat on the mat <eos>
    S        <bos> [S] the cat sat            on the mat <eos>
    R, X     <bos> [R] the <0> on the <1> <eos>   <0> cat sat <1> mat <eos>
             └────────── inputs ──────────┘       └───── targets ────┘

The inputs see one another (`prefix_mask`), and only targets are predicted. A model trained on this writes text from its
start, continues a prefix it has read in both directions, and fills gaps of any length: `infill`.

Mode tokens and sentinels are the tokenizer's spare tokens, in this order: [R], [S], [X], sentinel 0, sentinel 1, …
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from .. import cpu
from ..core.errors import InputError
from ..core.limits import longest_input
from .batches import IGNORED
from .objectives import causal, uniform
from .tokenizer import encode_text
from .tokens import document_ends


MODES = ("R", "S", "X")
# Mean length of spans in tokens and share of the text that is in spans: UL2's regular and extreme denoisers.
SPANS = {"R": [(3, 0.15), (8, 0.15)], "X": [(3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)]}
# Shorter pieces of text stay causal: modes and sentinels would be the better part of them.
SHORTEST = 16


@dataclass(frozen=True)
class DenoisingTokens:
    """
    The ids that a tokenizer lends to denoising.

    Attributes:
        modes: of [R], [S] and [X] by name.
        sentinels: stand for gaps in the inputs, and in front of their fillings in the targets.
        begin: what documents start with, or None.
        end: what they end with; ends targets too.
    """

    modes: dict[str, int]
    sentinels: tuple[int, ...]
    begin: int | None
    end: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "DenoisingTokens":
        """Raises `InputError` if there are fewer spare tokens than three modes and a sentinel take."""
        vocabulary = tokenizer.get_vocab()
        spare: list[int] = []
        while (token := f"<|spare_{len(spare)}|>") in vocabulary:
            spare.append(vocabulary[token])
        if len(spare) <= len(MODES):
            raise InputError(
                f"denoising takes {len(MODES)} spare tokens for modes and one for each span, and the tokenizer has "
                f"{len(spare)} in all: train one with --num-spare-tokens 16 or more"
            )
        begin, end = document_ends(tokenizer)
        modes = dict(zip(MODES, spare, strict=False))
        return cls(modes, tuple(spare[len(MODES) :]), begin[0] if begin else None, end[0])


def parse_shares(text: str) -> dict[str, float]:
    """`{"causal": 0.5, "R": 0.25, "S": 0.25}` as shares that sum to 1. Raises `InputError` if it is no such thing."""
    known = ("causal", *MODES)
    try:
        shares = json.loads(text)
        wrong = not isinstance(shares, dict) or not all(
            type(x) in (int, float) and 0 <= x < float("inf") for x in shares.values()
        )
    except ValueError:
        wrong = True
    if wrong or sum(shares.values()) <= 0:
        raise InputError(f'denoisers {text!r}: write shares as JSON, {{"causal": 0.5, "R": 0.25, "S": 0.25}}')
    if unknown := sorted(shares.keys() - set(known)):
        raise InputError(f"denoisers: {unknown[0]!r} is none; there are {', '.join(known)}")
    return {name: shares[name] / sum(shares.values()) for name in known if shares.get(name)}


@dataclass
class Denoisers:
    """
    The objective: each document (or piece of one) of a packed row is left causal or becomes one of the denoisers'
    inputs and targets. It keeps its place in the row: some tokens at its start or end make room for the new ones.

    Args:
        tokenizer: lends the modes and sentinels. There are as many spans in a text as sentinels at most; where these
            run out spans are longer, not fewer tokens in spans.
        shares: of the text for each of `causal`, `R`, `S` and `X`, as of `parse_shares`.
        seed: what becomes of row `r` depends on `(seed, r)` alone.
    """

    tokenizer: PreTrainedTokenizerBase
    shares: Mapping[str, float]
    seed: int = 0
    tokens: DenoisingTokens = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokens = DenoisingTokens.of(self.tokenizer)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """What [`causal`] gives, and `prefix_mask` `(batch, length)` bool, true at the inputs of denoisers."""
        inputs = causal(batch)
        inputs["input_ids"] = inputs["input_ids"].clone()  # it is the batch's own
        prefix_mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        starts = (batch["position_ids"] == 0) & (batch["sequence_ids"] > 0)
        kinds, bounds = list(self.shares), np.cumsum(list(self.shares.values()))
        chance = [uniform(self.seed, batch["rows"], starts.shape[1], stream) for stream in range(3)]
        for row, column in zip(*np.nonzero(starts)):
            length = int(np.count_nonzero(batch["sequence_ids"][row] == batch["sequence_ids"][row, column]))
            kind = kinds[min(np.searchsorted(bounds, chance[0][row, column], side="right"), len(kinds) - 1)]
            if kind == "causal" or length < SHORTEST:
                continue
            here = slice(column, column + length)
            pieces = self.denoise(batch["input_ids"][row, here], kind, *(draws[row, here] for draws in chance[1:]))
            ids, num_inputs = torch.from_numpy(np.concatenate(pieces)), len(pieces[0])
            inputs["input_ids"][row, here] = ids
            inputs["labels"][row, here] = ids.masked_fill(torch.arange(length) < num_inputs, IGNORED)
            prefix_mask[row, column : column + num_inputs] = True
        return {**inputs, "prefix_mask": prefix_mask}

    def denoise(
        self, ids: np.ndarray, kind: str, decisions: np.ndarray, order: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        A text `(length,)` as inputs and targets, which together have its length again.

        Args:
            kind: `R`, `S` or `X`.
            decisions, order: random numbers in [0, 1), `(length,)` each.
        """
        tokens, length = self.tokens, len(ids)
        begin, end = int(ids[0] == tokens.begin), int(ids[-1] == tokens.end)
        body = ids[begin : length - end]
        # What is cut off is the start or the end, so that both ends of documents are seen.
        cut_start = decisions[0] < 0.5
        head = ids[: 0 if cut_start else begin]
        tail = ids[length - end :] if cut_start else ids[:0]
        head = np.append(head, tokens.modes[kind])
        if kind == "S":
            room = length - len(head) - len(tail)
            body = body[-room:] if cut_start else body[:room]
            split = 1 + int(decisions[1] * (len(body) - 1))
            return np.append(head, body[:split]), np.append(body[split:], tail)

        mean, rate = SPANS[kind][int(decisions[1] * len(SPANS[kind]))]
        num_spans = min(max(int(length * rate / mean + decisions[2]), 1), len(tokens.sentinels))
        room = length - len(head) - len(tail) - 2 * num_spans - 1
        body = body[-room:] if cut_start else body[:room]
        num_hidden = min(max(int(room * rate + decisions[3]), num_spans), room - num_spans)
        hidden = _random_parts(num_hidden, num_spans, decisions[4:])
        # What is left forms one part more, and the first and the last of them may be empty.
        left = _random_parts(room - num_hidden + 2, num_spans + 1, order)
        left[0], left[-1] = left[0] - 1, left[-1] - 1
        inputs: list[Any] = [head]
        targets: list[Any] = []
        start = 0
        for sentinel, before, span in zip(tokens.sentinels, left, hidden, strict=False):
            inputs += [body[start : start + before], [sentinel]]
            targets += [[sentinel], body[start + before : start + before + span]]
            start += before + span
        return np.concatenate([*inputs, body[start:], tail]), np.concatenate([*targets, [tokens.end]])


def _random_parts(total: int, parts: int, order: np.ndarray) -> np.ndarray:
    """`total` as a sum of positive numbers, `(parts,)`, all of such sums being as likely; `order` decides."""
    cuts = np.sort(np.argsort(order[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def infill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    gap: str | None = None,
    max_gap_tokens: int = 32,
    **settings: Any,
) -> list[str]:
    """
    Texts with their gaps filled by a model trained on the R denoiser.

    Args:
        texts: the start of a document each, or all of it.
        gap: what marks a gap, the tokenizer's mask token by default. Blanks in front of it belong to the gap.
        max_gap_tokens: at most so many in a gap.
        settings: for `generate`; without any the likeliest tokens are taken.

    Raises:
        InputError: a text has no gap or more than there are sentinels, or is too long.
    """
    gap = gap or tokenizer.mask_token
    if not gap:
        raise InputError("the tokenizer has no mask token: say with `gap` what marks a gap in the text")
    pieces = []
    for text in texts:
        *before, last = text.split(gap)
        # In training a span begins with a word's blank: a byte-level token has it in front.
        pieces.append(encode_text(tokenizer, [*(part.rstrip(" ") for part in before), last]))
    filled = fill_gaps(model, tokenizer, pieces, max_gap_tokens=max_gap_tokens, **settings)
    return [
        tokenizer.decode([token for part in interleave(parts, spans) for token in part])
        for parts, spans in zip(pieces, filled, strict=True)
    ]


def fill_gaps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[Sequence[int]]],
    lengths: Sequence[Sequence[int]] | None = None,
    max_gap_tokens: int = 32,
    **settings: Any,
) -> list[list[list[int]]]:
    """
    As [`infill`], in ids.

    Args:
        texts: of each the parts between its gaps, one more than these.
        lengths: tokens of each gap of each text, where they are known.

    Returns: what fills each gap of each text.
    """
    if not texts:
        return []
    if max_gap_tokens < 1:
        raise InputError(f"max_gap_tokens must be at least 1, not {max_gap_tokens}")
    if unfit := sorted(settings.keys() & {"max_new_tokens", "num_return_sequences", "attention_mask", "prefix_mask"}):
        raise InputError(f"{unfit[0]} is decided by the gaps; leave it out")
    if lengths is not None and [len(known) for known in lengths] != [len(parts) - 1 for parts in texts]:
        raise InputError("lengths: give a number for each gap of each text")
    tokens = DenoisingTokens.of(tokenizer)
    for number, parts in enumerate(texts, 1):
        if not 1 <= len(parts) - 1 <= len(tokens.sentinels):
            raise InputError(f"text {number} has {len(parts) - 1} gaps; there must be 1 to {len(tokens.sentinels)}")
    if lengths is None:
        limits = [[max_gap_tokens] * (len(parts) - 1) for parts in texts]
    else:
        limits = [list(known) for known in lengths]
    prompts = [gap_prompt(parts, tokens) for parts in texts]
    width, new = max(map(len, prompts)), max(sum(row) + len(row) for row in limits)
    longest = longest_input(model.config)
    if width + new > longest:
        raise InputError(
            f"the longest text with its gaps takes {width + new} tokens, and the model has {longest} positions: give "
            "shorter texts or a smaller max_gap_tokens"
        )
    ids = torch.tensor([[tokens.end] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    real = torch.arange(width, device=ids.device) >= width - ids.new_tensor([[len(prompt)] for prompt in prompts])
    prefix = real.clone()
    prefix[:, -1] = False  # the first gap's sentinel is a target already
    written = cpu.generate(
        model,
        ids,
        attention_mask=real.long(),
        prefix_mask=prefix,
        logits_processor=LogitsProcessorList([GapOrder(tokens, tokenizer, width, limits, exact=lengths is not None)]),
        max_new_tokens=new,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        **{"do_sample": False, **settings},
    )
    return [_spans(row[width:].tolist(), tokens) for row in written]


def gap_prompt(parts: Sequence[Sequence[int]], tokens: DenoisingTokens) -> list[int]:
    """What the R denoiser makes of a text, up to where the first gap's filling begins."""
    begin = [] if tokens.begin is None else [tokens.begin]
    gaps = [[sentinel] for sentinel in tokens.sentinels[: len(parts) - 1]]
    inputs = [token for part in interleave(parts, gaps) for token in part]
    return [*begin, tokens.modes["R"], *inputs, tokens.sentinels[0]]


class GapOrder(LogitsProcessor):
    """
    Keeps what is written in the order of the gaps: text, then the next gap's sentinel, behind the last gap the end.

    Args:
        start: the column where the first gap's text begins.
        limits: for each row the most tokens of each gap; one at least is written, as in training, or with `exact` all.
    """

    def __init__(
        self,
        tokens: DenoisingTokens,
        tokenizer: PreTrainedTokenizerBase,
        start: int,
        limits: Sequence[Sequence[int]],
        exact: bool,
    ):
        self.start, self.exact = start, exact
        self.ends_gap = torch.tensor([*tokens.sentinels[1:], tokens.end])
        self.special = torch.tensor(tokenizer.all_special_ids)
        # What ends each gap of each row, and how long these may be; a row that is done repeats its last one.
        gaps, width = [len(row) for row in limits], max(map(len, limits))
        self.limits = torch.tensor([[*row, *list(row[-1:]) * (width - len(row))] for row in limits])
        self.closing = torch.tensor(
            [[*tokens.sentinels[1:count], *[tokens.end] * (width - count + 1)] for count in gaps]
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        device, beams = scores.device, len(input_ids) // len(self.limits)
        written = input_ids[:, self.start :]
        closed = torch.isin(written, self.ends_gap.to(device))
        gap = closed.sum(1, keepdim=True).clamp(max=self.limits.shape[1] - 1)
        # Tokens behind the last one that closed a gap: those in front of no such token when read backwards.
        inside = (closed.flip(1).cumsum(1) == 0).sum(1, keepdim=True)
        limit = self.limits.to(device).repeat_interleave(beams, dim=0).gather(1, gap)
        closing = self.closing.to(device).repeat_interleave(beams, dim=0).gather(1, gap)

        may_close = inside >= (limit if self.exact else 1)
        closing_scores = scores.gather(1, closing).masked_fill(~may_close, -torch.inf)
        full = inside >= limit
        scores = scores.index_fill(1, self.special.to(device), -torch.inf).masked_fill(full, -torch.inf)
        # In a full gap what closes it is all there is, whatever it scored.
        return scores.scatter(1, closing, closing_scores.masked_fill(full, 0.0))


def interleave(parts: Sequence[Any], spans: Sequence[Any]) -> list[Any]:
    """`parts[0], spans[0], parts[1], …, parts[-1]`."""
    return [*(piece for pair in zip(parts, spans, strict=False) for piece in pair), parts[-1]]


def _spans(written: list[int], tokens: DenoisingTokens) -> list[list[int]]:
    """What was written for each gap."""
    spans: list[list[int]] = [[]]
    for token in written:
        if token == tokens.end:
            break
        if token in tokens.sentinels:
            spans.append([])
        else:
            spans[-1].append(token)
    return spans
