"""Forms of multiple choice: questions with options, of which one is right."""

import re
from collections.abc import Sequence
from typing import Any

from ..records import split_list
from ..tables import BadRow
from .form import FormRow, Record, check_text, is_missing, rows


@rows(
    "choices",
    "question-and-options",
    "a question, a list of options (or a field for each), and the right one as number from 0, letter or text",
    {"question": ("question",), "options": ("options",), "answer": ("answer",)},
    optional={"context": ()},
    example={"train.jsonl": '{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}\n'},
    gives=[{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}],
)
def read_question_and_options(row: FormRow) -> Record:
    options, labels = read_options(row["options"], row.names["options"])
    record: Record = {"question": row.text("question"), "options": options}
    if "context" in row.names:
        context = row.get("context")
        record["context"] = check_text(context, "the context") if context else ""
    if row.sample.reading.labelled:
        record["answer"] = find_answer(row["answer"], options, labels, row.names["answer"])
    return record


def read_options(value: Any, name: Any) -> tuple[list[str], list[str]]:
    """Returns the texts of the options and the labels that they have."""
    where = f"field {name!r}" if isinstance(name, str) else f"fields {', '.join(name)}"
    labels: Any = None
    if isinstance(value, list) and len(value) == 1 and not isinstance(name, str):
        value = value[0]
    options = split_list(value) if isinstance(value, str) and value.startswith("[") else value
    if isinstance(options, dict):
        options, labels = options.get("text"), options.get("label")
    if not isinstance(options, (list, tuple)) or len(options) < 2:
        raise BadRow(f"{where} must hold two options or more")
    for option in options:
        if is_missing(option) or not isinstance(option, (str, int, float)) or not str(option).strip():
            raise BadRow(f"an option in {where} is no text", f"{option!r:.30}")
    return [str(option) for option in options], [str(label) for label in labels or []]


def find_answer(answer: Any, options: Sequence[str], labels: Sequence[str], name: str) -> int:
    """Returns the number of the right option, given as its text, its label, a letter from A or a number from 0."""
    text = str(answer).strip()
    numbered = isinstance(answer, (int, float)) and not isinstance(answer, bool)
    if not numbered and list(options).count(text) == 1:
        return list(options).index(text)
    if text in labels:
        return list(labels).index(text)
    if len(text) == 1 and text.isascii() and text.isalpha():
        number = ord(text.upper()) - ord("A")
    else:
        number = int(float(text)) if re.fullmatch(r"\d+(\.0)?", text) else -1
    if not 0 <= number < len(options):
        raise BadRow(
            f"the answer in field {name!r} is none of the options: give a number from 0, a letter from A, or its text",
            f"{answer!r:.30} of {len(options)} options",
        )
    return number
