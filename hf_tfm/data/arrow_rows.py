"""Rows of Parquet and Arrow files (`.arrow` of `save_to_disk`, Feather), with the names of their classes."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow
from pyarrow import feather, ipc, parquet

from ..core.errors import explain
from .class_names import class_names, name_classes
from .reading import Row, Table


_DAMAGED = "cannot be read ({reason}); mend the file or fetch it again"


def open_arrow(table: Table, stream: BinaryIO, columns: Sequence[str] | None) -> None:
    """Sets the columns, the rows and the class names of a table. Raises `InputError` if the file is damaged."""
    with explain(table.file, _DAMAGED, pyarrow.ArrowException):
        schema, batches = _open_parquet(stream, columns) if table.kind == "parquet" else _open_ipc(stream)
    table.columns = schema.names
    features: Any = None
    with suppress(ValueError, KeyError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    if isinstance(features, dict):
        features = {name: feature for name, feature in features.items() if name in table.columns}
        table.class_names = {name: names for name, feature in features.items() if (names := class_names(feature))}
    named = {name: convert for name, feature in (features or {}).items() if (convert := name_classes(feature))}
    if set(columns or ()) <= set(table.columns):
        table.rows = _iterate(table, batches, named)
    else:
        table.rows = iter([(str(table.file), dict.fromkeys(table.columns))])  # the caller names the missing column


def _open_parquet(stream: BinaryIO, columns: Sequence[str] | None) -> tuple[Any, Iterator[Any]]:
    file = parquet.ParquetFile(stream)
    schema = file.schema_arrow
    known = columns if columns and set(columns) <= set(schema.names) else None
    return schema, file.iter_batches(batch_size=256, columns=known)


def _open_ipc(stream: BinaryIO) -> tuple[Any, Iterator[Any]]:
    magic = stream.read(6)
    stream.seek(0)
    if magic.startswith(b"FEA1"):
        table = feather.read_table(stream)
        return table.schema, iter(table.to_batches(max_chunksize=256))
    if magic == b"ARROW1":
        file = ipc.open_file(stream)
        return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    reader = ipc.open_stream(stream)
    return reader.schema, iter(reader)


def _iterate(table: Table, batches: Iterator[Any], named: dict[str, Callable[[Any], Any]]) -> Iterator[Row]:
    numbers = itertools.count(1)
    with explain(table.file, _DAMAGED, pyarrow.ArrowException):
        for batch in batches:
            for start in range(0, batch.num_rows, 256):
                for record, number in zip(batch.slice(start, 256).to_pylist(), numbers):
                    for name in named.keys() & record.keys():
                        record[name] = named[name](record[name])
                    yield f"{table.file}, record {number}", record
