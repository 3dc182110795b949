"""Forms of tagging with a word a line and a blank line behind each sentence: CoNLL-U, columns as in CoNLL-2003."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...core.errors import InputError
from ..tables import BadRow
from .form import NoRecord, Note, Placed, Reading, Sample, explains, lines
from .jobs import JOBS


Lines = Iterator[tuple[str, str]]
_SAMPLED_LINES = 100
_MANY_WORDS = 256  # in one sentence: a file of so many words has blank lines between sentences
_SUFFIXES = tuple(
    ".conll .conll2003 .iob .iob1 .iob2 .bio .bioes .bieos .bilou .bmes .ner .pos .txt .train .dev .test .testa"
    " .testb".split()
)
_CONLLU = "ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC".split()
_CONLLU_ID = re.compile(r"\d+([-.]\d+)?")
_PLUS = "# global.columns ="
_DOCUMENT = "-DOCSTART-"
_ENTITY_TAG = re.compile(r"O|[BIESLUM]-\S+")
_SHORT_TAG = re.compile(r"[A-Z][A-Z0-9$|+:_-]*|[^\w\s]+|_")
_WORD_NAMES = ("form", "tokens", *JOBS["tags"].fields["tokens"].aliases)
_TAG_NAMES = ("tags", *JOBS["tags"].fields["tags"].aliases)
_SENTENCE_NAMES = ("sentence #", "sentence_id", "sentence id", "sent_id", "sentence_number")
_HEADER = {*_WORD_NAMES, *_TAG_NAMES, *_SENTENCE_NAMES, "id", "index", "lemma", "chunk", "chunk_tag", "xpos", "deprel"}


@dataclass
class Layout:
    """
    What the columns of a file are.

    Attributes:
        separator: None for blanks and tabs.
        names: Names of the columns.
        words, tags, sentence: Numbers of the columns of words, of tags, and of the sentence's number if there is one.
        marks_entities: Whether all tags mark entities.
        is_conllu: Whether there are ranges of words (`1-2`), empty words (`8.1`) and comments, as in CoNLL-U.
    """

    separator: str | None
    names: list[str]
    words: int = 0
    tags: int | None = None
    sentence: int | None = None
    has_header: bool = False
    marks_entities: bool = False
    is_conllu: bool = False

    def cells(self, line: str) -> list[str]:
        return split_cells(line, self.separator)

    def is_comment(self, line: str) -> bool:
        """Whether a line in front of a sentence that begins with # is a comment; a word may be # too."""
        cells = self.cells(line)
        is_row = len(cells) == len(self.names) and (
            not self.marks_entities or _ENTITY_TAG.fullmatch(cells[self.tags or 0])
        )
        return line.startswith("#") and (self.is_conllu or not is_row)


def split_cells(line: str, separator: str | None) -> list[str]:
    """Returns the cells of a line; without a separator they stand between blanks and tabs, but not other spaces."""
    if separator is None:
        return re.split(r"[ \t]+", line.strip(" \t"))
    return next(csv.reader([line]), []) if separator == "," else line.split(separator)


def _body(sample: Sequence[str]) -> list[str]:
    """The lines that hold words, at the beginning of a file."""
    return [line for line in sample if line.strip(" \t,;") and not line.startswith(("#", _DOCUMENT))]


def find_layout(sample: Sequence[str]) -> Layout | None:
    """Returns what the columns of a file are by its first lines; None if it is no file with a word and a tag a line."""
    body = _body(sample)
    if not body or any(line.startswith("#begin document") for line in sample):
        return None
    for separator in ("\t", None, ","):
        width, count = Counter(len(split_cells(line, separator)) for line in body).most_common(1)[0]
        if width > 1 and count >= 0.9 * len(body):
            rows = [cells for line in body if len(cells := split_cells(line, separator)) == width]
            if layout := _find_columns(rows, separator):
                return layout
    return None


def _find_columns(rows: list[list[str]], separator: str | None) -> Layout | None:
    header = [cell.strip().casefold() for cell in rows[0]]
    layout = Layout(separator, [f"column {number}" for number in range(1, len(header) + 1)])
    columns = list(range(len(header)))
    if set(header) <= _HEADER and len(rows) > 1:
        layout.has_header, layout.names, rows = True, rows[0], rows[1:]
        layout.sentence = next((number for number in columns if header[number] in _SENTENCE_NAMES), None)
        layout.words = next((header.index(name) for name in _WORD_NAMES if name in header), 0)
    elif len(columns) > 2 and all(row[0].isdigit() for row in rows):
        layout.words = 1
    values = {number: [row[number] for row in rows] for number in columns}
    others = [number for number in columns if number not in (layout.words, layout.sentence)]
    if sum(" " in word for word in values[layout.words]) > 0.1 * len(rows):
        return None  # texts, not words
    tagged = [number for number in others if _holds_tags(values[number], values[layout.words])]
    if not tagged:
        return None
    entities = [number for number in tagged if _marks_entities(values[number])]
    layout.tags, layout.marks_entities = (entities or tagged)[-1], bool(entities)
    return layout


def _marks_entities(values: Sequence[str]) -> bool:
    return any(value != "O" for value in values) and all(map(_ENTITY_TAG.fullmatch, values))


def _holds_tags(values: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a column holds tags: those of entities, names in capitals, or few different values without blanks."""
    if all(map(_ENTITY_TAG.fullmatch, values)) or all(map(_SHORT_TAG.fullmatch, values)):
        return True
    different = len(set(values))
    if all(value.isdigit() for value in values):
        return False
    is_short = all(re.fullmatch(r"[^\s\[{]+", value) for value in values)
    return is_short and len(values) >= 20 and different <= 0.4 * len(values) and 2 * different <= len(set(words)) + 10


def _is_conllu(sample: Sequence[str]) -> bool:
    body = _body(sample)
    rows = [line.split("\t") for line in body]
    has_ids = bool(rows) and all(_CONLLU_ID.fullmatch(row[0]) for row in rows)
    return has_ids and (any(line.startswith(_PLUS) for line in sample) or all(len(row) == 10 for row in rows))


@lines(
    "tags",
    "conllu",
    "CoNLL-U and CoNLL-U Plus: the forms of the words with their UPOS; --tags_field names another column, such as XPOS",
    _is_conllu,
    suffixes=(".conllu", ".conllup", *_SUFFIXES),
    example={
        "train.conllu": "# text = Ann sang.\n1\tAnn\tAnn\tPROPN\tNNP\t_\t2\tnsubj\t_\t_\n"
        "2\tsang\tsing\tVERB\tVBD\t_\t0\troot\t_\t_\n3\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_\n\n"
    },
    gives=[{"tokens": ["Ann", "sang", "."], "tags": ["PROPN", "VERB", "PUNCT"]}],
)
def read_conllu(placed: Lines, reading: Reading) -> Iterator[Placed]:
    """
    Yields sentences of the words that Universal Dependencies annotate: lines of ranges (`1-2 don't`), which stand above
    their words, and of empty words (`8.1`) are left out.
    """
    head = list(itertools.islice(placed, _SAMPLED_LINES))
    names = next((line[len(_PLUS) :].split() for _, line in head if line.startswith(_PLUS)), _CONLLU)
    numbers = {name.casefold(): number for number, name in enumerate(names)}
    tags = next((numbers[name] for name in ("upos", *_TAG_NAMES) if name in numbers), None)
    if "form" not in numbers or (tags is None and reading.labelled and "tags" not in reading.names):
        missing = f"tags: {reading.option_of('tags')} names one" if "form" in numbers else "the name FORM"
        raise InputError(f"{_file_of(head)}: none of its columns {', '.join(names)} has {missing}")
    layout = Layout("\t", names, numbers["form"], tags, is_conllu=True)
    yield from _read_sentences(itertools.chain(head, placed), layout, reading)


@lines(
    "tags",
    "columns",
    "a word and its tag a line (.conll, .iob, .txt, .tsv, …), perhaps with other columns, and a blank line behind each "
    "sentence; --columns names the columns, --words_field and --tags_field choose them by name or number",
    lambda sample: find_layout(sample) is not None,
    suffixes=_SUFFIXES,
    example={
        "train.conll": "-DOCSTART- -X- -X- O\n\nAnn NNP B-NP B-PER\nsang VBD B-VP O\n\n"
        "In IN B-PP O\nBonn NNP B-NP B-LOC\n"
    },
    gives=[{"tokens": ["Ann", "sang"], "tags": ["B-PER", "O"]}, {"tokens": ["In", "Bonn"], "tags": ["O", "B-LOC"]}],
)
def read_columns(placed: Lines, reading: Reading) -> Iterator[Placed]:
    """Without a choice the tags are the last column that marks entities, else the last one with tags."""
    head = list(itertools.islice(placed, _SAMPLED_LINES))
    sample, options = [line for _, line in head], reading.options
    layout = find_layout(sample)
    if layout is None or options.separator:
        separators = {"tab": "\t", "\\t": "\t", "comma": ",", "blanks": None, "space": None, " ": None}
        separator = separators.get(options.separator or "blanks", options.separator)
        body = _body(sample)
        width = Counter(len(split_cells(line, separator)) for line in body).most_common(1)[0][0] if body else 1
        rows = [cells for line in body if len(cells := split_cells(line, separator)) == width]
        layout = (_find_columns(rows, separator) if rows else None) or Layout(
            separator, [f"column {n}" for n in range(1, width + 1)], tags=width - 1 if width > 1 else None
        )
    if options.columns:
        if len(options.columns) != len(layout.names):
            raise InputError(
                f"{_file_of(head)}: {reading.option('columns')} names {len(options.columns)} columns, but lines have "
                f"{len(layout.names)}"
            )
        layout.names, layout.has_header = list(options.columns), False
        known = {name.casefold(): number for number, name in reversed([*enumerate(layout.names)])}
        layout.words = next((known[name] for name in _WORD_NAMES if name in known), layout.words)
        tags = next((known[name] for name in _TAG_NAMES if name in known), layout.tags)
        layout.marks_entities, layout.tags = layout.marks_entities and tags == layout.tags, tags
    yield from _read_sentences(itertools.chain(head, placed), layout, reading)


def _file_of(placed: Sequence[tuple[str, str]]) -> str:
    return placed[0][0].rpartition(", line ")[0] if placed else "the file"


def _choose(layout: Layout, reading: Reading, field_name: str, default: int | None, place: str) -> int | None:
    """The number of a column: the default, or what the user says by its name or its number from 1."""
    given = reading.names.get(field_name, reading.defaults.get(field_name))
    if given is None:
        return default
    names = [name.casefold() for name in layout.names]
    name = str(given).casefold()
    if name in names:
        return names.index(name)
    if name.isdigit() and 1 <= int(name) <= len(names):
        return int(name) - 1
    if field_name not in reading.names:
        return default
    raise InputError(
        f"{place.rpartition(', line ')[0]}: no column {given!r} ({reading.option_of(field_name)}), there are "
        f"{', '.join(layout.names)}"
    )


def _read_sentences(placed: Lines, layout: Layout, reading: Reading) -> Iterator[Placed]:
    first_place, first_line = next(placed, ("the file", ""))
    placed = itertools.chain([(first_place, first_line)], placed)
    word_column = _choose(layout, reading, "tokens", layout.words, first_place) or 0
    tag_column = _choose(layout, reading, "tags", layout.tags, first_place) if reading.labelled else None
    if reading.labelled and tag_column is None:
        raise InputError(f"{first_place}: no column has tags; {reading.option_of('tags')} names one")
    others = len(layout.names) - (layout.sentence is not None) > 2
    if tag_column is not None and others and "tags" not in reading.names:
        shown = layout.names[tag_column]
        yield first_place, Note(f"tags from {shown!r} ({reading.option_of('tags')} names another, or its number)")
    counts: Counter[str] = Counter()
    sentences = one_word = 0
    sentence: _Sentence | None = None
    for sentence in _split_sentences(placed, layout, counts, word_column, tag_column):
        sentences += 1
        one_word += len(sentence.words) == 1
        yield sentence.place, sentence.record(tag_column is not None, layout.is_conllu)
    file = first_place.rpartition(", line ")[0]
    if sentence and sentences == 1 and len(sentence.words) > _MANY_WORDS:
        raise InputError(f"{file}: has no blank lines behind sentences: all {len(sentence.words):,} words would be one")
    if sentences >= _SAMPLED_LINES and one_word == sentences:
        raise InputError(
            f"{file}: all {sentences:,} sentences have one word: there is a blank line behind each word, and sentences "
            "cannot be told apart"
        )
    if layout.has_header:
        yield first_place, Note(f"the first line is the header: {', '.join(layout.names)}")
    for what, count in counts.items():
        yield first_place, Note(f"{count:,} {what}")


@dataclass
class _Sentence:
    """The words of a sentence and their tags, until its fault."""

    place: str
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    fault: BadRow | None = None

    def record(self, has_tags: bool, is_conllu: bool) -> dict[str, list[str]] | BadRow:
        if self.fault:
            return self.fault
        if is_conllu and has_tags and set(self.tags) == {"_"}:
            return NoRecord("no word has a tag, all are _")
        return {"tokens": self.words, "tags": self.tags} if has_tags else {"tokens": self.words}


def _split_sentences(
    placed: Lines, layout: Layout, counts: Counter[str], word_column: int, tag_column: int | None
) -> Iterator[_Sentence]:
    """Yields the sentences; counts lines that are left out."""
    sentence: _Sentence | None = None
    number, width, needs_header = "", len(layout.names), layout.has_header
    for place, line in placed:
        is_blank = not line.strip(f" \t{layout.separator or ''}")
        if is_blank or line.startswith(_DOCUMENT):
            if sentence:
                yield sentence
            sentence = None
            counts["lines -DOCSTART- are left out"] += not is_blank
            continue
        if (sentence is None or layout.is_conllu) and layout.is_comment(line):
            counts["lines with comments are left out"] += 1
            continue
        cells = layout.cells(line)
        if needs_header:
            needs_header = False
            continue
        if layout.is_conllu and "-" in cells[0]:
            counts["ranges of words such as 1-2 are left out, their words are read"] += 1
            continue
        if layout.is_conllu and "." in cells[0]:
            counts["empty words such as 8.1 are left out"] += 1
            continue
        if layout.sentence is not None and len(cells) == width and cells[layout.sentence].strip() not in ("", number):
            number = cells[layout.sentence].strip()
            if sentence:
                yield sentence
            sentence = None
        sentence = sentence or _Sentence(place)
        if sentence.fault:
            continue
        if len(cells) != width:
            sentence.fault = BadRow(f"a line has not {width} columns", f"{place.rpartition(', ')[2]}: {line!r:.60}")
            continue
        word, tag = (cells[n].strip(" \t") if n is not None else "" for n in (word_column, tag_column))
        if not word or (tag_column is not None and not tag):
            sentence.fault = BadRow("a word or a tag is blank", f"{place.rpartition(', ')[2]}: {line!r:.60}")
            continue
        sentence.words.append(word)
        sentence.tags.append(tag)
    if sentence:
        yield sentence
    for what in [what for what, count in counts.items() if not count]:
        del counts[what]


@explains("tags")
def explain_text(sample: Sample) -> str | None:
    if any(line.startswith("#begin document") for line in sample.lines):
        return (
            "is CoNLL-2012, whose entities stand in brackets; convert it to a word and its tag (B-PER, I-PER, O) a line"
        )
    if sample.lines and not sample.rows:
        return (
            "is plain text; tags need a word and its tag a line and a blank line behind each sentence, or another form "
            f"of `hf-tfm formats tags` ({sample.reading.option('format')} columns takes the lines for columns)"
        )
    return None
