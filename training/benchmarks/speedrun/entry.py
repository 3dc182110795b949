"""An entry of the speedrun: a folder with a program."""

import hashlib
import json
import os
import re
from pathlib import Path

from hf_tfm.core.errors import InputError


FIELDS = ("author", "license", "new")
# An entry is code: so few bytes hold no weights, and no sequence of so many words is in the held-out text by chance.
MAX_ENTRY_BYTES, SHARED_WORDS = 100_000, 13


class Entry:
    """
    A folder with an executable `run.sh` or `train.py` and an `entry.json`.

    Raises:
        InputError: the folder is none, or contains more than code.
    """

    def __init__(self, folder: Path, held_out: str):
        self.name, self.folder = folder.resolve().name, folder.resolve()
        programs = [folder / name for name in ("run.sh", "train.py") if os.access(folder / name, os.X_OK)]
        if not programs:
            raise InputError(f"{folder} has no run.sh and no train.py, or it is not executable: chmod +x")
        self.program = programs[0].resolve()
        try:
            facts = json.loads((folder / "entry.json").read_text())
            self.facts = {field: str(facts[field]) for field in FIELDS}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}/entry.json must have the fields {', '.join(FIELDS)}: {error!r}") from None
        contents = [file.read_bytes() for file in entry_files(folder)]
        if sum(map(len, contents)) > MAX_ENTRY_BYTES:
            raise InputError(f"{folder} has more than {MAX_ENTRY_BYTES} bytes: an entry brings no data and no weights")
        known = word_sequences(held_out)
        if any(known & word_sequences(content.decode(errors="ignore")) for content in contents):
            raise InputError(f"{folder} contains {SHARED_WORDS} words in a row of the held-out text")
        self.hash = hash_entry(folder)


def entry_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def hash_entry(folder: Path) -> str:
    """Return the SHA-256 of an entry's files and their names."""
    parts = [f"{file.relative_to(folder)}\n".encode() + file.read_bytes() for file in entry_files(folder)]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def word_sequences(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}
