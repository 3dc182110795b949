"""
A mixture of denoisers for a causal LM (UL2, Tay et al. 2023, https://huggingface.co/papers/2205.05131): some documents
are predicted token by token, others become bidirectional inputs and targets to generate.

    causal   <bos> the cat sat on the mat <eos>
    S        <bos> [S] the cat sat            on the mat <eos>
    R, X     <bos> [R] the <0> on the <1> <eos>   <0> cat sat <1> mat <eos>
             └────────── inputs ──────────┘       └───── targets ────┘

The inputs see one another (`prefix_mask`), and only targets are predicted. A model trained on this generates text,
continues a prefix that it reads bidirectionally, and fills gaps of any length (`infill`).

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
# Shorter pieces of text stay causal, because most of their tokens would be modes and sentinels.
SHORTEST = 16


@dataclass(frozen=True)
class DenoisingTokens:
    """
    The ids of a tokenizer that denoising uses.

    Attributes:
        modes: Ids of [R], [S] and [X] by name.
        sentinels: Ids that mark gaps in the inputs, and the text of each gap in the targets.
        begin: First id of documents, or None.
        end: Last id of documents and targets.
    """

    modes: dict[str, int]
    sentinels: tuple[int, ...]
    begin: int | None
    end: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "DenoisingTokens":
        """Returns the ids of a tokenizer. Raises `InputError` if it has less than four spare tokens."""
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
    """Returns shares as JSON, `{"causal": 0.5, "R": 0.5}`, scaled to sum to 1. Raises `InputError` for other text."""
    names = ("causal", *MODES)
    try:
        shares = json.loads(text)
        is_wrong = not isinstance(shares, dict) or not all(
            type(x) in (int, float) and 0 <= x < float("inf") for x in shares.values()
        )
    except ValueError:
        is_wrong = True
    if is_wrong or sum(shares.values()) <= 0:
        raise InputError(f'denoisers {text!r}: write shares as JSON, {{"causal": 0.5, "R": 0.25, "S": 0.25}}')
    if unknown := sorted(shares.keys() - set(names)):
        raise InputError(f"denoisers: {unknown[0]!r} is none; there are {', '.join(names)}")
    return {name: shares[name] / sum(shares.values()) for name in names if shares.get(name)}


@dataclass
class Denoisers:
    """
    The objective: each document (or piece of one) of a packed row stays causal or becomes inputs and targets of a
    denoiser. Its length stays the same: some tokens at its start or end are dropped for the new ones.

    Args:
        tokenizer: Provides modes and sentinels. A text has at most as many spans as there are sentinels; spans become
            longer rather than masking fewer tokens.
        shares: Share of the text of `causal`, `R`, `S` and `X`, as of `parse_shares`.
        seed: The denoisers of row `r` depend on `(seed, r)` alone.
    """

    tokenizer: PreTrainedTokenizerBase
    shares: Mapping[str, float]
    seed: int = 0
    tokens: DenoisingTokens = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokens = DenoisingTokens.of(self.tokenizer)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Returns the inputs of [`causal`], and `prefix_mask` `(batch, length)` bool, true at denoisers' inputs."""
        inputs = causal(batch)
        inputs["input_ids"] = inputs["input_ids"].clone()  # it shares memory with the batch
        prefix_mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        starts = (batch["position_ids"] == 0) & (batch["sequence_ids"] > 0)
        kinds, bounds = list(self.shares), np.cumsum(list(self.shares.values()))
        chance = [uniform(self.seed, batch["rows"], starts.shape[1], stream) for stream in range(3)]
        for row, column in zip(*np.nonzero(starts)):
            length = int(np.count_nonzero(batch["sequence_ids"][row] == batch["sequence_ids"][row, column]))
            kind = kinds[min(np.searchsorted(bounds, chance[0][row, column], side="right"), len(kinds) - 1)]
            if kind == "causal" or length < SHORTEST:
                continue
            columns = slice(column, column + length)
            pieces = self.denoise(
                batch["input_ids"][row, columns], kind, *(draws[row, columns] for draws in chance[1:])
            )
            ids, num_inputs = torch.from_numpy(np.concatenate(pieces)), len(pieces[0])
            inputs["input_ids"][row, columns] = ids
            inputs["labels"][row, columns] = ids.masked_fill(torch.arange(length) < num_inputs, IGNORED)
            prefix_mask[row, column : column + num_inputs] = True
        return {**inputs, "prefix_mask": prefix_mask}

    def denoise(
        self, ids: np.ndarray, kind: str, decisions: np.ndarray, order: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns inputs and targets of a text `(length,)`, which together have its length.

        Args:
            kind: `R`, `S` or `X`.
            decisions, order: Random numbers in [0, 1), `(length,)` each.
        """
        tokens, length = self.tokens, len(ids)
        begin, end = int(ids[0] == tokens.begin), int(ids[-1] == tokens.end)
        body = ids[begin : length - end]
        # The start or the end is cut off, so that the model sees both ends of documents.
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
        spans = _random_parts(num_hidden, num_spans, decisions[4:])
        # The visible text has one part more, and its first and last parts may be empty.
        visible = _random_parts(room - num_hidden + 2, num_spans + 1, order)
        visible[0], visible[-1] = visible[0] - 1, visible[-1] - 1
        inputs: list[Any] = [head]
        targets: list[Any] = []
        start = 0
        for sentinel, num_visible, span in zip(tokens.sentinels, visible, spans, strict=False):
            inputs += [body[start : start + num_visible], [sentinel]]
            targets += [[sentinel], body[start + num_visible : start + num_visible + span]]
            start += num_visible + span
        return np.concatenate([*inputs, body[start:], tail]), np.concatenate([*targets, [tokens.end]])


def _random_parts(total: int, parts: int, order: np.ndarray) -> np.ndarray:
    """Returns positive numbers that sum to `total`, `(parts,)`; `order` draws one of all such sums uniformly."""
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
    Returns texts whose gaps are filled by a model trained on the R denoiser.

    Args:
        texts: Documents or starts of documents.
        gap: The text that marks a gap, by default the tokenizer's mask token. Spaces before it belong to the gap.
        max_gap_tokens: Longest gap, in tokens.
        settings: Arguments of `generate`; decoding is greedy by default.

    Raises:
        InputError: A text has no gap, more gaps than there are sentinels, or is too long.
    """
    gap = gap or tokenizer.mask_token
    if not gap:
        raise InputError("the tokenizer has no mask token: say with `gap` what marks a gap in the text")
    pieces = []
    for text in texts:
        *parts, last = text.split(gap)
        # In training a span begins with the space before a word, which byte-level tokens include.
        pieces.append(encode_text(tokenizer, [*(part.rstrip(" ") for part in parts), last]))
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
    Fills gaps as [`infill`], in ids.

    Args:
        texts: For each text the parts around its gaps, one more than gaps.
        lengths: Number of tokens of each gap of each text, if they are known.

    Returns:
        The ids in each gap of each text.
    """
    if not texts:
        return []
    if max_gap_tokens < 1:
        raise InputError(f"max_gap_tokens must be at least 1, not {max_gap_tokens}")
    if names := sorted(settings.keys() & {"max_new_tokens", "num_return_sequences", "attention_mask", "prefix_mask"}):
        raise InputError(f"{names[0]} is decided by the gaps; leave it out")
    if lengths is not None and [len(gap_lengths) for gap_lengths in lengths] != [len(parts) - 1 for parts in texts]:
        raise InputError("lengths: give a number for each gap of each text")
    tokens = DenoisingTokens.of(tokenizer)
    for number, parts in enumerate(texts, 1):
        if not 1 <= len(parts) - 1 <= len(tokens.sentinels):
            raise InputError(f"text {number} has {len(parts) - 1} gaps; there must be 1 to {len(tokens.sentinels)}")
    if lengths is None:
        limits = [[max_gap_tokens] * (len(parts) - 1) for parts in texts]
    else:
        limits = [list(gap_lengths) for gap_lengths in lengths]
    prompts = [gap_prompt(parts, tokens) for parts in texts]
    width, num_new = max(map(len, prompts)), max(sum(row) + len(row) for row in limits)
    longest = longest_input(model.config)
    if width + num_new > longest:
        raise InputError(
            f"the longest text with its gaps takes {width + num_new} tokens, and the model has {longest} positions: "
            "give shorter texts or a smaller max_gap_tokens"
        )
    ids = torch.tensor([[tokens.end] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    is_token = torch.arange(width, device=ids.device) >= width - ids.new_tensor([[len(prompt)] for prompt in prompts])
    prefix = is_token.clone()
    prefix[:, -1] = False  # the first gap's sentinel is a target already
    generated = cpu.generate(
        model,
        ids,
        attention_mask=is_token.long(),
        prefix_mask=prefix,
        logits_processor=LogitsProcessorList([GapOrder(tokens, tokenizer, width, limits, exact=lengths is not None)]),
        max_new_tokens=num_new,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        **{"do_sample": False, **settings},
    )
    return [_spans(row[width:].tolist(), tokens) for row in generated]


def gap_prompt(parts: Sequence[Sequence[int]], tokens: DenoisingTokens) -> list[int]:
    """Returns the inputs of the R denoiser for a text, and the sentinel of the first gap."""
    begin = [] if tokens.begin is None else [tokens.begin]
    gaps = [[sentinel] for sentinel in tokens.sentinels[: len(parts) - 1]]
    inputs = [token for part in interleave(parts, gaps) for token in part]
    return [*begin, tokens.modes["R"], *inputs, tokens.sentinels[0]]


class GapOrder(LogitsProcessor):
    """
    Enforces the order of gaps in generation: text, then the next gap's sentinel, and the end after the last gap.

    Args:
        start: Column where the first gap's text begins.
        limits: For each row the maximum of tokens of each gap; the minimum is one, as in training, or with `exact` the
            maximum.
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
        # The token that ends each gap of each row, and the gap's limit; a finished row repeats its last ones.
        gaps, width = [len(row) for row in limits], max(map(len, limits))
        self.limits = torch.tensor([[*row, *list(row[-1:]) * (width - len(row))] for row in limits])
        self.closing = torch.tensor(
            [[*tokens.sentinels[1:count], *[tokens.end] * (width - count + 1)] for count in gaps]
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        device, beams = scores.device, len(input_ids) // len(self.limits)
        generated = input_ids[:, self.start :]
        gap_ends = torch.isin(generated, self.ends_gap.to(device))
        gap = gap_ends.sum(1, keepdim=True).clamp(max=self.limits.shape[1] - 1)
        # The number of tokens behind the last one that closed a gap.
        inside = (gap_ends.flip(1).cumsum(1) == 0).sum(1, keepdim=True)
        limit = self.limits.to(device).repeat_interleave(beams, dim=0).gather(1, gap)
        closing = self.closing.to(device).repeat_interleave(beams, dim=0).gather(1, gap)

        may_close = inside >= (limit if self.exact else 1)
        closing_scores = scores.gather(1, closing).masked_fill(~may_close, -torch.inf)
        full = inside >= limit
        scores = scores.index_fill(1, self.special.to(device), -torch.inf).masked_fill(full, -torch.inf)
        # In a full gap only the closing token is possible, whatever its score.
        return scores.scatter(1, closing, closing_scores.masked_fill(full, 0.0))


def interleave(parts: Sequence[Any], spans: Sequence[Any]) -> list[Any]:
    """Returns `parts[0], spans[0], parts[1], …, parts[-1]`."""
    return [*(piece for pair in zip(parts, spans, strict=False) for piece in pair), parts[-1]]


def _spans(generated: list[int], tokens: DenoisingTokens) -> list[list[int]]:
    """Returns the generated ids of each gap."""
    spans: list[list[int]] = [[]]
    for token in generated:
        if token == tokens.end:
            break
        if token in tokens.sentinels:
            spans.append([])
        else:
            spans[-1].append(token)
    return spans
