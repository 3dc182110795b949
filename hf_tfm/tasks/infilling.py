"""
Filling gaps in text with any language model, and the share of gaps filled as in the original.

Words are cut out of passages of held-out text. A masked LM fills the gaps in one pass (`once`) or step by step
(`iterative`); a causal LM continues the text to the left of each gap (`left`); a decoder trained with denoisers reads
both sides, knowing the number of missing tokens (`denoise`) or not (`denoise_free`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import cpu
from ..core.errors import InputError
from ..core.limits import longest_input
from ..core.statistics import Estimate, bootstrap, proportion, to_bits_per_byte
from ..data.denoisers import DenoisingTokens, fill_gaps, gap_prompt, interleave
from ..data.tokenizer import encode_text
from ..data.tokens import document_ends
from ..models.modeling_tfm_infilling import fill_masks_together


Ids = list[int]


class GappedText(NamedTuple):
    """
    A passage with gaps.

    Attributes:
        parts: the text before, between and behind the gaps.
        missing: the original text of each gap.
    """

    parts: list[str]
    missing: list[str]


class EncodedGaps(NamedTuple):
    """A gapped text as token ids."""

    parts: list[Ids]
    missing: list[Ids]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: GappedText) -> "EncodedGaps":
        return cls(encode_text(tokenizer, text.parts), encode_text(tokenizer, text.missing))


def cut_gaps(
    texts: Iterable[str], words: int = 60, gaps: int = 3, longest_gap: int = 3, per_text: int = 6, seed: int = 0
) -> Iterator[GappedText]:
    """
    Yield consecutive passages of `words` words, at most `per_text` of a text, each with `gaps` gaps.

    Gaps have 1 to `longest_gap` words, every length equally often. Their places depend on the seed and the number of
    the passage only.

    Raises:
        InputError: the gaps leave no words between them.
    """
    if gaps < 1 or longest_gap < 1 or gaps * (longest_gap + 1) >= words:
        raise InputError(
            f"{gaps} gaps of up to {longest_gap} words leave nothing of {words}: give fewer or shorter ones"
        )
    number = 0
    for text in texts:
        all_pieces = re.findall(r"\s*\S+", text)
        for first in range(0, min(len(all_pieces) // words, per_text) * words, words):
            pieces = all_pieces[first : first + words]
            rng = np.random.default_rng((seed, number))
            number += 1
            lengths = rng.integers(1, longest_gap + 1, gaps)
            # The remaining words are distributed around the gaps, at least one in front of each.
            offsets = np.sort(rng.integers(0, words - lengths.sum() - gaps + 1, gaps))
            starts = offsets + np.cumsum(lengths + 1) - lengths
            ends = starts + lengths
            parts = ["".join(pieces[end:start]) for end, start in zip([0, *ends], [*starts, words], strict=True)]
            yield GappedText(parts, ["".join(pieces[start:end]) for start, end in zip(starts, ends, strict=True)])


def measure_infilling(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[GappedText],
    method: str,
    batch_size: int = 16,
) -> dict[str, Estimate]:
    """
    Return the share of gaps whose tokens are all as in the original, overall and by the gaps' number of words.

    Also the share of right tokens, if the method knows how many are missing; and for `left` and `denoise` the bits per
    byte of the missing text, which compares models that rarely fill a gap exactly.

    Args:
        method: a name in `FILL_METHODS`.
        batch_size: passages per batch; the figures do not depend on it.

    Raises:
        InputError: a passage is too long for the model, or the model does not support the method.
    """
    passages = [EncodedGaps.of(tokenizer, text) for text in texts]
    max_length = longest_input(model.config)
    num_tokens = max(sum(map(len, p.parts)) + 2 * sum(len(ids) + 1 for ids in p.missing) + 4 for p in passages)
    if num_tokens > max_length:
        raise InputError(f"a passage takes {num_tokens} tokens and the model reads {max_length}: take fewer words")
    # Passages of similar length share a batch, so that there is little padding.
    order = sorted(range(len(passages)), key=lambda number: sum(map(len, passages[number].parts)))
    fillings: dict[int, list[Ids]] = {}
    nats: dict[int, float] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = [passages[number] for number in numbers]
        fillings |= dict(zip(numbers, FILL_METHODS[method](model, tokenizer, batch), strict=True))
        if method in ("left", "denoise"):
            losses = missing_text_nats(model, tokenizer, batch, denoise=method == "denoise")
            nats |= dict(zip(numbers, losses, strict=True))

    hits_by_words: dict[int, list[bool]] = {}
    right_tokens = 0
    for number, (text, passage) in enumerate(zip(texts, passages, strict=True)):
        for words, target, filling in zip(text.missing, passage.missing, fillings[number], strict=True):
            hits_by_words.setdefault(len(words.split()), []).append(list(filling) == list(target))
            right_tokens += sum(a == b for a, b in zip(filling, target, strict=False))
    hits = [hit for group in hits_by_words.values() for hit in group]
    figures = {"gaps_right": proportion(sum(hits), len(hits))}
    if method != "denoise_free":
        total = sum(len(ids) for passage in passages for ids in passage.missing)
        figures["tokens_right"] = proportion(right_tokens, total)
    if nats:
        sizes = [len("".join(text.missing).encode()) for text in texts]
        figures |= bootstrap(_bits_per_byte, [nats[number] for number in range(len(texts))], sizes)
    return figures | {
        f"gaps_right, {n} word{'s' * (n > 1)}": proportion(sum(hits_by_words[n]), len(hits_by_words[n]))
        for n in sorted(hits_by_words)
    }


def _bits_per_byte(nats: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    return {"missing_bits_per_byte": to_bits_per_byte(float(nats.sum()), sizes.sum())}


@torch.no_grad()
def missing_text_nats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[EncodedGaps], denoise: bool
) -> list[float]:
    """
    Return the negative log-likelihood (nats) of each passage's missing tokens.

    A gap is predicted from the text to its left, or with `denoise` from both sides. Special tokens are excluded from
    the distribution, so that neither method pays for knowing where a gap ends.
    """
    begin, _ = document_ends(tokenizer)
    rows: list[Ids] = []
    targets: list[Ids] = []  # the positions of the missing tokens
    prefix_lengths: list[list[int]] = []
    for passage in passages:
        row, pieces, prefix_length = list(begin), interleave(passage.parts, passage.missing), 0
        if denoise:
            tokens = DenoisingTokens.of(tokenizer)
            row = gap_prompt(passage.parts, tokens)[:-1]
            pieces = interleave([[token] for token in tokens.sentinels[: len(passage.parts)]], passage.missing)
            prefix_length = len(row)
        positions: Ids = []
        for number, piece in enumerate(pieces):
            if number % 2:
                positions += range(len(row), len(row) + len(piece))
            row += piece
        rows.append(row)
        targets.append(positions)
        prefix_lengths.append([prefix_length])
    width = max(map(len, rows))
    columns = torch.arange(width, device=model.device)
    # The padding stands behind the text, where no token sees it.
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    inputs = {"prefix_mask": columns < torch.tensor(prefix_lengths, device=model.device)} if denoise else {}
    logits = model(ids, use_cache=False, **inputs).logits.float()
    logits[..., tokenizer.all_special_ids] = -torch.inf
    return [
        -float(scores[np.array(positions) - 1].log_softmax(-1).gather(1, row[positions][:, None]).sum())
        for scores, row, positions in zip(logits, ids, targets, strict=True)
    ]


def fill_by_masks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[EncodedGaps],
    steps: int | None = None,
) -> list[list[Ids]]:
    """Fill the gaps with a masked LM, in `steps` steps; by default in one step per mask."""
    if tokenizer.mask_token_id is None:
        raise InputError("this model's tokenizer has no mask token, so it was not made for masks")
    begin, end = document_ends(tokenizer)
    rows = []
    for passage in passages:
        gaps = [[tokenizer.mask_token_id] * len(ids) for ids in passage.missing]
        tokens = [token for piece in interleave(passage.parts, gaps) for token in piece]
        rows.append([*begin, *tokens, *(end if tokenizer.cls_token_id is not None else [])])
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id or 0] * (width - len(row)) for row in rows])
    attention_mask = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
    model.config.mask_token_id = tokenizer.mask_token_id  # some families' configurations do not name it
    filled = fill_masks_together(model, ids.to(model.device), attention_mask.to(model.device), steps=steps).cpu()
    fillings = [row[masked].tolist() for row, masked in zip(filled, ids == tokenizer.mask_token_id, strict=True)]
    return [_split_like(tokens, passage.missing) for tokens, passage in zip(fillings, passages, strict=True)]


def fill_from_left(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[EncodedGaps]
) -> list[list[Ids]]:
    """Fill each gap with a causal LM's greedy continuation of the text to its left, earlier fillings included."""
    begin, _ = document_ends(tokenizer)
    contexts: list[Ids] = [list(begin) for _ in passages]
    fillings: list[list[Ids]] = [[] for _ in passages]
    pad = tokenizer.pad_token_id or 0
    for gap in range(len(passages[0].missing)):
        for context, passage in zip(contexts, passages, strict=True):
            context += passage.parts[gap]
        width, new_tokens = max(map(len, contexts)), max(len(passage.missing[gap]) for passage in passages)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in contexts], device=model.device)
        mask = (torch.arange(width) >= torch.tensor([[width - len(row)] for row in contexts])).long()
        generated = cpu.generate(
            model,
            ids,
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            suppress_tokens=tokenizer.all_special_ids,
            pad_token_id=pad,
        )[:, width:].tolist()
        for context, filling, tokens, passage in zip(contexts, fillings, generated, passages, strict=True):
            filling.append(tokens[: len(passage.missing[gap])])
            context += filling[-1]
    return fillings


def fill_by_denoising(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[EncodedGaps], free: bool = False
) -> list[list[Ids]]:
    """Fill the gaps with a decoder trained with --denoisers, at their true lengths or, if `free`, at any length."""
    lengths = None if free else [[len(ids) for ids in passage.missing] for passage in passages]
    return fill_gaps(model, tokenizer, [passage.parts for passage in passages], lengths)


def _split_like(tokens: Ids, pieces: Sequence[Ids]) -> list[Ids]:
    """Split tokens into pieces of these lengths."""
    ends = np.cumsum([len(ids) for ids in pieces])
    return [tokens[end - len(ids) : end] for ids, end in zip(pieces, ends, strict=True)]


# Each takes a model, its tokenizer and passages, and returns the filling of each gap of each passage.
FILL_METHODS: dict[str, Callable[..., list[list[Ids]]]] = {
    "once": partial(fill_by_masks, steps=1),
    "iterative": fill_by_masks,
    "left": fill_from_left,
    "denoise": fill_by_denoising,
    "denoise_free": partial(fill_by_denoising, free=True),
}
