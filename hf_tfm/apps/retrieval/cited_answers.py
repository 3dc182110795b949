"""Answers from passages with citations (Lewis et al. 2020, https://huggingface.co/papers/2005.11401)."""

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
from .index import Index
from .passages import Passage


_CITED = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class CitedAnswer:
    """
    An answer and its sources.

    Attributes:
        sources: the passages of the prompt, numbered from 1, with their scores.
        num_found: number of passages that were found; if there are fewer sources, the others did not fit.
        cited: numbers of the sources that the answer names.
    """

    text: str
    sources: list[tuple[Passage, float]]
    num_found: int

    @property
    def cited(self) -> set[int]:
        return {int(number) for number in _CITED.findall(self.text)} & set(range(1, len(self.sources) + 1))


def question_prompt(question: str, passages: Sequence[str]) -> str:
    """Return the message of the user: the numbered passages and the question."""
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
    Return the token ids of the prompt and the number of passages in it: as many as leave room for the answer.

    Raises:
        InputError: there is no chat template, it refuses the prompt, the question alone is too long, or the model has
            fewer embeddings than the tokenizer has tokens.
    """
    if not tokenizer.chat_template:
        raise InputError("this tokenizer has no chat template, so the model was not trained for questions")
    encoder, longest = ChatEncoder(tokenizer), longest_input(model.config)
    passages = [encoder.without_markup(text) for text in passages]  # a document must not open a turn
    for count in range(len(passages), -1, -1):
        message = {"role": "user", "content": question_prompt(question, passages[:count])}
        ids = encoder.prompt([message], "the prompt")
        if len(ids) + max_new_tokens <= longest:
            refuse_unknown_tokens(model, torch.tensor(ids))
            return ids, count
    raise InputError(
        f"the question has {len(ids)} tokens and its answer may have {max_new_tokens}; the model reads {longest}: "
        "shorten the question or lower --max-new-tokens"
    )


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether a text contains one of the answers as whole words, without case, punctuation and articles."""
    from ...tasks.squad import normalize

    words = normalize(text)
    expected = [normalize(answer) for answer in answers]
    return any(
        words[start : start + len(answer)] == answer
        for answer in expected
        if answer
        for start in range(len(words) - len(answer) + 1)
    )


def ask(
    index: Index,
    encoder: Predictor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: int = 3,
    max_new_tokens: int = 128,
    by: str = "encoder",
) -> CitedAnswer:
    """
    Answer a question greedily with a causal LM, given the passages that match it best, without duplicates.

    Args:
        passages: maximum number of passages; fewer if no more fit.
        by: as in [`Index.search`].

    Raises:
        InputError: as `encode_question` does; no passage has a word of the question (`by="words"`), or none fits.
    """
    if not question.strip():
        raise InputError("the question is empty; give a word")
    [hits] = index.search(encoder, [question], 4 * passages, by)
    matches: dict[str, tuple[Passage, float]] = {}
    for hit in hits:
        if by != "words" or hit.score > 0:
            passage = index[hit.number]
            matches.setdefault(" ".join(passage.text.split()), (passage, hit.score))
    sources = list(matches.values())[:passages]
    if not sources:
        raise InputError("no passage has a word of the question; ask in other words, or without --search words")
    ids, count = encode_question(model, tokenizer, question, [passage.text for passage, _ in sources], max_new_tokens)
    if not count:
        raise InputError(
            f"the best passage does not fit into the prompt: the model reads {longest_input(model.config)} tokens, of "
            f"which {max_new_tokens} are for the answer; lower these, or index with shorter passages"
        )
    [reply] = generate_replies(model, tokenizer, [ids], max_new_tokens)
    return CitedAnswer(reply.text, sources[:count], len(sources))
