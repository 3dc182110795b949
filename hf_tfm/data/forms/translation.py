"""Forms of translation: texts with their translations, in tables, in two files line by line, or in TMX."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...core.errors import InputError, explain
from ..files import TABLES, DataFile, open_file
from ..plain_text import open_lines
from ..tables import BadRow
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


_SOURCE, _TARGET = (JOBS["translation"].fields[name].aliases for name in ("source", "target"))
_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
# ISO 639-1, and names as people write them above columns.
_LANGUAGES = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee"
    " el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is"
    " it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms"
    " mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk"
    " sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi"
    " yo za zh zu english german french spanish italian dutch portuguese russian chinese japanese korean arabic"
    " hindi turkish polish czech swedish danish finnish greek latin".split()
)


def is_language(name: str) -> bool:
    """Whether a name is that of a language: en, en-US, pt_BR, zh-Hans, eng_Latn, English."""
    base = re.split(r"[-_]", str(name).lower())
    return len(base) < 3 and (base[0] in _LANGUAGES or bool(re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", str(name))))


@paths(
    "translation",
    "aligned-files",
    "two files of texts, source and target, line by line (several pairs of files in this order)",
    lambda places: len(places) % 2 == 0 and len(places) > 0 and all(map(_is_text, places)),
    example={"corpus.de": "Anna singt.\n\nBert sitzt.\n", "corpus.en": "Ann sings.\n\nBert sits.\n"},
    gives=[{"source": "Anna singt.", "target": "Ann sings."}, {"source": "Bert sitzt.", "target": "Bert sits."}],
)
def read_aligned_files(places: Sequence[Path], reading: Reading, split: str) -> Iterator[Placed]:
    for source, target in zip(places[::2], places[1::2]):
        yield str(source), Note(f"source is {source.name}, target {target.name}, by the order of the files")
        count = 0
        streams = [open_lines(DataFile(place), reading.options) for place in (source, target)]
        for first, second in itertools.zip_longest(*streams):
            if first is None or second is None:
                rest = sum(1 for stream in streams for _ in stream) + 1
                longer, shorter = (source, target) if second is None else (target, source)
                raise InputError(
                    f"{longer}: has {count + rest:,} lines, and {shorter} has {count:,}: they are not aligned"
                )
            count += 1
            (place, text), (_, translation) = first, second
            yield place, pair_of(text, translation)


def pair_of(source: str, target: str) -> Record | BadRow:
    """Returns the record of two texts; lines that are blank mean nothing."""
    blank = [name for name, text in (("source", source), ("target", target)) if not text.strip()]
    if blank:
        return NoRecord(f"{' and '.join(blank)} blank")
    try:
        return {"source": check_text(source.strip(), "the source"), "target": check_text(target.strip(), "the target")}
    except BadRow as error:
        return error


def _is_text(place: Path) -> bool:
    """Whether a file may be one of two aligned ones: no table, no TMX, and not with a tab in each line."""
    if not place.is_file() or DataFile(place).suffixes[0] in (*TABLES, ".tmx", ".zip"):
        return False
    head = [line for _, line in itertools.islice(open_lines(DataFile(place)), 20)]
    return separator_of(head) != "\t"


@paths(
    "translation",
    "tmx",
    "TMX, the exchange format of translation memories; --source_field and --target_field choose the languages",
    lambda places: len(places) == 1 and places[0].is_file() and DataFile(places[0]).suffixes[0] == ".tmx",
    example={
        "memory.tmx": '<?xml version="1.0"?><tmx version="1.4"><header srclang="de"/><body>'
        '<tu><tuv xml:lang="de"><seg>Anna <b>singt</b>.</seg></tuv><tuv xml:lang="en-US">'
        "<seg>Ann sings.</seg></tuv></tu>"
        "</body></tmx>"
    },
    gives=[{"source": "Anna singt.", "target": "Ann sings."}],
)
def read_tmx(places: Sequence[Path], reading: Reading, split: str) -> Iterator[Placed]:
    place, wanted = places[0], [reading.names.get(name) for name in ("source", "target")]
    number = 0
    with open_file(DataFile(place)) as stream, explain(place, "broken XML ({reason}); mend it", ElementTree.ParseError):
        for _, element in ElementTree.iterparse(stream):
            if element.tag != "tu":
                continue
            number += 1
            texts = {}
            for variant in element.iter("tuv"):
                language = variant.get(_XML_LANGUAGE) or variant.get("lang") or ""
                segment = variant.find("seg")
                texts[language] = "" if segment is None else "".join(segment.itertext())
            element.clear()  # in constant memory
            if wanted == [None, None]:
                if len(texts) != 2:
                    names = ", ".join(texts)
                    raise InputError(f"{place}: has {names}: say which with --source_field and --target_field")
                wanted = list(texts)
                yield str(place), Note(_said(wanted, reading))
            source, target = (_of_language(texts, name) for name in wanted)
            there = ", ".join(texts) or "none"
            if source is None or target is None:
                missing = wanted[0] if source is None else wanted[1]
                yield f"{place}, unit {number}", NoRecord(f"no text in {missing}", f"there is {there}")
            else:
                yield f"{place}, unit {number}", pair_of(source, target)


def _of_language(texts: Mapping[str, str], wanted: str | None) -> str | None:
    """The text in a language: of the same name, or of one variant (en for en-US, en-US for en)."""
    names = {name.lower().replace("_", "-"): name for name in texts}
    asked = str(wanted).lower().replace("_", "-")
    if asked in names:
        return texts[names[asked]]
    variants = [name for name in names if name.partition("-")[0] == asked.partition("-")[0]]
    return texts[names[variants[0]]] if len(variants) == 1 and wanted else None


def _said(languages: Sequence[Any], reading: Reading) -> str:
    options = " and ".join(map(reading.option_of, ("source", "target")))
    return f"source is {languages[0]}, target {languages[1]}, as they come ({options} say others)"


@rows(
    "translation",
    "by-language",
    "a field `translation` with a text for each language",
    {},
    optional={"source": (), "target": ()},
    recognise=lambda sample: (
        all(sample.has(f"translation.{name}") or str(name).startswith("translation.") for name in _named(sample))
        and any(isinstance(row.get("translation"), Mapping) for row in sample.rows)
    ),
    example={"train.jsonl": '{"id": "7", "translation": {"de": "Anna singt.", "en": "Ann sings."}}\n'},
    gives=[{"source": "Anna singt.", "target": "Ann sings."}],
)
def read_by_language(row: FormRow) -> Record:
    texts = row.raw("translation")
    if is_missing(texts):
        raise BadRow(f"field 'translation' is {'null' if texts is None else 'nan'}")
    if not isinstance(texts, Mapping):
        raise BadRow(f"field 'translation' is a {type(texts).__name__}, not texts by language")
    source, target = row.sample.once("languages", lambda: _languages(row.sample))
    record: Record = {}
    for field_name, language in (("source", source), ("target", target)):
        if field_name == "target" and not row.sample.reading.labelled:
            continue
        if language not in texts:
            raise BadRow(f"no field {language!r}", f"there are {', '.join(texts)}")
        record[field_name] = check_text(texts[language], f"field {language!r}")
    return record


def _named(sample: Sample) -> list[str]:
    return [str(name).removeprefix("translation.") for name in sample.reading.names.values()]


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _languages(sample: Sample) -> list[str]:
    """The languages of source and target: those that the user names, else the two that there are."""
    there = list(dict.fromkeys(name for row in sample.rows for name in _keys(row.get("translation"))))
    names = {field: str(name).removeprefix("translation.") for field, name in sample.reading.names.items()}
    if len(there) > 2 and len(names) < 2:
        raise InputError(f"{sample.file}: has {', '.join(there)}: say which with --source_field and --target_field")
    source = names.get("source") or next((name for name in there if name != names.get("target")), "")
    target = names.get("target") or next((name for name in there if name != source), "")
    if len(names) < 2:
        sample.note(_said((source, target), sample.reading))
    return [source, target]


@rows(
    "translation",
    "source-and-target",
    "a field of the text and one of its translation",
    {"source": ("source", *_SOURCE), "target": ("target", *_TARGET)},
    example={"train.csv": "src,tgt\nAnna singt.,Ann sings.\n"},
    gives=[{"source": "Anna singt.", "target": "Ann sings."}],
)
def read_source_and_target(row: FormRow) -> Record:
    record: Record = {"source": row.text("source")}
    return {**record, "target": _read_target(row)} if row.sample.reading.labelled else record


def _read_target(row: FormRow) -> str:
    """The translation; doccano and collections of references write a list of them, which must have one."""
    value, where = row["target"], f"field {row.names['target']!r}"
    if isinstance(value, list) and len(value) != 1:
        raise BadRow(f"{where} is a list of {len(value)} translations, not of one")
    return check_text(value[0] if isinstance(value, list) else value, where)


@rows(
    "translation",
    "language-columns",
    "a column for each of two languages: en, de",
    {},
    recognise=lambda sample: not sample.reading.names and len(language_columns(sample)) == 2,
    example={"train.jsonl": '{"id": 1, "de": "Anna singt.", "en": "Ann sings."}\n'},
    gives=[{"source": "Anna singt.", "target": "Ann sings."}],
)
def read_language_columns(row: FormRow) -> Record:
    names = language_columns(row.sample)
    row.sample.note(_said(names, row.sample.reading))
    texts = [check_text(row.raw(name), f"field {name!r}") for name in names]
    return {"source": texts[0], "target": texts[1]}


def language_columns(sample: Sample) -> list[str]:
    """Returns the columns of text that are called as a language; `id` is a language only beside one other."""
    texts = [
        name for name in sample.columns if is_language(name) and any(isinstance(r.get(name), str) for r in sample.rows)
    ]
    without = [name for name in texts if name.lower() != "id"]
    return without if len(without) > 1 else texts


@lines(
    "translation",
    "translations-without-header",
    "a table without a header: text and translation, perhaps with numbers or an attribution (Tatoeba, WikiMatrix)",
    lambda sample: _text_columns(sample) is not None,
    suffixes=(".csv", ".tsv", ".txt"),
    headless=True,
    example={
        "deu.txt": "Anna singt.\tAnn sings.\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 & #2\n"
        "Geh.\tGo.\tCC-BY 2.0 (France) Attribution: tatoeba.org #3 & #4\n"
    },
    gives=[{"source": "Anna singt.", "target": "Ann sings."}, {"source": "Geh.", "target": "Go."}],
)
def read_translations_without_header(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    head = list(itertools.islice(placed, 100))
    separator = separator_of([line for _, line in head])
    columns = _text_columns([line for _, line in head])
    if separator is None or columns is None:
        raise InputError(f"{head[0][0] if head else 'the file'}: is no table of texts and translations")
    first, second = columns
    yield (
        "",
        Note(
            f"without a header: source is column {first + 1}, target column {second + 1} "
            f"({reading.option('columns')} names columns)"
        ),
    )
    for place, cells in split_lines(itertools.chain(head, placed), separator):
        if isinstance(cells, list) and len(cells) > second:
            yield place, pair_of(cells[first], cells[second])
        else:
            yield place, cells if isinstance(cells, BadRow) else BadRow("has too few cells", f"{len(cells)}")


def _text_columns(sample: Sequence[str]) -> tuple[int, int] | None:
    """The two columns of texts in a table without a header; None for another table."""
    separator = separator_of(sample)
    table = sample_cells(sample, separator) if separator else []
    if not table or all(is_language(cell) or cell.lower() in _NAMES for cell in table[0]):
        return None
    width = min(map(len, table))
    columns = [[cells[number].strip() for cells in table] for number in range(width)]
    texts = [
        number
        for number, cells in enumerate(columns)
        if not all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) for cell in cells)
        and not all(re.match(r"CC[- ]BY|https?://|.*Attribution", cell) for cell in cells)
    ]
    return (texts[0], texts[1]) if len(texts) == 2 else None


_NAMES = frozenset(("source", "target", "id", "", "score", "split", *_SOURCE, *_TARGET))


@explains("translation")
def explain_languages(sample: Sample) -> str | None:
    names = language_columns(sample)
    if len(names) > 2 and not sample.reading.names:
        source, target = map(sample.reading.option_of, ("source", "target"))
        return f"has the languages {', '.join(names)}: say which with {source} and {target}"
    return None
