"""Decoding methods side by side: one prompt continued by each, with the probabilities behind every token."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..core.inference import evaluation_mode
from .generation import encode_prompt, neutral_generation_config


# Arguments of `generate` with which no setting changes the model's distribution.
_NEUTRAL = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class TokenCandidate(NamedTuple):
    """A possible next token, with its probabilities as in [`TokenChoice`]."""

    token: int
    text: str
    probability: float
    adjusted: float | None


@dataclass(frozen=True)
class TokenChoice:
    """
    A token of a continuation, and the alternatives it was chosen from.

    Attributes:
        token: its id.
        text: the text that the token adds.
        probability: the model's own, before penalty, temperature and cuts.
        adjusted: the probability after these; None in a beam search, which compares whole texts.
        entropy: entropy of the model's own distribution, in bits.
        rank: 1 if no other token has a higher probability.
        num_remaining: tokens that remain after the cuts; None in a beam search.
        candidates: the likeliest tokens in order, and the chosen one at the end if it is not among them.
    """

    token: int
    text: str
    probability: float
    adjusted: float | None
    entropy: float
    rank: int
    num_remaining: int | None
    candidates: tuple[TokenCandidate, ...]


@dataclass(frozen=True)
class Decoding:
    """A continuation by one method; `alternatives` are the next best texts of a beam search."""

    method: str
    choices: tuple[TokenChoice, ...]
    alternatives: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(choice.text for choice in self.choices)

    def figures(self) -> dict[str, float]:
        """
        Return the number of tokens, mean surprise and entropy (bits per token), and measures of repetition.

        `distinct-n` is the share of different n-grams among all (Li et al. 2016,
        https://huggingface.co/papers/1510.03055), `repeat-4` the share of repeated 4-grams (Welleck et al. 2019,
        https://huggingface.co/papers/1908.04319).
        """
        tokens, number = [choice.token for choice in self.choices], len(self.choices)
        surprise = -sum(math.log2(choice.probability) for choice in self.choices)
        return {
            "tokens": number,
            "surprise": surprise / number,
            "entropy": sum(choice.entropy for choice in self.choices) / number,
            **{f"distinct-{n}": distinct(tokens, n) for n in (1, 2, 3)},
            "repeat-4": 1.0 - distinct(tokens, 4),
        }


def distinct(tokens: Sequence[int], n: int) -> float:
    """Return the share of different n-grams among all; 1 if there is none."""
    ngrams = Counter(zip(*(tokens[first:] for first in range(n))))
    return len(ngrams) / ngrams.total() if ngrams else 1.0


def decoding_methods(
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    beams: int | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Return the usual decoding methods by name, as arguments of `generate`; cuts sample at temperature 1.

    Args:
        temperature, top_k, top_p, beams: each of its own method; 0.8, 50, 0.9 and 4 where None or 0.
        min_p: adds min-p sampling to the methods.
        repetition_penalty: applied in all methods.
    """
    temperature, top_k, top_p, beams = temperature or 0.8, top_k or 50, top_p or 0.9, max(beams or 4, 2)
    methods: dict[str, dict[str, Any]] = {
        "greedy": {},
        f"beam search, {beams} beams": {"num_beams": beams, "num_return_sequences": min(beams, 3)},
        f"temperature {temperature:g}": {"do_sample": True, "temperature": temperature},
        f"top-k {top_k}": {"do_sample": True, "top_k": top_k},
        f"top-p {top_p:g}": {"do_sample": True, "top_p": top_p},
    }
    if min_p:
        methods[f"min-p {min_p:g}"] = {"do_sample": True, "min_p": min_p}
    neutral = {**_NEUTRAL, "repetition_penalty": repetition_penalty or 1.0}
    return {name: {**neutral, **options} for name, options in methods.items()}


def compare_decodings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    methods: Mapping[str, Mapping[str, Any]],
    max_new_tokens: int = 50,
    seed: int = 0,
    candidates: int = 5,
) -> list[Decoding]:
    """
    Continue one prompt by each method, all from the same seed.

    The model's own generation settings (penalties, cuts, minimum lengths) are ignored, except its end tokens.

    Args:
        methods: arguments of `generate` by method name, as [`decoding_methods`] returns them.
        candidates: number of likeliest tokens to report for each position.

    Raises:
        InputError: the prompt is empty or too long.
    """
    ids, room = encode_prompt(model, tokenizer, prompt)
    decodings = []
    for name, options in methods.items():
        set_seed(seed)
        with evaluation_mode(model), neutral_generation_config(model, tokenizer) as generator:
            output = generator.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(max_new_tokens, room),
                return_dict_in_generate=True,
                output_logits=True,
                output_scores=True,
                **options,
            )
        # The row of each step's logits that the token came from: in a beam search, the beam that was extended.
        beams = getattr(output, "beam_indices", None)
        rows = [0] * len(output.logits) if beams is None else [row for row in beams[0].tolist() if row >= 0]
        tokens, choices = output.sequences[0].tolist(), []
        for step, row in enumerate(rows):
            context, token = tokens[: ids.shape[1] + step], tokens[ids.shape[1] + step]
            scores = None if beams is not None else output.scores[step][row]
            choices.append(_token_choice(tokenizer, context, token, output.logits[step][row], scores, candidates))
        alternatives = [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in output.sequences[1:]]
        decodings.append(Decoding(name, tuple(choices), tuple(alternatives)))
    return decodings


def _token_choice(
    tokenizer: PreTrainedTokenizerBase,
    context: list[int],
    token: int,
    logits: torch.Tensor,
    scores: torch.Tensor | None,
    candidates: int,
) -> TokenChoice:
    """Return a choice from the model's logits and the processed scores, both `(vocabulary,)`."""
    probabilities = logits.double().softmax(-1)
    adjusted = None if scores is None else scores.double().softmax(-1)

    def candidate(number: int) -> TokenCandidate:
        return TokenCandidate(
            number,
            token_text(tokenizer, context, number),
            float(probabilities[number]),
            None if adjusted is None else float(adjusted[number]),
        )

    likeliest = probabilities.topk(min(candidates, len(probabilities))).indices.tolist()
    return TokenChoice(
        *candidate(token),
        entropy=float(torch.special.entr(probabilities).sum()) / math.log(2),
        rank=int((probabilities > probabilities[token]).sum()) + 1,
        num_remaining=None if adjusted is None else int((adjusted > 0).sum()),
        candidates=tuple(map(candidate, likeliest if token in likeliest else [*likeliest, token])),
    )


def token_text(tokenizer: PreTrainedTokenizerBase, context: Sequence[int], token: int) -> str:
    """Return the text that a token adds behind its context: none while a character is incomplete."""
    context = [*context[-4:]]  # a character has at most four bytes
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (context, [*context, token])]
    return texts[1][len(commonprefix(texts)) :].rstrip("\ufffd")
