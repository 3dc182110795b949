"""Measuring retrieval: the share of questions whose passage is found, and of answers that are right given passages."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...core.errors import explain
from ...core.statistics import Estimate, proportion
from ...evaluate.predict import Predictor
from ...evaluate.result_store import ResultStore
from ...tasks.generation import generate_replies
from ...tasks.squad import Question
from .cited_answers import contains_answer, encode_question
from .index import Index


# Questions that are answered, and stored, at a time.
_BATCH = 10


def write_documents(contexts: Sequence[str], path: Path) -> str:
    """Write contexts as a file to index and return its path; a file with the same contexts is left unchanged."""
    text = "".join(json.dumps({"text": context}, ensure_ascii=False) + "\n" for context in contexts)
    with explain(f"--output_dir {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return str(path)


def search_each_way(index: Index, encoder: Predictor, questions: Sequence[str], k: int) -> dict[str, list[list[int]]]:
    """Return the numbers of the `k` best passages for each question, by encoder, by words (BM25) and by both."""
    return {
        method: [[hit.number for hit in hits] for hits in index.search(encoder, questions, k, method)]
        for method in ("encoder", "words", "both")
    }


def answer_passages(index: Index, document: int, question: Question) -> set[int]:
    """Return the passages of a document that contain the question's whole answer at its place in the context."""
    first, last = np.searchsorted(index.documents, [document, document + 1])
    passages = ((number, index[number]) for number in range(first, last))
    return {number for number, p in passages if p.start <= question.start and question.end <= p.end}


def document_passages(index: Index, documents: Collection[int]) -> set[int]:
    """Return the passages of several documents."""
    bounds = (np.searchsorted(index.documents, [number, number + 1]) for number in documents)
    return {number for first, last in bounds for number in range(first, last)}


def estimate_recall(
    hits: Mapping[str, Sequence[Sequence[int]]], relevant: Sequence[set[int]], recall_at: Sequence[int]
) -> dict[str, Estimate]:
    """
    Return the recall at several cutoffs for each search method, and the share of questions that can be found at all.

    Args:
        hits: numbers of the best passages for each question, by method.
        relevant: numbers of the passages with each question's answer.
    """
    figures = {}
    for method, passages in hits.items():
        for cutoff in recall_at:
            right = [bool(set(top[:cutoff]) & answers) for top, answers in zip(passages, relevant)]
            figures[f"recall@{cutoff} {method}"] = proportion(sum(right), len(relevant))
    figures["can be found"] = proportion(sum(map(bool, relevant)), len(relevant))
    return figures


class AnswerFigures(NamedTuple):
    """Share of right answers and some answers to print, both by the passages that the prompt had."""

    estimates: dict[str, Estimate]
    samples: dict[str, list[dict[str, str]]]


def measure_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    passages: Mapping[str, Sequence[Sequence[str]]],
    max_new_tokens: int,
    results: ResultStore,
) -> AnswerFigures:
    """
    Return the share of greedy answers that contain a right one, for each choice of passages in the prompt.

    Args:
        passages: the texts in the prompt of each question, by the name of the choice.
        results: keeps finished batches.
    """
    estimates, samples = {}, {}
    for name, texts in passages.items():
        answers: list[str] = []
        for batch in _batches([(q.question, list(several)) for q, several in zip(questions, texts, strict=True)]):
            settings = {"task": "answers", "asked": batch, "max_new_tokens": max_new_tokens}
            answers += results.compute_once(settings, partial(_answer, model, tokenizer, batch, max_new_tokens))
            print(f"{name}: {len(answers)} of {len(questions)}", flush=True)
        right = sum(contains_answer(answer, question.answers) for answer, question in zip(answers, questions))
        estimates[f"right with {name}"] = proportion(right, len(questions))
        samples[name] = [{"question": q.question, "answer": a} for q, a in zip(questions[:5], answers)]
    return AnswerFigures(estimates, samples)


def _batches(prompts: list[tuple[str, list[str]]]) -> Iterator[list[tuple[str, list[str]]]]:
    for start in range(0, len(prompts), _BATCH):
        yield prompts[start : start + _BATCH]


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[tuple[str, list[str]]],
    max_new_tokens: int,
) -> list[str]:
    """Return the greedy answers to questions with their passages."""
    ids = [encode_question(model, tokenizer, question, texts, max_new_tokens)[0] for question, texts in prompts]
    return [reply.text for reply in generate_replies(model, tokenizer, ids, max_new_tokens, batch_size=_BATCH)]
