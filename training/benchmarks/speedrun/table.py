"""The table of records in README.md, made from the files in `records/`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from entry import hash_entry
from hf_tfm.core.errors import InputError
from judge import judge
from tracks import HASHES, HERE, TRACKS


BEGIN, END = "<!-- records: written by run.py table -->", "<!-- end of records -->"
BOARDS = {
    "causal": "Causal: minutes to {} bits per byte",
    "masked": "Masked: minutes to {} nats per masked token",
    "small_text": "Small text: bits per byte after 60 minutes with 5 MB",
}
COLUMNS = (
    "date", "entry", "by", "minutes, two cores", "minutes, one GPU", "loss", "seeds", "p (target, record)", "machine",
    "what is new",
)  # fmt: skip


def read_records(folder: Path = HERE) -> list[dict[str, Any]]:
    """
    Return the records by date.

    Raises:
        InputError: a record was made with other files, its entry has changed since, or it does not reach the target.
    """
    records = []
    for file in sorted((folder / "records").glob("*.json")):
        record = json.loads(file.read_text())
        if not HASHES.items() <= record["sha256"].items():
            raise InputError(f"{file}: verified with another text or tokenizer; verify the entry again")
        if hash_entry(folder / "entries" / record["entry"]) != record["sha256"]["entry"]:
            raise InputError(f"{file}: the entry has changed since; changed code is a new entry with a new name")
        records.append(record)
    return sorted(records, key=lambda record: record["date"])


def format_row(record: dict[str, Any]) -> str:
    verdict = judge(TRACKS[record["track"]], record)
    minutes = f"{verdict.minutes:.2f}"
    columns = (minutes, "") if record["device"] == "cpu" else ("", minutes)
    p = ", ".join(f"{p:.1g}" for p in (verdict.p_target, verdict.p_record) if p is not None)
    machine = record["machine"]
    place = machine["gpu"] or machine["processor"] + (", AMX" if machine["amx"] else "")
    cells = (
        record["date"][:10], f"[{record['entry']}](entries/{record['entry']})", record["author"], *columns,
        f"{verdict.loss:.4f}", len(record["runs"]), p, place, record["new"],
    )  # fmt: skip
    return join_cells(cells)


def join_cells(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def format_table(records: list[dict[str, Any]]) -> str:
    """Return a table for each track."""
    parts = []
    for name, title in BOARDS.items():
        rows = [format_row(record) for record in records if record["track"] == name]
        header = [join_cells(COLUMNS), "|---" * len(COLUMNS) + "|"]
        parts.append(f"### {title.format(TRACKS[name].target or '…')}\n")
        parts.append("\n".join([*header, *rows]) + "\n" if rows else "No entry is verified yet.\n")
    return "\n".join(parts)


def update_table(check: bool, folder: Path = HERE) -> None:
    """
    Write the table between the marks in README.md.

    Args:
        check: change nothing, and fail if the table is not that of the records.

    Raises:
        InputError: the table is another one.
    """
    readme = folder / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    table = f"{head}{BEGIN}\n\n{format_table(read_records(folder))}\n{END}{rest.split(END)[1]}"
    if check and table != text:
        raise InputError(f"{readme} has not the table of the records: run.py table writes it")
    if not check:
        readme.write_text(table)
