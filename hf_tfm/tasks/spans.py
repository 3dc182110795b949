"""Spans of a context as answers: questions and contexts as rows of a model, and the best spans out of its logits."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.inference import is_bidirectional
from .losses import LossFunction
from .squad import Question
from .task import Outputs


_MAX_ANSWER_TOKENS = 30
_CERTAIN = 1e9  # preference for "no answer" where there is no span at all


class ContextWindow(NamedTuple):
    """
    A row of a model's input: a question and as much of its context as fits.

    Attributes:
        question: number of the question.
        first: column of the first token of the context.
        spans: first character, and the one behind the last, of each token of the context.
        null: column that stands for "no answer here".
    """

    question: int
    first: int
    spans: list[tuple[int, int]]
    null: int


class Span(NamedTuple):
    """A possible answer: its text, its first character and the one behind its last, its score in logits."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class SpanAnswer:
    """
    A model's answer to a question.

    Attributes:
        spans: the best spans, the best one first.
        null: how much better "no answer" is than the best span, in logits.
    """

    spans: list[Span]
    null: float

    def text(self, threshold: float | None = None) -> str:
        """Return the best span's text; "" if "no answer" is better by more than the threshold (None: never)."""
        if not self.spans or (threshold is not None and self.null > threshold):
            return ""
        return self.spans[0].text

    def probabilities(self) -> list[float]:
        """Return the probability of each span, among these spans and "no answer"."""
        if not self.spans:
            return []
        best = self.spans[0].score
        weights = [math.exp(span.score - best) for span in self.spans]
        total = sum(weights) + math.exp(min(self.null, 700.0))
        return [weight / total for weight in weights]


def encode_questions(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    questions: Sequence[Question],
    max_length: int,
    stride: int,
) -> tuple[list[dict[str, Any]], list[ContextWindow]]:
    """
    Encode questions and contexts as rows of a model's inputs; a long context has several, which share `stride` tokens.

    A question is cut to half of `max_length`. "No answer" is the first token for encoders, as in BERT, and the last one
    for causal models, where only the last token has seen the context.

    Raises:
        InputError: the stride leaves no room, or the tokenizer does not know where its tokens are in the text.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} tells no places in the text: a fast tokenizer (tokenizer.json) is needed"
        )
    half = (max_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2
    if not 0 <= stride < half:
        raise InputError(
            f"stride {stride} must be 0 or more and below {half}, half of what max_length leaves: lower it"
        )
    texts = _cut(tokenizer, [question.question for question in questions], half)
    inputs = tokenizer(
        texts, [question.context for question in questions], truncation="only_second", max_length=max_length,
        stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False,
    )  # fmt: skip
    # Truncation set by this call must not be saved as the tokenizer's own.
    tokenizer.backend_tokenizer.no_truncation()
    owners, offsets = inputs.pop("overflow_to_sample_mapping"), inputs.pop("offset_mapping")
    bidirectional = is_bidirectional(model)
    windows = []
    for number, owner in enumerate(owners):
        sides = inputs.sequence_ids(number)
        length = sides.count(1)  # 0 if the context has nothing that the tokenizer keeps
        first = sides.index(1) if length else 0
        null = 0 if bidirectional else len(sides) - 1
        windows.append(
            ContextWindow(owner, first, [tuple(span) for span in offsets[number][first : first + length]], null)
        )
    return [dict(zip(inputs, row)) for row in zip(*inputs.values())], windows


def span_columns(
    rows: Sequence[dict[str, Any]], windows: Sequence[ContextWindow], questions: Sequence[Question]
) -> list[tuple[int, int, int]]:
    """
    Return the columns of the first and the last token of each row's answer, and the row's length `(rows, 3)`.

    Both columns are that of "no answer" where the answer is not wholly inside the row.
    """
    labels = []
    for number, (row, window) in enumerate(zip(rows, windows)):
        question = questions[window.question]
        length = len(row["input_ids"])
        label = (window.null, window.null, length)
        # At both ends of a context, an answer may have characters without a token, which the tokenizer drops.
        is_first, is_last = (
            not 0 <= n < len(windows) or windows[n].question != window.question for n in (number - 1, number + 1)
        )
        if (
            question.answers
            and window.spans
            and (is_first or window.spans[0][0] <= question.start)
            and (is_last or question.end <= window.spans[-1][1])
        ):
            tokens = [n for n, (a, b) in enumerate(window.spans) if b > question.start and a < question.end]
            if tokens:
                label = (window.first + tokens[0], window.first + tokens[-1], length)
        labels.append(label)
    return labels


def span_loss(smoothing: float = 0.0) -> LossFunction:
    """Return a `compute_loss_func` for Trainer: the mean over starts and ends of all accumulated batches."""

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        starts, ends, lengths = labels.unbind(-1)
        total: Any = 0.0
        for name, columns in (("start_logits", starts), ("end_logits", ends)):
            logits = outputs[name].float()
            padding = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
            scores = logits.masked_fill(padding, -torch.inf).log_softmax(-1)
            spread = scores.masked_fill(padding, 0.0).sum(-1) / lengths
            total -= ((1 - smoothing) * scores.gather(1, columns[:, None]).squeeze(1) + smoothing * spread).sum()
        # Trainer counts the three numbers of a row's labels.
        return total / 2 / (len(labels) if num_items_in_batch is None else num_items_in_batch / 3)

    return compute


def find_answers(
    logits: Outputs, windows: Sequence[ContextWindow], contexts: Sequence[str], best: int = 20
) -> list[SpanAnswer]:
    """
    Return the best spans of every context out of start and end logits `(rows, length, 2)`, padded on the right.

    The score of a span, of at most 30 tokens, is the sum of both logits. "No answer" has its lowest score among the
    rows of a context (Devlin et al. 2019).
    """
    spans_by_question: list[list[Span]] = [[] for _ in contexts]
    nulls = [math.inf] * len(contexts)
    for row, window in zip(logits, windows):
        if not window.spans:
            continue
        context = contexts[window.question]
        inside = row[window.first : window.first + len(window.spans)].astype(np.float64)
        ends = np.pad(inside[:, 1], (0, _MAX_ANSWER_TOKENS - 1), constant_values=-np.inf)
        scores = inside[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, _MAX_ANSWER_TOKENS)
        if 0 <= (null := window.null - window.first) < len(scores):
            scores[null, 0] = -np.inf  # in a causal model, the last token as a span stands for "no answer here"
        flat = scores.ravel()
        top = np.argpartition(flat, -min(best, flat.size))[-min(best, flat.size) :]
        for number in top[np.isfinite(flat[top])]:
            first, extra_tokens = divmod(int(number), _MAX_ANSWER_TOKENS)
            start, end = window.spans[first][0], window.spans[first + extra_tokens][1]
            while end < len(context) and unicodedata.combining(context[end]):
                end += 1  # an accent that the tokenizer drops belongs to the letter before it
            text = context[start:end]
            start += len(text) - len(text.lstrip())  # tokens of byte-level tokenizers begin with the blank
            if text.strip():
                span = Span(text.strip(), start, start + len(text.strip()), float(flat[number]))
                spans_by_question[window.question].append(span)
        nulls[window.question] = min(nulls[window.question], float(row[window.null].sum()))
    answers = []
    for spans, null in zip(spans_by_question, nulls):
        distinct: dict[tuple[int, int], Span] = {}
        for span in sorted(spans, key=lambda span: (-span.score, span.start, span.end)):
            distinct.setdefault((span.start, span.end), span)
        best_spans = list(distinct.values())[:best]
        answers.append(SpanAnswer(best_spans, null - best_spans[0].score if best_spans else _CERTAIN))
    return answers


def _cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int) -> list[str]:
    """Texts without what stands behind their first `limit` tokens."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        text if len(spans) <= limit else text[: spans[limit - 1][1]]
        for text, spans in zip(texts, encoded["offset_mapping"])
    ]
