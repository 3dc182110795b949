"""Forms of pairs of texts: with a score, as positives, with negatives, or by their relevance (BEIR)."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import InputError
from ..files import DataFile, named_split
from ..records import is_damaged_list, read_cell
from ..tables import BadRow, read_rows
from .cells import sample_cells, separator_of, split_lines
from .form import (
    FormRow,
    NoRecord,
    Note,
    Placed,
    Reading,
    Record,
    Sample,
    check_text,
    explains,
    is_missing,
    lines,
    paths,
    rows,
)
from .jobs import JOBS


_FIRST, _SECOND, _NEGATIVE, _SCORE = (
    JOBS["pairs"].fields[name].aliases for name in ("text", "text_pair", "negative", "score")
)
_CLASSES = ("label", "gold_label", "is_duplicate")  # numbers only if they are 0 and 1
_NUMBERED_NEGATIVE = re.compile(r"(hard_)?negative_?\d+")


class Beir(NamedTuple):
    """Texts of queries and documents by their ids, and the places and lines of the judgements."""

    queries: dict[str, str]
    corpus: dict[str, str]
    judgements: list[tuple[str, Any]]


@paths(
    "pairs",
    "beir",
    "a BEIR folder: corpus.jsonl, queries.jsonl and qrels/train.tsv, dev.tsv, test.tsv",
    lambda places: len(places) == 1 and is_beir(places[0]),
    example={
        "nq/corpus.jsonl": '{"_id": "d1", "title": "Ann", "text": "Ann sings."}\n{"_id": "d2", "text": "Bob sits."}\n',
        "nq/queries.jsonl": '{"_id": "q1", "text": "Who sings?"}\n',
        "nq/qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n",
    },
    gives=[{"text": "Who sings?", "text_pair": "Ann Ann sings."}],
)
def read_beir(places: Sequence[Path], reading: Reading, split: str) -> Iterator[Placed]:
    beir = open_beir(places[0], split)
    yield str(places[0]), Note(f"{len(beir.queries):,} queries, {len(beir.corpus):,} documents (title and text)")
    for place, row in beir.judgements:
        try:
            query, document = judged(row, beir)
            yield place, {"text": beir.queries[query], "text_pair": beir.corpus[document]}
        except BadRow as error:
            yield place, error


def is_beir(folder: Path) -> bool:
    """Whether a folder has the form of BEIR."""
    return _part(folder, "corpus") is not None and _part(folder, "queries") is not None and (folder / "qrels").is_dir()


def open_beir(folder: Path, split: str) -> Beir:
    """Returns the parts of a BEIR folder. Raises `InputError` if there are no judgements of the split."""
    texts = {}
    for part in ("corpus", "queries"):
        texts[part] = {
            str(row.get("_id")): " ".join(str(row[name]) for name in ("title", "text") if row.get(name))
            for _, row in read_rows(DataFile(_part(folder, part) or folder))
        }
    wanted = named_split(Path(split)) or split
    files = sorted((folder / "qrels").iterdir())
    chosen = [file for file in files if (named_split(Path(file.name)) or file.name.partition(".")[0]) == wanted]
    if not chosen:
        raise InputError(
            f"{folder}: no qrels of the {split!r} split, there is {', '.join(file.name for file in files)}"
        )
    return Beir(texts["queries"], texts["corpus"], [entry for file in chosen for entry in read_rows(DataFile(file))])


def open_judged(folder: str, split: str) -> tuple[list[str], list[str], list[set[int]]]:
    """
    Returns the queries of a split of a BEIR folder, all documents, and the numbers of those relevant to each query.

    Raises:
        InputError: There is no relevant document, or a judgement of something that is not there.
    """
    beir = open_beir(Path(folder), split)
    numbers = {name: number for number, name in enumerate(beir.corpus)}
    relevant: dict[str, set[int]] = {}
    for place, row in beir.judgements:
        try:
            query, document = judged(row, beir)
        except NoRecord:
            continue
        except BadRow as error:
            raise InputError(f"{place}: {error}") from None
        relevant.setdefault(query, set()).add(numbers[document])
    if not relevant:
        raise InputError(f"{folder}: no query of the {split!r} split has a relevant document")
    return [beir.queries[query] for query in relevant], list(beir.corpus.values()), list(relevant.values())


def judged(row: Mapping[str, Any], beir: Beir) -> tuple[str, str]:
    """Returns the ids of a query and a document that is relevant. Raises `NoRecord` for one that is not."""
    query, document, score = (row.get(name) for name in ("query-id", "corpus-id", "score"))
    if query not in beir.queries or document not in beir.corpus:
        raise BadRow("a judgement of a query or document that is not there", f"query {query}, document {document}")
    if not read_number(score, "score") > 0:
        raise NoRecord("judged as not relevant (score 0)")
    return str(query), str(document)


def _part(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if file.is_file()), None)


@lines(
    "pairs",
    "pairs-without-header",
    "a table without a header: two texts with a number before or behind them (STS), two texts, or three (triplets)",
    lambda sample: _Columns.of(sample) is not None,
    suffixes=(".csv", ".tsv", ".txt"),
    headless=True,
    example={"sts.tsv": "main\tnews\t2012\t7\t5.000\tAnn \"sings.\tAnn is singing.\n"
             "main\tnews\t2012\t8\t0\tA dog.\tA car.\n"},
    gives=[
        {"text": 'Ann "sings.', "text_pair": "Ann is singing.", "score": 5.0},
        {"text": "A dog.", "text_pair": "A car.", "score": 0.0},
    ],
)  # fmt: skip
def read_pairs_without_header(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    head = list(itertools.islice(placed, 100))
    columns = _Columns.of([line for _, line in head])
    if columns is None:
        raise InputError(f"{head[0][0] if head else 'the file'}: is no table of two or three texts")
    names = ["text", "text_pair", "negative"][: len(columns.texts)]
    said = [f"{name} is column {number + 1}" for name, number in zip(names, columns.texts)]
    said += [f"score is column {columns.score + 1}"] if columns.score is not None else []
    yield "", Note(f"without a header: {', '.join(said)} ({reading.option('columns')} names columns)")
    for place, cells in split_lines(itertools.chain(head, placed), columns.separator):
        try:
            if isinstance(cells, BadRow):
                raise cells
            if len(cells) != columns.width:
                raise BadRow("another number of cells than elsewhere", f"{len(cells)}, not {columns.width}")
            first, second, *others = (check_text(cells[number], f"column {number + 1}") for number in columns.texts)
            record: Record = {"text": first, "text_pair": second, **({"negative": others} if others else {})}
            if columns.score is not None:
                record["score"] = read_number(cells[columns.score], f"column {columns.score + 1}")
            yield place, record
        except BadRow as error:
            yield place, error


class _Columns(NamedTuple):
    """Which columns of a table without a header have the texts and the score, counted from 0."""

    separator: str
    width: int
    texts: list[int]
    score: int | None

    @classmethod
    def of(cls, sample: Sequence[str]) -> "_Columns | None":
        separator = separator_of(sample)
        table = sample_cells(sample, separator) if separator else []
        widths = [len(cells) for cells in table]
        if not separator or not table or not (width := max(set(widths), key=widths.count)) > 1:
            return None
        table = [cells for cells in table if len(cells) == width]
        columns = list(zip(*table))
        numbers = [n for n, cells in enumerate(columns) if all(map(_is_number, cells))]
        texts = [
            n
            for n, cells in enumerate(columns)
            if n not in numbers and 2 * sum(" " in c.strip() for c in cells) > len(cells)
        ]
        if len(texts) not in (2, 3) or not all(" " in table[0][n].strip() for n in texts):
            return None  # the first row is a header, or the texts are not known
        beside = [n for n in (texts[0] - 1, texts[-1] + 1) if n in numbers]
        headed = [
            n for n, cells in enumerate(columns) if n not in numbers and all(map(_is_number, cells[1:])) and cells[1:]
        ]
        if headed or (len(texts) == 3 and beside) or len(beside) > 1:
            return None
        return cls(separator, width, texts, beside[0] if beside else None)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d+([.,]\d+)?\s*", text) is not None


@rows(
    "pairs",
    "pairs",
    "two texts, perhaps with a score, or with negatives (a text or a list of texts); lists of positives are pairs each",
    {"text": _FIRST, "text_pair": _SECOND},
    optional={"negative": _NEGATIVE, "score": _SCORE},
    recognise=lambda sample: not _classes(sample),
    example={"train.jsonl": '{"query": "Who sings?", "pos": ["Ann sings.", "Ann does."], "neg": ["Bob sits."]}\n'},
    gives=[
        {"text": "Who sings?", "text_pair": "Ann sings.", "negative": ["Bob sits."]},
        {"text": "Who sings?", "text_pair": "Ann does.", "negative": ["Bob sits."]},
    ],
)
def read_pairs(row: FormRow) -> Record | list[Record]:
    positives = _texts(row["text_pair"], f"field {row.names['text_pair']!r}")
    record: Record = {"text": _texts(row["text"], f"field {row.names['text']!r}")[0]}
    numbered = [name for name in row.sample.columns if _NUMBERED_NEGATIVE.fullmatch(name)]
    negatives = _texts(row["negative"], f"field {row.names['negative']!r}") if "negative" in row.names else []
    negatives += [check_text(row.raw(name), f"field {name!r}") for name in numbered]
    if "score" in row.names:
        name = row.names["score"]
        if str(row["score"]).strip() in ("-1", "") and name in _CLASSES:
            raise NoRecord(f"no label, {name!r} is {row['score']!r}")
        known = row.sample.class_names.get(name, [])
        score = known.index(row["score"]) if row["score"] in known else row["score"]
        record["score"] = read_number(score, f"field {name!r}")
    records = [
        {"text": record["text"], "text_pair": text, **({"negative": negatives} if negatives else {}), **record}
        for text in positives
    ]
    return records[0] if len(records) == 1 else records


@rows(
    "pairs",
    "lists-of-texts",
    "rows that are lists: two texts, or three with a negative, perhaps with a score behind them",
    {},
    recognise=lambda sample: list(sample.columns[:2]) == ["column 1", "column 2"] and not sample.reading.names,
    example={"pairs.jsonl": '["Who sings?", "Ann sings."]\n["Who sits?", "Bob sits."]\n'},
    gives=[
        {"text": "Who sings?", "text_pair": "Ann sings."},
        {"text": "Who sits?", "text_pair": "Bob sits."},
    ],
)
def read_lists_of_texts(row: FormRow) -> Record:
    values = [row.raw(name) for name in row.sample.columns]
    texts = [check_text(value, f"column {number}") for number, value in enumerate(values, 1) if isinstance(value, str)]
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not is_missing(value)]
    if len(texts) not in (2, 3) or len(numbers) > (len(texts) == 2):
        raise BadRow("is not two or three texts, or two with a score", f"{len(texts)} texts, {len(numbers)} numbers")
    record: Record = {"text": texts[0], "text_pair": texts[1]}
    return record | ({"negative": texts[2:]} if texts[2:] else {}) | ({"score": numbers[0]} if numbers else {})


def _texts(value: Any, what: str) -> list[str]:
    """The texts that a value is, or that a list or a cell holds."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_cell(value)
        except ValueError as error:
            if is_damaged_list(value):
                raise BadRow(f"{what} is a list that cannot be read", f"{value!r:.40}") from error
            return [check_text(value, what)]
    if isinstance(value, (list, tuple)):
        if not value:
            raise BadRow(f"{what} is an empty list")
        return [check_text(text, f"a text in {what}") for text in value]
    return [check_text(value, what)]


def read_number(value: Any, what: str) -> float:
    """Returns a number, also one written as text. Raises `BadRow` for anything else."""
    try:
        number = float(str(value).strip().lower().replace("true", "1").replace("false", "0"))
    except ValueError:
        raise BadRow(f"{what} is not a number", f"{value!r:.30}") from None
    if number != number:
        raise BadRow(f"{what} is nan")
    return number


def _classes(sample: Sample) -> str | None:
    """The field of a class that is no score; None if there is none, or the user says that it is a score."""
    name = sample.name_of("score", _SCORE)
    if sample.reading.names.get("score") or not isinstance(name, str) or name.lower() not in _CLASSES:
        return None
    known = sample.class_names.get(name)
    if known is not None and len(known) == 2 and known[0].startswith("not"):
        return None
    values = {str(row.get(name)).strip() for row in sample.rows if not is_missing(row.get(name))}
    is_entailment = {"premise", "hypothesis"} & {str(column).lower() for column in sample.columns}
    return name if is_entailment or not values <= {"0", "1", "0.0", "1.0", "-1", "True", "False"} else None


@explains("pairs")
def explain_classes(sample: Sample) -> str | None:
    if name := _classes(sample):
        option = sample.reading.option("ignore_fields")
        return (
            f"field {name!r} holds classes, not a similarity: finetune_classification reads such pairs. To train "
            f"on positives alone, keep the rows whose texts say the same and give {option} {name}"
        )
    return None


@explains("pairs")
def explain_judgements(sample: Sample) -> str | None:
    lines = [line.split() for line in sample.lines if line.strip()]
    if lines and not sample.rows and all(len(cells) == 4 and cells[3].lstrip("-").isdigit() for cells in lines):
        return (
            "holds judgements of TREC (qrels) without texts: put it as qrels/test.tsv, with the header query-id, "
            "corpus-id and score, beside corpus.jsonl and queries.jsonl (BEIR), and give their folder"
        )
    return None
