"""Forms of question answering: questions about a context that has their answers."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..records import read_cell
from ..tables import BadRow
from .form import FormRow, NoRecord, Record, Sample, check_text, explains, is_missing, rows
from .jobs import JOBS


# An answer_start that is wrong by so many characters is mended: offsets of bytes, or of a text that was stripped.
_MENDED_CHARACTERS = 10
_QUESTION = ("question", *JOBS["questions"].fields["question"].aliases)
_CONTEXT = ("context", *JOBS["questions"].fields["context"].aliases)
_EXAMPLE = '{"question": "Who sings?", "context": "Ann sings.", '
_RECORD = {"question": "Who sings?", "context": "Ann sings.", "answers": {"text": ["Ann"], "answer_start": [0]}}


@rows(
    "questions",
    "squad-columns",
    "a question, its context, an answer's text and its first character in columns of their own",
    {"question": _QUESTION, "context": _CONTEXT, "answers": ("answer_text", "answer", "text")},
    recognise=lambda sample: "answer_start" in sample.columns,
    example={"train.csv": "question,context,answer_text,answer_start\nWho sings?,Ann sings.,Ann,0\n"},
    gives=[_RECORD],
)
def read_squad_columns(row: FormRow) -> Record:
    text, start = row.get("answers", ""), row.raw("answer_start")
    return read_question(row, read_answers([{"text": text, "answer_start": start}] if text else [], "answer_start"))


@rows(
    "questions",
    "squad",
    "a question, its context, and answers with text and answer_start, both empty where the context has none",
    {"question": _QUESTION, "context": _CONTEXT, "answers": ("answers",)},
    example={"train.jsonl": _EXAMPLE + '"answers": {"text": ["Ann"], "answer_start": [0]}}\n'},
    gives=[_RECORD],
)
def read_squad(row: FormRow) -> Record:
    labelled = row.sample.reading.labelled
    return read_question(row, read_answers(row["answers"], row.names["answers"]) if labelled else None)


def read_question(row: FormRow, answers: dict[str, list[Any]] | None) -> Record:
    """Returns the record of a row with one question, with its answers if there must be some."""
    record: Record = {"question": row.text("question"), "context": row.text("context")}
    if row.sample.reading.labelled:
        record["answers"] = place_answers(answers or {}, record["context"], row.raw("is_impossible"), row.sample)
    return record


@rows(
    "questions",
    "squad-nested",
    "SQuAD's own files: articles or paragraphs with qas",
    {},
    recognise=lambda sample: any(next(iter_paragraphs(row), None) for row in sample.rows),
    example={
        "train.jsonl": '{"title": "Ann", "paragraphs": [{"context": "Ann sings.", "qas": '
        '[{"id": "1", "question": "Who sings?", "answers": [{"text": "Ann", "answer_start": 0}]}]}]}\n'
    },
    gives=[{"id": "1", **_RECORD}],
)
def read_squad_nested(row: FormRow) -> list[Record | BadRow]:
    row.used.update({"data", "paragraphs", "context", "qas"} & set(row.row))
    paragraphs = list(iter_paragraphs(row.row))
    if not paragraphs:
        raise NoRecord("no paragraphs with qas") if "header" in row.row else BadRow("no paragraphs with qas")
    records: list[Record | BadRow] = []
    for paragraph in paragraphs:
        for question in paragraph["qas"]:
            try:
                records.append(_read_qa(question, paragraph, row.sample))
            except BadRow as error:
                name = question.get("id", question.get("qid")) if isinstance(question, Mapping) else question
                error.part = f"question {name}"
                records.append(error)
    return records


def iter_paragraphs(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the paragraphs of a file of SQuAD (`data`), of an article (`paragraphs`), or the row if it is one."""
    inside = next((row[name] for name in ("data", "paragraphs") if isinstance(row.get(name), list)), None)
    for part in inside or ():
        if isinstance(part, Mapping):
            yield from iter_paragraphs(part)
    if inside is None and isinstance(row.get("qas"), list):
        yield row


def _read_qa(question: Any, paragraph: Mapping[str, Any], sample: Sample) -> Record:
    if not isinstance(question, Mapping):
        raise BadRow(f"a question is a {type(question).__name__}, not a mapping")
    record: Record = {
        "id": question.get("id", question.get("qid")),
        "question": check_text(question.get("question"), "the question"),
        "context": check_text(paragraph.get("context"), "the context"),
    }
    if sample.reading.labelled:
        spans = question.get("detected_answers")  # MRQA: text and char_spans
        if isinstance(spans, list):
            value: Any = [{"text": span["text"], "answer_start": span["char_spans"][0][0]} for span in spans]
        else:
            value = question.get("answers", [] if question.get("is_impossible") else None)
        answers = read_answers(value, "answers")
        record["answers"] = place_answers(answers, record["context"], question.get("is_impossible"), sample)
    return record


def place_answers(
    answers: Mapping[str, list[Any]], context: str, is_impossible: Any, sample: Sample
) -> dict[str, list[Any]]:
    """
    Returns answers with their places in the context. One without a start is searched; one that starts a few characters
    away is mended, and counted.

    Raises:
        BadRow: An answer is not in the context, or not near its start; or there is none though there should be one.
    """
    impossible = str(is_impossible).lower() in ("true", "1")
    if impossible and answers["text"]:
        sample.count("answers left out, since is_impossible is true")
        return {"text": [], "answer_start": []}
    if not answers["text"] and not is_missing(is_impossible) and not impossible:
        raise BadRow("no answer, though is_impossible is false")
    starts = []
    for text, start in zip(answers["text"], answers["answer_start"]):
        if start is not None and context.startswith(text, start):
            starts.append(start)
            continue
        places = _find_all(text, context)
        if not places:
            raise BadRow("an answer is not in its context", f"{text!r:.60}")
        if start is None and len(places) > 1:
            sample.count("answers without answer_start that occur more than once: the first place is taken")
        nearest = places[0] if start is None else min(places, key=lambda place: abs(place - start))
        if start is not None and abs(nearest - start) > _MENDED_CHARACTERS:
            raise BadRow(
                "an answer is not at its answer_start in the context",
                f"{text!r:.60} is not at {start} but at {', '.join(map(str, places[:3]))}",
            )
        if start is not None:
            sample.count(f"answers not at their answer_start, but up to {_MENDED_CHARACTERS} characters away: mended")
        starts.append(nearest)
    return {"text": list(answers["text"]), "answer_start": starts}


def _find_all(text: str, context: str) -> list[int]:
    places, place = [], context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    return places


def read_answers(value: Any, name: str) -> dict[str, list[Any]]:
    """
    Returns texts and starts (None where they are unknown) of answers in any notation that data sets have: mappings,
    lists, texts, and these in cells of a table, as JSON or as Python prints them.
    """
    if is_missing(value):
        raise BadRow(f"field {name!r} is {'null' if value is None else 'nan'}")
    if isinstance(value, str):
        value = _read_cell(value, name)
    if isinstance(value, list):  # as in SQuAD's own files, an answer an entry
        if other := [answer for answer in value if not isinstance(answer, (str, dict))]:
            raise BadRow(f"field {name!r} holds something else than answers' texts", f"{other[0]!r:.30}")
        answers = [answer if isinstance(answer, dict) else {"text": answer} for answer in value]
        value = {key: [answer.get(key) for answer in answers] for key in ("text", "answer_start")}
    if not isinstance(value, Mapping) or "text" not in value:
        raise BadRow(f"field {name!r} has no 'text'; it must be {{'text': […], 'answer_start': […]}}", f"{value!r:.40}")
    texts = _as_list(value["text"])
    starts = _as_list(value.get("answer_start")) or [None] * len(texts)
    if len(texts) != len(starts):
        raise BadRow(
            f"another number of starts than of answers in field {name!r}",
            f"{len(texts)} answers, {len(starts)} starts",
        )
    for text in texts:
        check_text(text, f"an answer in field {name!r}")
    return {"text": texts, "answer_start": [_read_start(start, name) for start in starts]}


def _read_start(start: Any, name: str) -> int | None:
    if is_missing(start) or start == "":
        return None
    try:
        number = int(float(start))
        if isinstance(start, bool) or number < 0 or number != float(start):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadRow(f"an answer_start in field {name!r} is no place in a text", f"{start!r:.30}") from None
    return number


def _read_cell(text: str, name: str) -> Any:
    """What a cell holds: a mapping or a list, else the text of one answer."""
    if not text.strip():
        return {"text": []}
    try:
        return read_cell(text)
    except ValueError as error:
        if text.lstrip().startswith("{"):
            raise BadRow(f"field {name!r} is broken JSON", str(error)) from None
        return [text]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


_NO_SPANS = (
    (("answers_spans",), "DROP: its answers are numbers, dates or several spans, without their places in the passage"),
    (("qa_pairs",), "DROP: its answers are numbers, dates or several spans, without their places in the passage"),
    (("entity_pages",), "TriviaQA: its answers have no places in a context; convert it to SQuAD's form first"),
    (("Data", "Domain"), "TriviaQA: its answers have no places in a context; convert it to SQuAD's form first"),
    (("story", "questions"), "CoQA: questions of a conversation, whose answers are free text"),
    (("supporting_facts",), "HotpotQA: its contexts are several paragraphs, and its answers have no places in them"),
    (
        ("annotations", "document"),
        "Natural Questions: its answers are tokens of a page; convert it to SQuAD's form first",
    ),
)


@explains("questions")
def explain_answers_without_spans(sample: Sample) -> str | None:
    if known := next((text for columns, text in _NO_SPANS if set(columns) <= set(sample.columns)), None):
        return f"is {known}; this model answers with a span of one context"
    answers = [row.get("answer") for row in sample.rows]
    if answers and all(str(answer).lower() in ("true", "false") for answer in answers):
        text = next((name for name in ("passage", "context") if name in sample.columns), "passage")
        return (
            "has answers that are true or false, as BoolQ: finetune_classification reads it with "
            f"--text_field question --text_pair_field {text} --label_field answer"
        )
    return None
