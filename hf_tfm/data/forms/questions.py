"""Forms of question answering: questions about a context that has their answers."""

import json
from collections.abc import Mapping
from typing import Any

from ..tables import BadRow
from .form import FormRow, Record, check_text, rows


@rows(
    "questions",
    "squad",
    "a question, its context, and answers with text and answer_start, both empty where the context has none",
    {"question": ("question",), "context": ("context",), "answers": ("answers",)},
    example={
        "train.jsonl": '{"question": "Who sings?", "context": "Ann sings.", '
        '"answers": {"text": ["Ann"], "answer_start": [0]}}\n'
    },
    gives=[{"question": "Who sings?", "context": "Ann sings.", "answers": {"text": ["Ann"], "answer_start": [0]}}],
)
def read_squad(row: FormRow) -> Record:
    record: Record = {"question": row.text("question"), "context": row.text("context")}
    if row.sample.reading.labelled:
        record["answers"] = read_answers(row["answers"], row.names["answers"])
    return record


@rows(
    "questions",
    "squad-nested",
    "SQuAD's own files: paragraphs with qas",
    {"question": ("paragraphs",)},
    shape=lambda values: all("qas" in paragraph for paragraph in values["question"]),
    example={
        "train.jsonl": '{"title": "Ann", "paragraphs": [{"context": "Ann sings.", "qas": '
        '[{"id": "1", "question": "Who sings?", "answers": [{"text": "Ann", "answer_start": 0}]}]}]}'
    },
    gives=[
        {
            "id": "1",
            "question": "Who sings?",
            "context": "Ann sings.",
            "answers": {"text": ["Ann"], "answer_start": [0]},
        }
    ],
)
def read_squad_nested(row: FormRow) -> list[Record]:
    records = []
    for paragraph in row["question"]:
        for question in paragraph["qas"]:
            record = {
                "id": question.get("id"),
                "question": check_text(question.get("question"), "the question"),
                "context": check_text(paragraph.get("context"), "the context"),
            }
            if row.sample.reading.labelled:
                record["answers"] = read_answers(question.get("answers"), "answers")
            records.append(record)
    return records


def read_answers(value: Any, name: str) -> dict[str, list[Any]]:
    """Returns texts and starts (None where they are unknown) of answers in any notation that data sets have."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise BadRow(f"field {name!r} is broken JSON", str(error)) from None
        else:
            value = {"text": [value] if value.strip() else []}
    if isinstance(value, list):  # as in SQuAD's own files, an answer an entry
        if not all(isinstance(answer, (str, dict)) for answer in value):
            raise BadRow(f"field {name!r} holds something else than answers' texts")
        answers = [answer if isinstance(answer, dict) else {"text": answer} for answer in value]
        value = {key: [answer.get(key) for answer in answers] for key in ("text", "answer_start")}
    if not isinstance(value, Mapping) or "text" not in value:
        raise BadRow(f"field {name!r} has no 'text'; it must be {{'text': […], 'answer_start': […]}}")
    texts = _as_list(value["text"])
    starts = _as_list(value.get("answer_start")) or [None] * len(texts)
    if len(texts) != len(starts):
        raise BadRow(f"another number of starts than of answers in field {name!r}")
    for text, start in zip(texts, starts):
        check_text(text, f"an answer in field {name!r}")
        if start is not None and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
            raise BadRow(f"an answer_start in field {name!r} is no place in a text", f"{start!r:.30}")
    return {"text": texts, "answer_start": starts}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
