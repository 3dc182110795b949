"""Forms of classification: texts or pairs with a label, several labels or a number."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import DataFile, named_split
from ..plain_text import read_plain_text
from ..records import as_list
from ..tables import BadRow
from .form import (
    FormRow,
    NoRecord,
    Placed,
    Reading,
    Record,
    Sample,
    explains,
    is_missing,
    lines,
    paths,
    rows,
    skip_rejected,
)
from .jobs import JOBS


_TEXT = ("text", *JOBS["classification"].fields["text"].aliases)
_LABEL = ("label", *JOBS["classification"].fields["label"].aliases)
_FASTTEXT = re.compile(r"__label__(\S+)\s+")
_PAIR = {
    "text": ("sentence1", "premise", "question1", "text1", "text_a", "question"),
    "text_pair": ("sentence2", "hypothesis", "question2", "text2", "text_b", "sentence"),
    "label": ("label", "gold_label", "labels", "is_duplicate", "score", "similarity", "similarity_score"),
}
_HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def read_texts(row: FormRow) -> Record:
    """Returns the text, and the second one of a pair."""
    record: Record = {"text": row.text("text")}
    if "text_pair" in row.names:
        record["text_pair"] = row.text("text_pair")
    return record


def _is_labelled(sample: Sample) -> bool:
    """Whether labels are read, from one field."""
    return sample.reading.labelled and not _names_columns(sample)


def _names_columns(sample: Sample) -> bool:
    """Whether the user names several columns of 0 and 1."""
    return sample.reading.labelled and isinstance(sample.name_of("label", ()), (list, tuple))


def _has_second_text(sample: Sample) -> bool:
    """Whether a file has the second text, if the model was trained on pairs."""
    name = sample.reading.defaults.get("text_pair")
    return not name or sample.name_of("text_pair", ()) is not None


def _read(row: FormRow, label: Any = None) -> Record:
    record = read_texts(row)
    if not row.sample.reading.labelled:
        return record
    skip_rejected(row)
    record["label"] = label if label is not None else _single_label(row)
    if isinstance(name := row.raw(f"{row.names.get('label')}_text"), str):
        record["label_text"] = name
    return record


def _single_label(row: FormRow) -> Any:
    """Returns a label as it stands. Raises `NoRecord` for what data sets write where there is none."""
    value, name = row["label"], row.names["label"]
    if not isinstance(value, (str, int, float)):
        raise BadRow(
            f"the label in field {name!r} is a {type(value).__name__}, not a name or a number", f"{value!r:.40}"
        )
    if isinstance(value, str):
        value = value.strip()
        if not value:
            raise BadRow(f"field {name!r} is blank")
        if value[0] in "[{":
            raise BadRow(f"the label in field {name!r} looks like a list that cannot be read", f"{value!r:.40}")
    if value == "-" and "+" not in _sampled(row.sample, name):
        raise NoRecord(f"no label, {name!r} is '-'")
    if str(value) in ("-1", "-1.0"):
        others = {label.removesuffix(".0") for label in _sampled(row.sample, name)} - {"-1"}
        if _is_no_label(others):
            raise NoRecord(f"no label, {name!r} is -1")
        row.sample.note(f"-1 in {name!r} is taken for a label beside {', '.join(sorted(others)[:5])}")
    return value


def _is_no_label(others: set[str]) -> bool:
    """Whether -1 says that there is no label; beside 1, or 0 and 1, or numbers below 0 or with fractions it is one."""
    if "1" in others and others <= {"0", "1"}:
        return False
    return not any(re.fullmatch(r"-\d.*|\d*\.\d*[1-9]\d*", other) for other in others)


def _sampled(sample: Sample, name: str) -> set[str]:
    """The labels in the first rows, as text."""
    return {str(value) for row in sample.rows if not is_missing(value := row.get(name))}


def _is_hot(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(value in (0, 1) and not isinstance(value, str) for value in values)


@paths(
    "classification",
    "class-folders",
    "a folder of text files for each class, perhaps inside a folder for each split",
    lambda places: len(places) == 1 and places[0].is_dir() and bool(_class_files(places[0])),
    example={"reviews/good/1.txt": "A fine film.", "reviews/bad/1.txt": "A dull film."},
    gives=[{"text": "A dull film.", "label": "bad"}, {"text": "A fine film.", "label": "good"}],
)
def read_class_folders(places: Sequence[Path], reading: Reading, split: str) -> Iterator[Placed]:
    """Texts in a folder `unsup`, as aclImdb has it, have no label."""
    for file in _class_files(places[0], split):
        if file.parent.name in ("unsup", "unlabeled", "unlabelled"):
            yield str(file), NoRecord(f"no label, in the folder {file.parent.name}")
            continue
        text = "".join(read_plain_text(DataFile(file), options=reading.options))
        yield str(file), {"text": text, "label": file.parent.name} if text.strip() else BadRow("the file is empty")


def _class_files(folder: Path, split: str = "") -> list[Path]:
    """
    The text files that stand in folders for classes; none if the folder has other data.

    Args:
        split: Where all folders are named for splits (train/good, test/good), the one to read; "" for all.
    """
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    splits = {path: named_split(Path(path.name)) for path in inner}
    if inner and all(splits.values()):
        return [file for path in inner if splits[path] == (split or splits[path]) for file in _class_files(path)]
    files = [file for path in inner for file in sorted(path.rglob("*")) if file.is_file() and file.name[0] != "."]
    texts = [file for file in files if file.suffix in ("", ".txt", ".text")]
    has_classes = len({file.parent.name for file in texts}) > 1 and len(texts) > len(files) / 2
    return texts if has_classes else []


@lines(
    "classification",
    "fasttext",
    "a line for each text, which begins with its labels: `__label__name`",
    lambda sample: (
        sum(bool(_FASTTEXT.match(line)) for line in sample) > 0.9 * sum(bool(line.strip()) for line in sample)
    ),
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
    {"text": _TEXT, "label": ("cats", "labels", "label")},
    recognise=_is_labelled,
    shape=lambda values: (
        isinstance(values["label"], Mapping)
        and all(isinstance(score, (int, float)) for score in values["label"].values())
    ),
    example={"docs.jsonl": '{"text": "It rains.", "cats": {"weather": 1.0, "sport": 0.0}}\n'},
    gives=[{"text": "It rains.", "label": ["weather"]}],
)
def read_cats(row: FormRow) -> Record:
    scores = row["label"]
    if not isinstance(scores, Mapping) or not all(isinstance(score, (int, float)) for score in scores.values()):
        raise BadRow(f"field {row.names['label']!r} is no mapping of classes to 0 or 1", f"{scores!r:.40}")
    row.sample.classes.setdefault("label", list(row.sample.rows[0].get(row.names["label"]) or scores))
    if unsure := next((name for name, score in scores.items() if score not in (0, 1)), None):
        row.sample.count(f"texts have scores between 0 and 1, such as {unsure!r}: 0.5 and above is taken for 1")
    return _read(row, [name for name, score in scores.items() if score >= 0.5])


@rows(
    "classification",
    "multi-hot",
    "labels as a list of 0 and 1, one for each class",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    recognise=lambda sample: _is_labelled(sample) and _are_hot(sample),
    example={"train.jsonl": '{"text": "a cat", "labels": [0, 1]}\n{"text": "a dog", "labels": [1, 1]}\n'},
    gives=[{"text": "a cat", "label": ["1"]}, {"text": "a dog", "label": ["0", "1"]}],
)
def read_multi_hot(row: FormRow) -> Record:
    """The classes are called by their numbers, unless a `labels.json` beside the file names them."""
    values = as_list(row["label"])
    if "label" not in row.sample.classes:
        width = max(len(as_list(other.get(row.names["label"])) or ()) for other in row.sample.rows)
        row.sample.classes["label"] = [str(number) for number in range(width)]
        row.sample.note(
            f"each list of {row.names['label']!r} says for {width} classes whether they hold; a list of their names in "
            "labels.json beside the file names them"
        )
    width = len(row.sample.classes["label"])
    if values is None or not _is_hot(values) or len(values) != width:
        raise BadRow(f"field {row.names['label']!r} has not {width} numbers 0 or 1", f"{row['label']!r:.40}")
    return _read(row, [str(number) for number, value in enumerate(values) if value])


def _are_hot(sample: Sample) -> bool:
    """Whether nearly all first labels are lists of 0 and 1, of one length; numbers with names stand for classes."""
    name = sample.name_of("label", _LABEL)
    if name is None or name in sample.class_names:
        return False
    lists = [as_list(row.get(name)) or [] for row in sample.rows]
    lengths = Counter(len(values) for values in lists if _is_hot(values))
    return bool(lengths) and lengths.most_common(1)[0][1] > 0.9 * len(lists)


@rows(
    "classification",
    "label-lists",
    "several labels a text, as a list or as a list in a cell of a table",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    recognise=_is_labelled,
    shape=lambda values: as_list(values["label"]) is not None,
    example={"train.csv": 'text,labels\n"first text","[\'a\', \'b\']"\n"second text","[\'b\']"\n'},
    gives=[{"text": "first text", "label": ["a", "b"]}, {"text": "second text", "label": ["b"]}],
)
def read_label_lists(row: FormRow) -> Record:
    labels = as_list(row["label"])
    if labels is None:
        raise BadRow(
            f"field {row.names['label']!r} is not a list of labels, as it is elsewhere", f"{row['label']!r:.40}"
        )
    bad = [label for label in labels if not isinstance(label, (str, int, float)) or not str(label).strip()]
    if bad:
        raise BadRow(f"a label in field {row.names['label']!r} is no name", f"{bad[0]!r:.40}")
    return _read(row, labels)


@rows(
    "classification",
    "comma-labels",
    "several labels a text with commas between them; only if --format or --problem_type says so",
    {"text": _TEXT, "label": _LABEL},
    optional={"text_pair": ()},
    recognise=lambda sample: (
        _is_labelled(sample) and (sample.reading.several or sample.reading.options.format == "comma-labels")
    ),
    shape=lambda values: values["label"] is None or isinstance(values["label"], (str, list)),
    example={"train.csv": 'text,labels\nIt rains.,"weather, news"\nShe won.,sport\n'},
    gives=[{"text": "It rains.", "label": ["weather", "news"]}, {"text": "She won.", "label": ["sport"]}],
)
def read_comma_labels(row: FormRow) -> Record:
    """An empty cell is a text without labels."""
    value = row.get("label", "")
    labels = as_list(value)
    return _read(row, [name.strip() for name in value.split(",") if name.strip()] if labels is None else labels)


@rows(
    "classification",
    "text-pairs",
    "two texts with a label or a number",
    _PAIR,
    recognise=lambda sample: not _names_columns(sample),
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
    recognise=lambda sample: _has_second_text(sample) and not _names_columns(sample),
    example={"train.csv": "text,label\nIt rains.,weather\n"},
    gives=[{"text": "It rains.", "label": "weather"}],
)
def read_labelled_texts(row: FormRow) -> Record:
    record = _read(row)
    if isinstance(label := record.get("label"), str) and "," in label:
        parts = {
            part.strip() for other in _sampled(row.sample, row.names["label"]) - {label} for part in other.split(",")
        }
        if parts.issuperset(part.strip() for part in label.split(",")):
            row.sample.count(
                f"labels such as {label!r:.40} have commas between other labels: {row.sample.reading.option('format')} "
                "comma-labels reads several"
            )
    return record


@rows(
    "classification",
    "indicator-columns",
    "a column of 0 and 1 (or true and false) for each class, named by --label_field, or all such columns",
    {"text": _TEXT},
    optional={"text_pair": (), "label": ()},
    recognise=lambda sample: sample.reading.labelled and len(indicator_columns(sample)) > 1,
    example={"train.csv": "comment,rude,spam\nBuy now!,0,1\nGo away.,1,0\n"},
    gives=[{"text": "Buy now!", "label": ["spam"]}, {"text": "Go away.", "label": ["rude"]}],
)
def read_indicator_columns(row: FormRow) -> Record:
    if "label" not in row.sample.classes:
        columns = indicator_columns(row.sample)
        row.sample.classes["label"] = columns
        row.sample.note(f"a class for each of the columns {', '.join(columns)}")
    held = []
    for name in row.sample.classes["label"]:
        value = row.raw(name)
        holds = _HOT.get(str(value).strip().lower())
        if holds is None:
            raise BadRow(f"column {name!r} is neither 0 nor 1", f"{name}: {value!r:.30}")
        held += [name] if holds else []
    return _read(row, held)


def indicator_columns(sample: Sample) -> list[str]:
    """
    Returns the columns that the user names as labels, or those that have nothing but 0 and 1 in the first rows, or
    nothing but true and false: what most columns have.
    """
    if named := sample.reading.names.get("label"):
        return list(named) if isinstance(named, (list, tuple)) else []
    values = {
        name: {str(row.get(name)).strip().lower() for row in sample.rows}
        for name in sample.columns
        if not re.fullmatch(r"(?i)id|idx|index|.*_id|unnamed.*", name)
    }
    numbers = [name for name, found in values.items() if found <= {"0", "1", "0.0", "1.0"}]
    truths = [name for name, found in values.items() if found <= {"true", "false"}]
    return numbers if len(numbers) >= len(truths) else truths


@explains("classification")
def explain_single_text(sample: Sample) -> str | None:
    if sample.rows and not _has_second_text(sample):
        option, name = sample.reading.option_of("text_pair"), sample.reading.defaults["text_pair"]
        return f"no field {name!r}, which had the second text where the model was trained; {option} names another"
    return None
