"""Forms of multiple choice: questions with options, of which one is right."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..records import read_cell
from ..tables import BadRow
from .cells import sample_cells, split_lines
from .form import FormRow, NoRecord, Placed, Reading, Record, Sample, check_text, explains, is_missing, lines, rows
from .jobs import JOBS


_QUESTION, _CONTEXT, _OPTIONS, _ANSWER = (
    (name, *JOBS["choices"].fields[name].aliases) for name in ("question", "context", "options", "answer")
)
# Fields of options are called by a word and a number or letter (ending0, option_1, answerA, opa), or by letters alone.
_FIELD_OF_OPTION = re.compile(r"(ending|option|choice|candidate|answer|sol|opt?)[ _]?(\d|[a-h])", re.IGNORECASE)


@rows(
    "choices",
    "swag",
    "SWAG's two sentences: sent1, and the beginning sent2 of four endings",
    {"question": ("sent2",), "context": ("sent1",), "answer": ("label",)},
    recognise=lambda sample: bool(fields_of_options(sample.columns)),
    example={
        "train.csv": "sent1,sent2,ending0,ending1,ending2,ending3,label\n"
        "Ann stands up.,She,sings.,sinks.,sits.,sells.,0\n"
    },
    gives=[
        {
            "question": "She",
            "context": "Ann stands up.",
            "options": ["sings.", "sinks.", "sits.", "sells."],
            "answer": 0,
        }
    ],
)
def read_swag(row: FormRow) -> Record:
    options = read_fields_of_options(row)
    begun, first = str(row.get("question", "")).strip(), row.text("context")
    asked = {"question": begun, "context": first} if begun else {"question": first}
    return with_answer(row, {**asked, "options": options}, [])


@rows(
    "choices",
    "hellaswag",
    "HellaSwag's beginning (ctx, or ctx_a and ctx_b) and endings",
    {"options": ("endings",), "answer": ("label",)},
    recognise=lambda sample: bool({"ctx", "ctx_a"} & set(sample.columns)),
    example={"train.jsonl": '{"ctx": "Ann stands up. She", "endings": ["sings.", "sinks."], "label": "1"}\n'},
    gives=[{"question": "Ann stands up. She", "options": ["sings.", "sinks."], "answer": 1}],
)
def read_hellaswag(row: FormRow) -> Record:
    parts = [str(part) for name in ("ctx_a", "ctx_b") if not is_missing(part := row.raw(name))]
    begun = check_text(row.raw("ctx") or " ".join(parts).strip(), "the beginning (ctx)")
    options, labels = read_options(row["options"], row.names["options"])
    return with_answer(row, {"question": begun, "options": options}, labels)


@rows(
    "choices",
    "race",
    "RACE's own files: an article with lists of questions, options and answers",
    {"context": ("article",), "question": ("questions",), "options": ("options",), "answer": ("answers",)},
    shape=lambda values: isinstance(values["question"], list),
    example={
        "train.jsonl": '{"article": "Ann sings.", "questions": ["Who sings?"], '
        '"options": [["Ann", "Bob"]], "answers": ["A"], "id": "1.txt"}\n'
    },
    gives=[
        {
            "id": "1.txt, question 1",
            "question": "Who sings?",
            "context": "Ann sings.",
            "options": ["Ann", "Bob"],
            "answer": 0,
        }
    ],
)
def read_race(row: FormRow) -> list[Record | BadRow]:
    labelled = row.sample.reading.labelled
    names = ("question", "options", *(["answer"] if labelled else []))
    return read_article(row.raw("id"), row["context"], *(row[name] for name in names))


def read_article(name: Any, article: Any, questions: Any, options: Any, answers: Any = None) -> list[Record | BadRow]:
    """Returns a record for each question about an article."""
    context = check_text(article, "the article")
    counts = {len(part) if isinstance(part, list) else 0 for part in (questions, options, answers) if part is not None}
    if len(counts) != 1 or 0 in counts:
        raise BadRow("not as many questions as options and answers")
    records: list[Record | BadRow] = []
    for number, (question, several) in enumerate(zip(questions, options)):
        try:
            record: Record = {"id": f"{name}, question {number + 1}"} if name is not None else {}
            texts, labels = read_options(several, "options")
            record |= {"question": check_text(question, "a question"), "context": context, "options": texts}
            if answers is not None:
                record["answer"] = find_answer(answers[number], texts, labels, "answers")
            records.append(record)
        except BadRow as error:
            error.part = f"question {number + 1}"
            records.append(error)
    return records


@lines(
    "choices",
    "race-files",
    "RACE as it is published: folders of files with one article each",
    lambda sample: bool(sample) and sample[0].startswith("{") and '"questions"' in sample[0],
    suffixes=(".txt",),
    example={
        "race/train/1.txt": '{"answers": ["B"], "options": [["Ann", "Bob"]], "questions": ["Who sings?"], '
        '"article": "Bob sings.", "id": "high1.txt"}'
    },
    gives=[
        {
            "id": "high1.txt, question 1",
            "question": "Who sings?",
            "context": "Bob sings.",
            "options": ["Ann", "Bob"],
            "answer": 1,
        }
    ],
)
def read_race_files(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    for place, line in placed:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answers = [row["answers"]] if reading.labelled else []
            for record in read_article(row.get("id"), row["article"], row["questions"], row["options"], *answers):
                yield place, record
        except BadRow as error:
            yield place, error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield place, BadRow("is no article of RACE", f"{type(error).__name__}: {error}")


@rows(
    "choices",
    "copa",
    "COPA's premise with two choices, of which one is its cause or effect",
    {"context": ("premise",), "question": ("question", "asks-for"), "answer": ("label", "most-plausible-alternative")},
    shape=lambda values: values["question"] in ("cause", "effect"),
    example={"train.jsonl": '{"premise": "It rained.", "choice1": "I sat.", "choice2": "I got wet.", '
                            '"question": "effect", "label": 1}\n'},
    gives=[{"question": "What happened as a result?", "context": "It rained.",
            "options": ["I sat.", "I got wet."], "answer": 1}],
)  # fmt: skip
def read_copa(row: FormRow) -> Record:
    asked = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}.get(row["question"])
    if asked is None:
        raise BadRow("the question is neither cause nor effect", f"{row['question']!r:.30}")
    options = read_fields_of_options(row)
    record = {"question": asked, "context": row.text("context"), "options": options}
    return with_answer(row, record, fields_of_options(row.sample.columns))


@rows(
    "choices",
    "stem-and-choices",
    "ARC's, OpenBookQA's and CommonsenseQA's own files: a question with stem and choices, and answerKey",
    {"question": ("question",), "answer": _ANSWER},
    shape=lambda values: "stem" in values["question"] and "choices" in values["question"],
    example={"train.jsonl": '{"question": {"stem": "2 + 2?", "choices": [{"text": "3", "label": "A"}, '
                            '{"text": "4", "label": "B"}]}, "answerKey": "B"}\n'},
    gives=[{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}],
)  # fmt: skip
def read_stem_and_choices(row: FormRow) -> Record:
    question = row["question"]
    if not isinstance(question, Mapping):
        raise BadRow("the question has no stem and choices", f"{question!r:.40}")
    options, labels = read_options(question.get("choices"), "choices")
    return with_answer(row, {"question": check_text(question.get("stem"), "the stem"), "options": options}, labels)


@rows(
    "choices",
    "question-and-options",
    "a question, a list of options (or a field for each), and the right one as number from 0, letter, label or text",
    {"question": _QUESTION, "options": _OPTIONS, "answer": _ANSWER},
    optional={"context": _CONTEXT},
    example={"train.jsonl": '{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}\n'},
    gives=[{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}],
)
def read_question_and_options(row: FormRow) -> Record:
    options, labels = read_options(row["options"], row.names["options"])
    if isinstance(row.names["options"], (list, tuple)):
        labels = list(row.names["options"])
    return with_answer(row, {**read_asked(row), "options": options}, labels)


@rows(
    "choices",
    "options-by-field",
    "a question and a field for each option: option1 …, ending0 …, answerA …, sol1 …, or A, B, C, D",
    {"question": _QUESTION, "answer": _ANSWER},
    optional={"context": _CONTEXT},
    recognise=lambda sample: bool(fields_of_options(sample.columns)),
    example={"train.jsonl": '{"goal": "Boil an egg", "sol1": "Heat it in water.", "sol2": "Eat it.", "label": 0}\n'},
    gives=[{"question": "Boil an egg", "options": ["Heat it in water.", "Eat it."], "answer": 0}],
)
def read_options_by_field(row: FormRow) -> Record:
    options, fields = read_fields_of_options(row), fields_of_options(row.sample.columns)
    row.sample.note(f"options from {', '.join(fields)} ({row.sample.reading.option_of('options')} names others)")
    return with_answer(row, {**read_asked(row), "options": options}, fields)


@rows(
    "choices",
    "options-in-question",
    "a question whose text ends in its options, (A) … (B) …, as in ARC's CSV and QuaRel",
    {"question": _QUESTION, "answer": _ANSWER},
    shape=lambda values: bool(_split_question(values["question"])[1]),
    example={"ARC.csv": "question,AnswerKey\n2 + 2? (A) 3 (B) 4,B\n"},
    gives=[{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}],
)
def read_options_in_question(row: FormRow) -> Record:
    question, options, labels = _split_question(row.text("question"))
    if not options:
        raise BadRow("the question has no options (A) … (B) …", f"{row['question']!r:.40}")
    return with_answer(row, {"question": question, "options": options}, labels)


def _split_question(text: str) -> tuple[str, list[str], list[str]]:
    """Returns a question, its options and their letters or numbers, which must count from (A) or (1)."""
    question, *parts = re.split(r"\(([A-H]|[1-8])\)", text)
    labels, options = parts[::2], [option.strip() for option in parts[1::2]]
    if "".join(labels) not in ("ABCDEFGH"[: len(labels)], "12345678"[: len(labels)]) or len(labels) < 2:
        return text, [], []
    return (question.strip(), options, labels) if question.strip() and all(options) else (text, [], [])


@rows(
    "choices",
    "distractors",
    "SciQ's question with the right answer and distractors; the options are sorted by the alphabet",
    {"question": _QUESTION, "answer": ("correct_answer",)},
    optional={"context": ("support", *_CONTEXT)},
    recognise=lambda sample: "distractor1" in sample.columns,
    example={"train.jsonl": '{"question": "2 + 2?", "distractor1": "3", "distractor2": "5", "correct_answer": "4"}\n'},
    gives=[{"question": "2 + 2?", "options": ["3", "4", "5"], "answer": 1}],
)
def read_distractors(row: FormRow) -> Record:
    row.sample.note("the options are sorted by the alphabet, so that the right one is not always the first")
    names = [name for name in row.sample.columns if re.fullmatch(r"distractor\d", name)]
    options, _ = read_options(sorted({str(row["answer"]), *map(str, row.raw(names))}), names)
    return with_answer(row, {**read_asked(row), "options": options}, [])


@lines(
    "choices",
    "mmlu-csv",
    "MMLU's own files without a header: the question, its options, and the letter of the right one",
    lambda sample: _is_mmlu(sample_cells(sample, ",")),
    suffixes=(".csv",),
    headless=True,
    example={"algebra_test.csv": '"2 + 2, that is?",3,4,5,6,B\n1 + 1?,2,3,4,5,A\n'},
    gives=[
        {"question": "2 + 2, that is?", "options": ["3", "4", "5", "6"], "answer": 1},
        {"question": "1 + 1?", "options": ["2", "3", "4", "5"], "answer": 0},
    ],
)
def read_mmlu(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    for place, cells in split_lines(placed, ","):
        try:
            if isinstance(cells, BadRow) or not _is_mmlu([cells]):
                raise cells if isinstance(cells, BadRow) else BadRow("is not a question, options and a letter")
            question, *options, letter = cells
            record: Record = {"question": check_text(question, "the question"), "options": options}
            if reading.labelled:
                record["answer"] = find_answer(letter, options, [], "answer")
            yield place, record
        except BadRow as error:
            yield place, error


def _is_mmlu(table: Sequence[Sequence[str]]) -> bool:
    return bool(table) and all(len(cells) > 3 and cells[-1].strip() in tuple("ABCDEFGH") for cells in table)


def fields_of_options(columns: Sequence[str]) -> list[str]:
    """Returns the fields that hold an option each, in their order; none if there are not two."""
    families: dict[str, list[str]] = {}
    for name in columns:
        if match := _FIELD_OF_OPTION.fullmatch(name):
            families.setdefault(match[1].lower(), []).append(name)
        elif len(name) == 1 and name in "ABCDEFGH":
            families.setdefault("", []).append(name)
    best = max(families.values(), key=len, default=[])
    return sorted(best) if len(best) > 1 else []


def read_fields_of_options(row: FormRow) -> list[str]:
    names = fields_of_options(row.sample.columns)
    values = [value for value in row.raw(names) if not is_missing(value) and value != ""]  # some have fewer
    return read_options(values, names)[0]


def read_asked(row: FormRow) -> Record:
    """Returns the question, and the context if the file has one."""
    record: Record = {"question": row.text("question")}
    if "context" in row.names:
        context = row.get("context")
        record["context"] = check_text(context, "the context") if context else ""
    return record


def with_answer(row: FormRow, record: Record, labels: Sequence[str]) -> Record:
    """Returns the record with the number of the right option if there must be one."""
    if not row.sample.reading.labelled:
        return record
    answer, name, options = row["answer"], row.names["answer"], record["options"]
    if str(answer).strip() in ("", "-1", "-1.0"):
        raise NoRecord(f"no right option is given, {name!r} is {str(answer).strip() or 'blank'}")
    if str(answer).strip() not in (*labels, *options) and _counts_from_one(row.sample, name, len(options)):
        row.sample.note(f"{name!r} counts the options from 1: it is never 0, and as high as their number")
        answer = int(float(answer)) - 1
    return {**record, "answer": find_answer(answer, options, labels, name)}


def _counts_from_one(sample: Sample, name: str, num_options: int) -> bool:
    def numbers() -> list[float]:
        values = [str(row.get(name)).strip() for row in sample.rows]
        return [float(value) for value in values if re.fullmatch(r"\d+(\.0)?", value)] if values else []

    found = sample.once(f"numbers in {name}", numbers)
    return bool(found) and min(found) >= 1 and max(found) == num_options


def read_options(value: Any, name: Any) -> tuple[list[str], list[str]]:
    """Returns the texts of the options and the labels that they have."""
    where = f"field {name!r}" if isinstance(name, str) else f"fields {', '.join(name)}"
    labels: Any = None
    if isinstance(value, list) and len(value) == 1 and not isinstance(name, str):
        value = value[0]
    options: Any = value
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            options = read_cell(value)
        except ValueError as error:
            raise BadRow(f"{where} holds a list that cannot be read", f"{error}: {value!r:.40}") from None
    if isinstance(options, dict) and "text" in options:
        options, labels = options["text"], options.get("label")
    elif isinstance(options, dict):
        options, labels = list(options.values()), list(options)
    elif isinstance(options, list) and options and all(isinstance(option, Mapping) for option in options):
        labels = [option["label"] for option in options if "label" in option]
        options = [option.get("text") for option in options]
    if not isinstance(options, (list, tuple)) or len(options) < 2:
        raise BadRow(f"{where} must hold two options or more", f"{value!r:.40}")
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


@explains("choices")
def explain_other_questions(sample: Sample) -> str | None:
    if {"question", "passage"} <= set(sample.columns):
        label = "label" if "label" in sample.columns else "answer"
        if {str(row.get(label)).lower() for row in sample.rows} <= {"true", "false", "0", "1"}:
            return (
                "has questions with answers that are true or false and no options, as BoolQ: finetune_classification "
                f"reads it with --text_field question --text_pair_field passage --label_field {label}"
            )
    return None
