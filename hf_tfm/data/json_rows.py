"""Rows of JSON: one record a line, arrays, and the objects that people and programs wrap rows in."""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..core.errors import InputError, explain
from .class_names import class_names, name_classes
from .files import DataFile, named_split
from .reading import BadRow, Row, Table


# JSON that is not one record a line is read as a whole: it may take this share of the machine's memory.
_MAX_SHARE_OF_MEMORY = 0.25
_NUM_LOOKED_AT = 10  # lines

_WRAPPERS = ("data", "rows", "records", "examples", "instances", "items", "samples", "entries")
# An object with one of these is a record, whatever else it looks like.
_TOKEN_FIELDS = (
    "tokens words tags ner_tags pos_tags upos messages conversations conversation turns history choices spans"
)
_TEXT_FIELDS = "text sentence sentence1 question prompt instruction content context query review chosen translation"
_METADATA = frozenset("builder_name download_size dataset_size splits features _data_files architectures".split())


class _Unwrapped(NamedTuple):
    """Rows of an object, and where they were."""

    rows: list[Any]
    note: str


def open_json(table: Table, stream: BinaryIO, split: str) -> None:
    """
    Sets the rows of a table of JSON.

    Args:
        split: The split to read from an object that holds several; "" for all.

    Raises:
        InputError: The file holds no rows; it is cut or broken; it is an array that does not fit into memory.
    """
    limit = int(_MAX_SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def check(content: bytes) -> bytes:
        if len(content) > limit:
            raise InputError(
                f"{table.file}: this JSON file is too large for the memory of this machine; convert it to .jsonl, one "
                "record a line, for instance with `jq -c '.[]'`"
            )
        return content

    head: list[bytes] = []
    lines = 0  # that are not blank
    while lines < _NUM_LOOKED_AT and (line := stream.readline(limit + 1)):
        head.append(line)
        lines += bool(line.strip())
        if len(head) == 1 or lines == 1:
            check(line)
    full = [line.strip() for line in head if line.strip()]
    if not full:
        return
    first = _parse(full[0])
    is_array = full[0].startswith(b"[") and (
        first is None or len(full) == 1 and (table.kind == "json" or _is_records(first))
    )
    is_object = (
        full[0].startswith(b"{")
        and not is_array
        and (first is not None if len(full) == 1 else full[0] == b"{" or not any(map(_is_record, full)))
    )
    if not (is_array or is_object):
        table.rows = _read_lines(table.file, itertools.chain(head, stream))
        return
    text = check(b"".join(head) + stream.read(limit + 1)).decode()
    if is_array:
        if table.kind == "jsonl":
            table.notes.append("is a JSON array, not one record a line")
        table.rows = _read_array(text, table.file)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{table.file}{_whole_hint(error)}") from None
    table.rows = _read_object(table, value, split, is_line=table.kind == "jsonl" and len(full) == 1)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_record(line: bytes) -> bool:
    return isinstance(_parse(line), dict)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _read_lines(file: DataFile, lines: Iterator[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        text = line.decode().rstrip("\r\n")  # for the column of an error
        if text and not text.isspace():
            row: Any
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                row = BadRow("broken JSON", _reason(error) + column)
            yield f"{file}, line {number}", row


def _reason(error: Exception) -> str:
    return getattr(error, "msg", None) or str(error)


def _whole_hint(error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f": broken JSON ({_reason(error)}); mend it"
    if error.msg == "Extra data" and error.doc[error.pos :].lstrip(", \t\r\n").startswith("{"):
        return f", line {error.lineno}: a second record begins; write one record a line, for instance with `jq -c .`"
    return f", line {error.lineno}: broken JSON ({error.msg}, column {error.colno}); mend it"


def _read_array(text: str, file: DataFile) -> Iterator[Row]:
    """Records of an array one by one, so that an error names the record."""
    decoder, position, number = json.JSONDecoder(), text.index("[") + 1, 1
    first, between = re.compile(r"\s*(\])?"), re.compile(r"\s*(?:(\])|,\s*)")
    while True:
        place = f"{file}, record {number}"
        with explain(place, lambda error: f"broken JSON ({_reason(error)})", ValueError, RecursionError):
            gap = (first if number == 1 else between).match(text, position)
            if not gap:
                raise ValueError("Expecting ',' or ']' before it")
            if gap[1]:
                break
            record, position = decoder.raw_decode(text, gap.end())
        yield place, record
        number += 1
    if text[gap.end() :].strip():
        raise InputError(f"{file}: broken JSON (text behind the ] that ends {number - 1} records); mend it")


def _read_object(table: Table, value: dict[str, Any], split: str, is_line: bool) -> Iterator[Row]:
    """
    Returns the rows of a single object.

    Args:
        is_line: Whether it is the only line of a file of one record a line.
    """
    unwrapped = None
    if not value.keys() & _words(_TOKEN_FIELDS):
        unwrapped = _unwrap_annotations(value) or _unwrap_rows(table, value) or _unwrap_splits(table, value, split)
        if not unwrapped and not is_line:
            unwrapped = _unwrap_pandas(value)
            if not unwrapped and _is_metadata(value):
                raise InputError(f"{table.file}: holds metadata ({', '.join(list(value)[:5])}), no rows; leave it out")
    if not unwrapped:
        place = f"{table.file}, line 1" if is_line else f"{table.file}, record 1"
        return iter([(place, value)])
    table.notes.append(unwrapped.note)
    return ((f"{table.file}, record {number}", row) for number, row in enumerate(unwrapped.rows, 1))


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _is_metadata(value: dict[str, Any]) -> bool:
    """Whether an object describes a dataset or a model, such as `dataset_info.json` and `config.json` of the Hub."""
    inner = [item.keys() for item in value.values() if isinstance(item, dict)]
    if len(value.keys() & _METADATA) > 1 or (inner and all(len(keys & _METADATA) > 1 for keys in inner)):
        return True
    has_values = any(isinstance(item, (dict, list)) for item in value.values())
    return not (has_values or value.keys() & _words(_TEXT_FIELDS))


def _unwrap_annotations(value: dict[str, Any]) -> _Unwrapped | None:
    """spaCy's training pairs [text, {"entities": […]}], as annotators write them beside the classes."""
    pairs = value.get("annotations")
    if not isinstance(pairs, list) or not all(pair is None or isinstance(pair, list) for pair in pairs):
        return None
    rows = [pair for pair in pairs if pair is not None]
    left_out = f", without {len(pairs) - len(rows)} that are null" if len(rows) < len(pairs) else ""
    return _Unwrapped(rows, f'the {len(rows)} rows are those in "annotations" of a single object{left_out}')


def _unwrap_rows(table: Table, value: dict[str, Any]) -> _Unwrapped | None:
    """Rows in a field of a known name, such as SQuAD's "data", or in the only field; answers of a datasets server."""
    names = [name for name in _WRAPPERS if _is_records(value.get(name))]
    if not names and len(value) == 1:
        names = [name for name, rows in value.items() if _is_records(rows) and not named_split(Path(name))]
    others = [name for name, item in value.items() if isinstance(item, list) and name not in (*names, "features")]
    if len(names) != 1 or others:
        return None
    name, rows = names[0], value[names[0]]
    if name == "rows" and all(isinstance(row.get("row"), dict) for row in rows):
        features: Any = value.get("features")
        types = {item.get("name"): item.get("type") for item in features} if _is_records(features) else {}
        table.class_names = {column: known for column, kind in types.items() if (known := class_names(kind))}
        named = {column: convert for column, kind in types.items() if (convert := name_classes(kind))}
        return _Unwrapped(
            [_convert(row["row"], named) for row in rows],
            f'the {len(rows)} rows are those in "rows" of an answer of the Hub\'s datasets server',
        )
    left = [other for other in value if other != name]
    rest = f"; left out: {', '.join(left)}" if left else ""
    return _Unwrapped(rows, f'the {len(rows)} rows are those in "{name}" of a single object{rest}')


def _convert(row: dict[str, Any], named: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return {name: named[name](item) if name in named else item for name, item in row.items()}


def _unwrap_splits(table: Table, value: dict[str, Any], split: str) -> _Unwrapped | None:
    """Rows in lists that are called as splits: {"train": […], "validation": […]}."""
    splits = {name: named_split(Path(name)) for name, rows in value.items() if isinstance(rows, list)}
    if not splits or None in splits.values() or any(isinstance(item, dict) for item in value.values()):
        return None
    wanted = named_split(Path(split)) or split
    taken = [name for name, known in splits.items() if not wanted or known == wanted or len(splits) == 1]
    there = ", ".join(f"{name} ({len(value[name])} rows)" for name in splits)
    if not taken:
        raise InputError(f"{table.file}: holds no rows of the {split!r} split, there are {there}")
    rows = [row for name in taken for row in value[name]]
    return _Unwrapped(rows, f"rows are in lists of splits, {there}: read {', '.join(taken)}")


def _unwrap_pandas(value: dict[str, Any]) -> _Unwrapped | None:
    """A dictionary of equally long lists, and what pandas' `to_json` writes with its `orient`s."""
    items = list(value.values())
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and value.keys() <= {"columns", "index", "data"}:
        if all(isinstance(row, list) and len(row) == len(names) for row in data):
            rows: list[Any] = [dict(zip(map(str, names), row)) for row in data]
            return _Unwrapped(rows, 'the rows are made of "columns" and "data", which pandas writes')
    if items and all(isinstance(item, list) for item in items):
        sizes = {len(item) for item in items}
        if len(sizes) == 1 and sizes != {0} and not any(map(_is_records, items)):
            rows = [dict(zip(value, row)) for row in zip(*items)]
            return _Unwrapped(rows, f"the {len(rows)} rows are made of lists of the same length, one for each column")
    if items and all(isinstance(item, dict) and item for item in items):
        if all(item.keys() == items[0].keys() for item in items) and all(map(str.isdigit, items[0])):
            rows = [{name: item[key] for name, item in value.items()} for key in items[0]]
            return _Unwrapped(rows, f"the {len(rows)} rows are made of columns, which pandas writes")
        if all(map(str.isdigit, value)):
            return _Unwrapped(items, f"the {len(items)} rows are those of numbered records, which pandas writes")
    return None
