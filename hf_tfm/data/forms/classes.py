"""Forms of classification: texts or pairs with a label, several labels or a number."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import DataFile, named_split
from ..plain_text import read_plain_text
from ..records import read_list
from ..tables import BadRow
from .form import FormRow, NoRecord, Placed, Reading, Record, Sample, is_missing, lines, paths, rows
from .jobs import JOBS


_TEXT = ("text", *JOBS["classification"].fields["text"].aliases)
_LABEL = ("label", *JOBS["classification"].fields["label"].aliases)
_FASTTEXT = re.compile(r"__label__(\S+)\s+")
_PAIR = {
    "text": ("sentence1", "premise", "question1", "text1"),
    "text_pair": ("sentence2", "hypothesis", "question2", "text2"),
    "label": ("label", "gold_label", "labels", "is_duplicate", "score", "similarity"),
}


def read_texts(row: FormRow) -> Record:
    """Returns the text, and the second one of a pair."""
    record: Record = {"text": row.text("text")}
    if "text_pair" in row.names:
        record["text_pair"] = row.text("text_pair")
    return record


def _read(row: FormRow, label: Any = None) -> Record:
    record = read_texts(row)
    if row.sample.reading.labelled or row.get("label") is not None:
        record["label"] = label if label is not None else _single_label(row)
    if isinstance(name := row.raw(f"{row.names.get('label')}_text"), str):
        record["label_text"] = name
    return record


def _single_label(row: FormRow) -> Any:
    """Returns a label as it stands. Raises `NoRecord` for what data sets write where there is none."""
    value, name = row["label"], row.names["label"]
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"field {name!r} is blank")
        if value.strip()[0] in "[{":
            raise BadRow(f"the label in field {name!r} looks like a list that cannot be read", f"{value!r:.40}")
    if value == "-" and "+" not in _sampled(row.sample, name):
        raise NoRecord(f"no label, {name!r} is '-'")
    if str(value) in ("-1", "-1.0") and not {"-1", "1"} <= _sampled(row.sample, name) <= {"-1", "0", "1"}:
        raise NoRecord(f"no label, {name!r} is -1")
    return value


def _sampled(sample: Sample, name: str) -> set[str]:
    """The labels in the first rows, as text."""
    return {str(value) for row in sample.rows if not is_missing(value := row.get(name))}


def _is_hot(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(value in (0, 1) and not isinstance(value, str) for value in values)


def _as_list(value: Any) -> list[Any] | None:
    """The list that a value is, or that a cell of CSV holds; None for anything else."""
    return value if isinstance(value, list) else read_list(value) if isinstance(value, str) else None


@paths(
    "classification",
    "class-folders",
    "a folder of text files for each class, perhaps inside a folder for each split",
    lambda places: len(places) == 1 and places[0].is_dir() and bool(_class_files(places[0])),
    example={"reviews/good/1.txt": "A fine film.", "reviews/bad/1.txt": "A dull film."},
    gives=[{"text": "A dull film.", "label": "bad"}, {"text": "A fine film.", "label": "good"}],
)
def read_class_folders(places: Sequence[Path], reading: Reading, split: str) -> Iterator[Placed]:
    files = _class_files(places[0])
    has_splits = any(named_split(file.relative_to(places[0]).parent) for file in files)
    for file in files:
        if has_splits and (named_split(file.relative_to(places[0]).parent) or "train") != split:
            continue
        text = "".join(read_plain_text(DataFile(file)))
        yield str(file), {"text": text, "label": file.parent.name} if text.strip() else BadRow("the file is empty")


def _class_files(folder: Path) -> list[Path]:
    """The text files that stand in folders for classes; none if the folder has other data."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    texts = [file for file in files if file.suffix == ".txt" and file.parent != folder]
    texts = [file for file in texts if not (file.parent.parent == folder and named_split(Path(file.parent.name)))]
    return texts if len(texts) > len(files) / 2 and len({file.parent.name for file in texts}) > 1 else []


@lines(
    "classification",
    "fasttext",
    "a line for each text, which begins with its labels: `__label__name`",
    lambda sample: bool(sample) and all(_FASTTEXT.match(line) for line in sample if line.strip()),
    suffixes=(".txt", ".fasttext", ".ft"),
    example={"train.txt": "__label__weather It rains.\n__label__sport __label__news She won.\n"},
    gives=[{"text": "It rains.", "label": ["weather"]}, {"text": "She won.", "label": ["sport", "news"]}],
)
def read_fasttext(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    """Several labels a line make a multi-label file; lists of one label each are as good as labels."""
    for place, line in placed:
        if not line.strip():
            continue
        labels, rest = [], line
        while match := _FASTTEXT.match(rest):
            labels.append(match[1])
            rest = rest[match.end() :]
        if not labels or not rest.strip():
            yield place, BadRow("the line has no __label__" if not labels else "the line has labels but no text")
        else:
            yield place, {"text": rest.strip(), "label": labels}


@rows(
    "classification",
    "cats",
    "spaCy's categories with 0 or 1 (or scores) each",
    {"text": _TEXT, "label": ("cats",)},
    shape=lambda values: (
        isinstance(values["label"], Mapping)
        and all(isinstance(score, (int, float)) for score in values["label"].values())
    ),
    example={"docs.jsonl": '{"text": "It rains.", "cats": {"weather": 1.0, "sport": 0.0}}\n'},
    gives=[{"text": "It rains.", "label": ["weather"]}],
)
def read_cats(row: FormRow) -> Record:
    return _read(row, [name for name, score in row["label"].items() if score >= 0.5])


@rows(
    "classification",
    "multi-hot",
    "labels as a list of 0 and 1, one for each class",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    shape=lambda values: _is_hot(_as_list(values["label"]) or ()),
    example={"train.jsonl": '{"text": "a cat", "labels": [0, 1]}\n{"text": "a dog", "labels": [1, 1]}\n'},
    gives=[{"text": "a cat", "label": ["1"]}, {"text": "a dog", "label": ["0", "1"]}],
)
def read_multi_hot(row: FormRow) -> Record:
    values = _as_list(row["label"])
    first = _as_list(row.sample.rows[0].get(row.names["label"])) or []
    if values is None or not _is_hot(values) or len(values) != len(first):
        raise BadRow(f"field {row.names['label']!r} has not {len(first)} numbers 0 or 1", f"{row['label']!r:.40}")
    return _read(row, [str(number) for number, value in enumerate(values) if value])


@rows(
    "classification",
    "label-lists",
    "several labels a text, as a list or as a list in a cell of a table",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    shape=lambda values: _as_list(values["label"]) is not None,
    example={"train.csv": 'text,labels\n"first text","[\'a\', \'b\']"\n"second text","[\'b\']"\n'},
    gives=[{"text": "first text", "label": ["a", "b"]}, {"text": "second text", "label": ["b"]}],
)
def read_label_lists(row: FormRow) -> Record:
    labels = _as_list(row["label"])
    if labels is None:
        raise BadRow(
            f"field {row.names['label']!r} is not a list of labels, as it is elsewhere", f"{row['label']!r:.40}"
        )
    return _read(row, labels)


@rows(
    "classification",
    "comma-labels",
    "several labels a text with commas between them; only if --format or --problem_type says so",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    recognise=lambda sample: sample.reading.several or sample.reading.options.format == "comma-labels",
    shape=lambda values: values["label"] is None or isinstance(values["label"], (str, list)),
    example={"train.csv": 'text,labels\nIt rains.,"weather, news"\nShe won.,sport\n'},
    gives=[{"text": "It rains.", "label": ["weather", "news"]}, {"text": "She won.", "label": ["sport"]}],
)
def read_comma_labels(row: FormRow) -> Record:
    """An empty cell is a text without labels."""
    value = row.get("label", "")
    labels = _as_list(value)
    return _read(row, [name.strip() for name in value.split(",") if name.strip()] if labels is None else labels)


@rows(
    "classification",
    "text-pairs",
    "two texts with a label or a number",
    _PAIR,
    example={"pairs.jsonl": '{"premise": "It rains.", "hypothesis": "It is wet.", "gold_label": "entailment"}\n'},
    gives=[{"text": "It rains.", "text_pair": "It is wet.", "label": "entailment"}],
)
def read_text_pairs(row: FormRow) -> Record:
    return _read(row)


@rows(
    "classification",
    "labelled-texts",
    "a text with a label or a number",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    example={"train.csv": "text,label\nIt rains.,weather\n"},
    gives=[{"text": "It rains.", "label": "weather"}],
)
def read_labelled_texts(row: FormRow) -> Record:
    return _read(row)


@rows(
    "classification",
    "indicator-columns",
    "a column of 0 and 1 for each class, named by --label_field (several) or all columns with nothing else",
    {"text": _TEXT},
    optional={"label": ()},
    recognise=lambda sample: len(indicator_columns(sample)) > 1,
    example={"train.csv": "comment,rude,spam\nBuy now!,0,1\nGo away.,1,0\n"},
    gives=[{"text": "Buy now!", "label": ["spam"]}, {"text": "Go away.", "label": ["rude"]}],
)
def read_indicator_columns(row: FormRow) -> Record:
    columns = indicator_columns(row.sample)
    row.sample.note(f"a class for each of the columns {', '.join(columns)}")
    values = {name: row.raw(name) for name in columns}
    if bad := next((name for name, value in values.items() if str(value) not in ("0", "1")), None):
        raise BadRow(f"column {bad!r} is neither 0 nor 1", f"{bad}: {values[bad]!r:.30}")
    return _read(row, [name for name, value in values.items() if str(value) == "1"])


def indicator_columns(sample: Sample) -> list[str]:
    """Returns the columns that the user names as labels, or those that have nothing but 0 and 1 in the first rows."""
    if named := sample.reading.names.get("label"):
        return list(named) if isinstance(named, (list, tuple)) else []
    return [name for name in sample.columns if {str(row.get(name)) for row in sample.rows} <= {"0", "1"}]
