"""Answers out of passages (Lewis et al. 2020, https://huggingface.co/papers/2005.11401): prompt, answer, sources."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...core.errors import InputError
from ...core.limits import longest_input, refuse_unknown_tokens
from ...data.chat import ChatEncoder
from ...evaluate.predict import Predictor
from ...tasks.generation import generate_replies
from .retrieval import Index, Passage


_CITED = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Grounded:
    """
    An answer and what it was given.

    Attributes:
        sources: the passages that the prompt had under the numbers 1, 2, …, and how well they go with the question.
        found: how many passages were to be in the prompt; where fewer are, no more fitted.
        cited: the numbers of those that the answer names.
    """

    text: str
    sources: list[tuple[Passage, float]]
    found: int

    @property
    def cited(self) -> set[int]:
        named = {int(number) for number in _CITED.findall(self.text)}
        return named & set(range(1, len(self.sources) + 1))


def question_prompt(question: str, passages: Sequence[str]) -> str:
    """What the user says: the passages under their numbers, and the question."""
    if not passages:
        return f"Answer the question.\n\nQuestion: {question}\nAnswer with a few words."
    numbered = "\n\n".join(f"[{number}] {' '.join(text.split())}" for number, text in enumerate(passages, 1))
    return (
        f"Read the passages and answer the question.\n\n{numbered}\n\nQuestion: {question}\n"
        "Answer with a few words from the passages."
    )


def encode_question(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[str],
    max_new_tokens: int,
) -> tuple[list[int], int]:
    """
    Ids of the chat template around as many of the passages, the first ones, as leave room for an answer; how many.

    Raises:
        InputError: there is no chat template, it refuses the prompt, the question alone is too long, or the model knows
            fewer tokens.
    """
    if not tokenizer.chat_template:
        raise InputError("this tokenizer has no chat template, so the model was not made for questions")
    encoder, longest = ChatEncoder(tokenizer), longest_input(model.config)
    passages = [encoder.without_markup(text) for text in passages]  # documents open no turns
    for count in range(len(passages), -1, -1):
        message = {"role": "user", "content": question_prompt(question, passages[:count])}
        ids = encoder.prompt([message], "the prompt")
        if len(ids) + max_new_tokens <= longest:
            refuse_unknown_tokens(model, torch.tensor(ids))
            return ids, count
    raise InputError(
        f"the question has {len(ids)} tokens and its answer may have {max_new_tokens}; the model reads {longest}: ask "
        "in fewer words or lower the answer's tokens"
    )


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in a text, word for word but for case, punctuation and articles."""
    from ...tasks.squad import normalize

    said = normalize(text)
    right = (normalize(one) for one in answers)
    return any(said[i : i + len(one)] == one for one in right if one for i in range(len(said) - len(one) + 1))


def ask(
    index: Index,
    encoder: Predictor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: int = 3,
    max_new_tokens: int = 128,
    by: str = "encoder",
) -> Grounded:
    """
    The likeliest answer of a causal LM to a question, given the passages that go best with it, each text once.

    Args:
        passages: how many at most; fewer if no more fit.
        by: as [`Index.search`].

    Raises:
        InputError: as `encode_question` does; no passage has a word of the question (`by="words"`), or none fits.
    """
    if not question.strip():
        raise InputError("the question is empty; give a word")
    [hits] = index.search(encoder, [question], 4 * passages, by)
    found: dict[str, tuple[Passage, float]] = {}
    for hit in hits:
        if by != "words" or hit.score > 0:
            passage = index[hit.number]
            found.setdefault(" ".join(passage.text.split()), (passage, hit.score))
    sources = list(found.values())[:passages]
    if not sources:
        raise InputError("no passage has a word of the question; ask in other words, or without --search words")
    ids, count = encode_question(model, tokenizer, question, [passage.text for passage, _ in sources], max_new_tokens)
    if not count:
        raise InputError(
            f"the best passage does not fit into the prompt: the model reads {longest_input(model.config)} tokens, of "
            f"which {max_new_tokens} are for the answer; lower these, or index with shorter passages"
        )
    [reply] = generate_replies(model, tokenizer, [ids], max_new_tokens)
    return Grounded(reply.text, sources[:count], len(sources))
