"""
Filling gaps in text by any language model, and how often they are filled as the author did.

Words are cut out of passages of held-out text. A masked LM fills them in one pass (`once`) or step by step
(`iterative`); a causal LM from what stands left of each gap (`left`); a decoder trained on denoisers from both sides,
told how many tokens are missing (`denoise`) or not (`denoise_free`).
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
from ..core.statistics import Estimate, bootstrap, proportion
from ..data.denoisers import DenoisingTokens, fill_gaps, gap_prompt, interleave
from ..data.tokenizer import encode_text
from ..data.tokens import document_ends
from ..models.modeling_tfm_infilling import fill_masks_together


Ids = list[int]


class GappedText(NamedTuple):
    """
    A passage with gaps.

    Attributes:
        parts: the text in front of, between and behind the gaps.
        missing: what stood in these.
    """

    parts: list[str]
    missing: list[str]


def cut_gaps(
    texts: Iterable[str], words: int = 60, gaps: int = 3, longest_gap: int = 3, per_text: int = 6, seed: int = 0
) -> Iterator[GappedText]:
    """
    Passages of `words` words, one behind the other and at most `per_text` of a text, with gaps of 1 to `longest_gap`
    words, each length as often. Where gaps are depends on the seed and the number of the passage alone.

    Raises:
        InputError: so many gaps leave no words between them.
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
            # What is left is dealt out around the gaps, with a word in front of each at least.
            places = np.sort(rng.integers(0, words - lengths.sum() - gaps + 1, gaps))
            starts = places + np.cumsum(lengths + 1) - lengths
            ends = starts + lengths
            parts = ["".join(pieces[end:start]) for end, start in zip([0, *ends], [*starts, words], strict=True)]
            yield GappedText(parts, ["".join(pieces[start:end]) for start, end in zip(starts, ends, strict=True)])


class Passage(NamedTuple):
    """A gapped text as a tokenizer sees it."""

    parts: list[Ids]
    missing: list[Ids]


def measure_infilling(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[GappedText],
    way: str,
    batch_size: int = 16,
) -> dict[str, Estimate]:
    """
    Share of the gaps all of whose tokens are the author's, of all and by their number of words. If the way is told how
    many tokens are missing, the share of tokens that are right; of a causal LM, the bits that each byte of what is
    missing costs it, which tells models apart that are seldom right.

    Args:
        way: one of `WAYS`.
        batch_size: passages at once; the figures do not depend on it.

    Raises:
        InputError: a passage is too long for the model, or the model is not made for this way.
    """
    passages = [Passage(encode_text(tokenizer, t.parts), encode_text(tokenizer, t.missing)) for t in texts]
    longest = longest_input(model.config) or 1 << 20
    needed = max(sum(map(len, p.parts)) + 2 * sum(len(ids) + 1 for ids in p.missing) + 4 for p in passages)
    if needed > longest:
        raise InputError(f"a passage takes {needed} tokens and the model reads {longest}: take fewer words")
    # Of like length together, so that little is padding.
    order = sorted(range(len(passages)), key=lambda number: sum(map(len, passages[number].parts)))
    filled: dict[int, list[Ids]] = {}
    nats: dict[int, float] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        some = [passages[number] for number in numbers]
        filled |= dict(zip(numbers, WAYS[way](model, tokenizer, some), strict=True))
        if way in ("left", "denoise"):
            nats |= dict(zip(numbers, score_missing(model, tokenizer, some, denoise=way == "denoise"), strict=True))

    by_words: dict[int, list[bool]] = {}
    right_tokens = 0
    for number, (text, passage) in enumerate(zip(texts, passages, strict=True)):
        for words, truth, got in zip(text.missing, passage.missing, filled[number], strict=True):
            by_words.setdefault(len(words.split()), []).append(list(got) == list(truth))
            right_tokens += sum(a == b for a, b in zip(got, truth, strict=False))
    hits = [hit for several in by_words.values() for hit in several]
    figures = {"gaps_right": proportion(sum(hits), len(hits))}
    if way != "denoise_free":
        total = sum(len(ids) for passage in passages for ids in passage.missing)
        figures["tokens_right"] = proportion(right_tokens, total)
    if nats:
        sizes = [len("".join(text.missing).encode()) for text in texts]
        figures |= bootstrap(_bits_per_byte, [nats[number] for number in range(len(texts))], sizes)
    return figures | {
        f"gaps_right, {n} word{'s' * (n > 1)}": proportion(sum(by_words[n]), len(by_words[n])) for n in sorted(by_words)
    }


def _bits_per_byte(nats: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    return {"missing_bits_per_byte": float(nats.sum() / sizes.sum() / np.log(2))}


@torch.no_grad()
def score_missing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: list[Passage], denoise: bool
) -> list[float]:
    """
    Nats of each passage's missing tokens: from all that stands left of each, or with `denoise` from both sides. No
    special token may stand there, so that neither way pays for knowing where a gap ends.
    """
    begin, _ = document_ends(tokenizer)
    rows, places, prefixes = [], [], []
    for passage in passages:
        pieces, prefix = interleave(passage.parts, passage.missing), 0
        row = list(begin)
        if denoise:
            tokens = DenoisingTokens.of(tokenizer)
            row = gap_prompt(passage.parts, tokens)[:-1]
            pieces, prefix = (
                interleave([[x] for x in tokens.sentinels[: len(passage.parts)]], passage.missing),
                len(row),
            )
        places.append([])
        for number, piece in enumerate(pieces):
            if number % 2:
                places[-1] += range(len(row), len(row) + len(piece))
            row += piece
        rows.append(row)
        prefixes.append([prefix])
    width = max(map(len, rows))
    columns = torch.arange(width, device=model.device)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    # Padding stands behind the text, where nothing sees it.
    inputs = {"prefix_mask": columns < torch.tensor(prefixes, device=model.device)} if denoise else {}
    logits = model(ids, use_cache=False, **inputs).logits.float()
    logits[..., tokenizer.all_special_ids] = -torch.inf
    return [
        -float(scores[np.array(at) - 1].log_softmax(-1).gather(1, row[at][:, None]).sum())
        for scores, row, at in zip(logits, ids, places, strict=True)
    ]


def by_masks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: list[Passage], steps: int | None = None
) -> list[list[Ids]]:
    """A masked LM's fillings, in so many steps, or in one for each mask."""
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
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
    model.config.mask_token_id = tokenizer.mask_token_id  # not every family's configuration names it
    written = fill_masks_together(model, ids.to(model.device), mask.to(model.device), steps=steps).cpu()
    places = [row[at].tolist() for row, at in zip(written, ids == tokenizer.mask_token_id, strict=True)]
    return [cut_up(tokens, passage.missing) for tokens, passage in zip(places, passages, strict=True)]


def by_left_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: list[Passage]
) -> list[list[Ids]]:
    """A causal LM's likeliest tokens in each gap, from the passage up to it, earlier gaps as they were filled."""
    begin, _ = document_ends(tokenizer)
    before, filled = [list(begin) for _ in passages], [[] for _ in passages]
    for gap in range(len(passages[0].missing)):
        for row, passage in zip(before, passages, strict=True):
            row += passage.parts[gap]
        width, new = max(map(len, before)), max(len(passage.missing[gap]) for passage in passages)
        pad = tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in before], device=model.device)
        mask = (torch.arange(width) >= torch.tensor([[width - len(row)] for row in before])).long().to(model.device)
        written = cpu.generate(
            model, ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1,
            suppress_tokens=tokenizer.all_special_ids, pad_token_id=pad,
        )  # fmt: skip
        for row, into, tokens, passage in zip(before, filled, written[:, width:].tolist(), passages, strict=True):
            into.append(tokens[: len(passage.missing[gap])])
            row += into[-1]
    return filled


def by_denoising(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: list[Passage], free: bool = False
) -> list[list[Ids]]:
    """The fillings of a decoder trained with --denoisers, of the lengths that are missing or of any."""
    lengths = None if free else [[len(ids) for ids in passage.missing] for passage in passages]
    return fill_gaps(model, tokenizer, [passage.parts for passage in passages], lengths)


def cut_up(tokens: Ids, like: Sequence[Ids]) -> list[Ids]:
    ends = np.cumsum([len(ids) for ids in like])
    return [tokens[end - len(ids) : end] for ids, end in zip(like, ends, strict=True)]


# Each takes a model, its tokenizer and passages, and gives what fills each gap of each passage.
WAYS: dict[str, Callable[..., list[list[Ids]]]] = {
    "once": partial(by_masks, steps=1),
    "iterative": by_masks,
    "left": by_left_context,
    "denoise": by_denoising,
    "denoise_free": partial(by_denoising, free=True),
}
