"""What extractive question answering is: questions and their contexts, windows, spans, figures, baselines."""

import json
import math
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.inference import is_bidirectional
from ..core.statistics import Estimate, bootstrap
from ..data.records import Records
from .squad import exact_match, normalize, token_f1


METRICS = ("f1", "exact_match")
_MAX_ANSWER_TOKENS = 30
_SURE = 1e9  # by how much "no answer" is better where there is no span at all
_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Question:
    """
    A question about a context.

    Attributes:
        answers: texts that are right, the first one being what is trained; none if the context does not answer it.
        start: where the first one stands in the context, in characters.
    """

    question: str
    context: str
    answers: tuple[str, ...] = ()
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.answers[0])


def read_questions(
    records: Records, fields: tuple[str, str, str], skip: bool = False
) -> tuple[Records, list[Question]]:
    """
    Questions in SQuAD's shape: `answers` is `{"text": […], "answer_start": […]}`, without texts where the context does
    not say. A text alone is looked for in the context; in CSV `answers` may be JSON.

    Args:
        fields: where a record has its question, its context and its answers.
        skip: leave out records with an answer that is not where it should be, instead of raising.

    Returns: the records that are left, and their questions.

    Raises:
        InputError: a field is missing or of the wrong kind, or an answer is not where the record says.
    """
    question_field, context_field, answers_field = fields
    questions, kept = [], []
    texts = zip(
        records.texts(question_field, "question_field"),
        records.texts(context_field, "context_field"),
        records.values(answers_field, "answers_field"),
        records.places,
    )
    for number, (question, context, value, place) in enumerate(texts):
        answers, starts = _read_answers(value, answers_field, place)
        wrong = None
        for answer, start in zip(answers, starts):
            if start is not None and context[start : start + len(answer)] == answer:
                continue
            found = context.find(answer)
            if found < 0:
                wrong = f"answer {answer!r} is not in its context"
            elif start is not None:
                wrong = f"answer {answer!r} is not at {start} in its context, but at {found}"
        if wrong and not skip:
            raise InputError(
                f"{place}: {wrong}; mend or drop this record, or leave out all such with --skip_bad_answers"
            )
        if wrong:
            continue
        start = 0 if not answers else context.find(answers[0]) if starts[0] is None else starts[0]
        questions.append(Question(question, context, tuple(answers), start))
        kept.append(number)
    if not questions:
        raise InputError(f"{records.path}: no record has its answer in its context")
    return records.subset(kept), questions


def unfold(records: Records) -> Records:
    """The records themselves; of SQuAD's own files (`data`, `paragraphs`, `qas`) one record a question."""
    if not any("paragraphs" in part for record in records for part in _parts(record, "data")):
        return records
    flat, places = [], []
    for record, place in zip(records, records.places):
        for title in _parts(record, "data"):
            for paragraph in _parts(title, "paragraphs"):
                for asked in _parts(paragraph, "qas"):
                    flat.append({"context": paragraph.get("context"), **asked})
                    places.append(f"{place}, question {asked.get('id', len(flat))}")
    return Records(flat, places, records.path, records.more_paths)


def _parts(record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    several = record.get(field)
    return [part for part in several if isinstance(part, dict)] if isinstance(several, list) else []


def _read_answers(value: Any, field: str, place: str) -> tuple[list[str], list[int | None]]:
    """Texts and starts of one record's answers, which may be written in several ways."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InputError(f"{place}: field {field!r} is broken JSON ({error}); mend or drop it") from None
        else:
            value = {"text": [value] if value.strip() else []}
    if isinstance(value, list):  # SQuAD's own files: a list of answers, each with its start
        if not all(isinstance(answer, str | dict) for answer in value):
            raise InputError(f"{place}: field {field!r} must hold answers' texts; mend or drop this record")
        several = [answer if isinstance(answer, dict) else {"text": answer} for answer in value]
        value = {name: [answer.get(name) for answer in several] for name in ("text", "answer_start")}
    if not isinstance(value, dict) or "text" not in value:
        raise InputError(f"{place}: field {field!r} has no 'text'; it must be {{'text': […], 'answer_start': […]}}")
    texts, starts = (
        several if isinstance(several, list) else [] if several is None else [several]
        for several in (value["text"], value.get("answer_start"))
    )
    starts = starts or [None] * len(texts)
    if len(texts) != len(starts):
        raise InputError(f"{place}: {len(texts)} answers but {len(starts)} starts in field {field!r}")
    for text, start in zip(texts, starts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{place}: answer {text!r} in field {field!r} is no text; mend or drop this record")
        if start is not None and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
            raise InputError(
                f"{place}: answer_start {start!r} in field {field!r} is no place in a text; mend or drop it"
            )
    return texts, starts


class Window(NamedTuple):
    """
    A row of a model's input: the question and as much of its context as fits.

    Attributes:
        question: number of the question it is of.
        first: column of the first token of the context.
        spans: where each token of the context stands, in characters.
        null: the column that stands for "no answer here".
    """

    question: int
    first: int
    spans: list[tuple[int, int]]
    null: int


def encode_questions(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    questions: Sequence[Question],
    max_length: int,
    stride: int,
) -> tuple[list[dict[str, Any]], list[Window]]:
    """
    Inputs of a model, several for a long context, that overlap by `stride` tokens.

    A question is cut to half of `max_length`. "No answer" is the first token for encoders, as in BERT, and the last
    for causal models, where only that one has seen the context.

    Raises:
        InputError: the overlap leaves no room, or the tokenizer does not tell where its tokens stand in the text.
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
        windows.append(Window(owner, first, [tuple(span) for span in offsets[number][first : first + length]], null))
    return [dict(zip(inputs, row)) for row in zip(*inputs.values())], windows


def add_labels(rows: Sequence[dict[str, Any]], windows: Sequence[Window], questions: Sequence[Question]) -> None:
    """
    Put the columns of the answer's first and last token into the rows, and how long they are: columns behind are
    padding. Where the answer is not wholly inside, both are the column of "no answer".
    """
    for number, (row, window) in enumerate(zip(rows, windows)):
        question = questions[window.question]
        length = len(row["input_ids"])
        row["labels"] = (window.null, window.null, length)
        # At both ends of a context, blanks and what else the tokenizer drops may be of an answer and of no token.
        first, last = (
            not 0 <= n < len(windows) or windows[n].question != window.question for n in (number - 1, number + 1)
        )
        if (
            question.answers
            and window.spans
            and (first or window.spans[0][0] <= question.start)
            and (last or question.end <= window.spans[-1][1])
        ):
            tokens = [n for n, (a, b) in enumerate(window.spans) if b > question.start and a < question.end]
            if tokens:
                row["labels"] = (window.first + tokens[0], window.first + tokens[-1], length)


def span_loss(smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
    """A `compute_loss_func` for Trainer: the mean over starts and ends of all accumulated batches."""

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


class Span(NamedTuple):
    """A possible answer: its text, its first character and the one behind its last, its score in logits."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """What a model says: its best spans, the best first, and how much better than these "no answer" is."""

    spans: list[Span]
    null: float

    def text(self, threshold: float | None = None) -> str:
        """The best span's text; "" if "no answer" is better by more than the threshold (None: never)."""
        if not self.spans or (threshold is not None and self.null > threshold):
            return ""
        return self.spans[0].text

    def probabilities(self) -> list[float]:
        """Of each span, among these spans and "no answer"."""
        if not self.spans:
            return []
        best = self.spans[0].score
        weights = [math.exp(span.score - best) for span in self.spans]
        total = sum(weights) + math.exp(min(self.null, 700.0))
        return [weight / total for weight in weights]


def find_answers(
    logits: np.ndarray | Sequence[np.ndarray], windows: Sequence[Window], contexts: Sequence[str], best: int = 20
) -> list[Answer]:
    """
    The best spans of every context out of start and end logits `(windows, length, 2)` of rows padded on the right.

    A span's score is the sum of both logits, of at most 30 tokens; "no answer" is as good as in the window where it is
    least likely (Devlin et al. 2019).
    """
    found: list[list[Span]] = [[] for _ in contexts]
    nulls = [math.inf] * len(contexts)
    for row, window in zip(logits, windows):
        if not window.spans:
            continue
        context = contexts[window.question]
        inside = row[window.first : window.first + len(window.spans)].astype(np.float64)
        ends = np.pad(inside[:, 1], (0, _MAX_ANSWER_TOKENS - 1), constant_values=-np.inf)
        scores = inside[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, _MAX_ANSWER_TOKENS)
        if 0 <= (null := window.null - window.first) < len(scores):
            scores[null, 0] = -np.inf  # of a causal model: what the last token says by itself is "no answer here"
        flat = scores.ravel()
        top = np.argpartition(flat, -min(best, flat.size))[-min(best, flat.size) :]
        for number in top[np.isfinite(flat[top])]:
            first, more = divmod(int(number), _MAX_ANSWER_TOKENS)
            start, end = window.spans[first][0], window.spans[first + more][1]
            while end < len(context) and unicodedata.combining(context[end]):
                end += 1  # an accent that the tokenizer drops is of the letter before it
            text = context[start:end]
            start += len(text) - len(text.lstrip())  # tokens of byte-level tokenizers begin with the blank
            if text.strip():
                found[window.question].append(Span(text.strip(), start, start + len(text.strip()), float(flat[number])))
        nulls[window.question] = min(nulls[window.question], float(row[window.null].sum()))
    answers = []
    for spans, null in zip(found, nulls):
        several = {}
        for span in sorted(spans, key=lambda span: (-span.score, span.start, span.end)):
            several.setdefault((span.start, span.end), span)
        kept = list(several.values())[:best]
        answers.append(Answer(kept, null - kept[0].score if kept else _SURE))
    return answers


def score_answers(predictions: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
    """Token F1 and exact match `(questions, 2)` from 0 to 1 as SQuAD counts them, against the nearest right answer."""
    scores = np.zeros((len(questions), 2))
    for row, given, question in zip(scores, predictions, questions):
        if question.answers:
            row[:] = [max(score(given, answer) for answer in question.answers) for score in (token_f1, exact_match)]
        else:
            row[:] = float(not given)
    return scores


def figures(scores: np.ndarray) -> dict[str, float]:
    """F1 and exact match in percent from [`score_answers`]."""
    return dict(zip(METRICS, (100 * scores.mean(0)).tolist()))


def estimates(predictions: Sequence[str], questions: Sequence[Question]) -> dict[str, Estimate]:
    """F1 and exact match in percent, with intervals; where some questions have no answer also of both kinds apart."""
    scores = score_answers(predictions, questions)
    found = bootstrap(figures, scores)
    answerable = np.array([bool(question.answers) for question in questions])
    if not answerable.all():
        for name, rows in (("answerable", answerable), ("unanswerable", ~answerable)):
            if rows.any():
                found[f"f1 of {name}"] = bootstrap(figures, scores[rows])["f1"]
    return found


def choose_threshold(answers: Sequence[Answer], questions: Sequence[Question]) -> float | None:
    """The threshold for "no answer" with the highest F1; None if all questions have an answer."""
    if all(question.answers for question in questions):
        return None
    answered = score_answers([answer.text() for answer in answers], questions)[:, 0]
    refused = score_answers([""] * len(answers), questions)[:, 0]
    nulls = np.array([answer.null for answer in answers])
    order = np.argsort(nulls, kind="stable")
    # Answering the first n of them, in the order of how little "no answer" is preferred.
    totals = np.concatenate([[0.0], np.cumsum(answered[order])]) + np.append(np.cumsum(refused[order][::-1])[::-1], 0.0)
    # Those that are alike, as a question asked twice, are on one side of any threshold.
    apart = np.concatenate([[True], np.diff(nulls[order]) > 0, [True]])
    n = int(np.where(apart, totals, -1.0).argmax())
    return float(nulls[order[n - 1]]) if n else float(nulls.min()) - 1.0


def baselines(questions: Sequence[Question], train: Sequence[Question], seed: int = 0) -> dict[str, list[str]]:
    """
    Answers of what costs next to nothing: one to three words drawn anywhere; the sentence that shares the most words
    with the question; that sentence's words that are not in the question, as many as answers mostly have, from the
    first capitalised word or number on; and nothing at all where training has questions without an answer.
    """
    draw = random.Random(seed)
    lengths = sorted(len(_WORD.findall(question.answers[0])) for question in train if question.answers)
    usual = max(1, lengths[len(lengths) // 2]) if lengths else 1
    guesses: dict[str, list[str]] = {"random words": [], "best sentence": [], "best sentence's new words": []}
    for question in questions:
        words = list(_WORD.finditer(question.context))
        first = draw.randrange(len(words)) if words else 0
        guesses["random words"].append(_text(question.context, words[first : first + draw.randint(1, 3)]))
        asked = set(normalize(question.question))
        sentences = _SENTENCE_END.split(question.context)
        sentence = max(sentences, key=lambda text: len(asked & set(normalize(text))))
        guesses["best sentence"].append(sentence)
        there = list(_WORD.finditer(sentence))
        new = [n for n, word in enumerate(there) if not asked & set(normalize(word[0]))] or [0]
        named = [n for n in new if there and (there[n][0][0].isupper() or there[n][0][0].isdigit())] or new
        guesses["best sentence's new words"].append(_text(sentence, there[named[0] : named[0] + usual]))
    if not all(question.answers for question in train):
        guesses["no answer"] = [""] * len(questions)
    return guesses


def _text(text: str, words: Sequence[re.Match]) -> str:
    return text[words[0].start() : words[-1].end()] if words else ""


def _cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> list[str]:
    """Texts without what is beyond `most` tokens."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        text if len(spans) <= most else text[: spans[most - 1][1]]
        for text, spans in zip(texts, encoded["offset_mapping"])
    ]
