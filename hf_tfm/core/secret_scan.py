"""Finds data that must not be published in files: access tokens, and paths of the local machine."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Folders whose paths name users and projects. /usr and /etc are the same on every machine.
_PRIVATE = "home|root|Users|tmp|var|private|mnt|media|opt|srv|data|work|workspace|scratch|content|kaggle|Volumes"
_PATH = re.compile(
    rf"(?:file://|(?<![\w.\-/~@:}}\\]))(/(?:{_PRIVATE}|gpfs|lustre|nfs)/[\w.\-]+)|\b([A-Za-z]:[\\/]+Users[\\/]+\w+)"
)
_TOKENS = {
    "an access token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an access token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,})",
    "an API key": r"\bsk-[A-Za-z0-9_\-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w\-]{35}|\bxox[abp]-[\w\-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")  # endings of names of environment variables with secrets
# Their strings are learned pieces of text, which may look like a path.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_PIECE, _OVERLAP = 1 << 24, 1 << 10


def public_name(path: str | Path) -> str:
    """Return a file's name with its folder, `banking77/test.jsonl`, unless that is a user's home."""
    path = Path(path).absolute()
    folder = path.parent.name
    return path.name if folder in ("", Path.home().name) else f"{folder}/{path.name}"


def private_part(path: Path) -> str | None:
    """
    Return a description of the first private part of a file, without repeating tokens; None if there is none.

    Of weights only the header is searched, of JSON the strings, of other files the text.
    """
    if path.suffix == ".safetensors":
        return _in_header(path)
    if path.name in _VOCABULARIES:
        return next(filter(None, map(token_in, _texts(path))), None)
    if path.suffix in (".json", ".jsonl"):
        try:
            return next(filter(None, map(private_text_in, _strings_of(path))), None)
        except (ValueError, UnicodeDecodeError):
            return "is not JSON"
    return next(filter(None, map(private_text_in, _texts(path))), None)


def private_text_in(text: str) -> str | None:
    """Return a description of the private part of a text; None if there is none."""
    return token_in(text) or path_in(text)


def token_in(text: str) -> str | None:
    """Return a description of the access token or secret in a text; None if there is none."""
    for description, pattern in _TOKENS.items():
        if re.search(pattern, text):
            return f"contains {description}"
    for name, value in os.environ.items():
        if name.upper().endswith(SECRETS) and len(value) >= 12 and value in text:
            return f"contains the value of {name}"
    return None


def path_in(text: str) -> str | None:
    """Return a description of the local path in a text; None if there is none."""
    if match := _PATH.search(text):
        return f"contains a path of this machine, {match[1] or match[2]}"
    for place in (Path.home(), Path.cwd()):
        if len(place.parts) > 2 and re.search(rf"(?<![\w.\-/]){re.escape(str(place))}(?![\w.\-])", text):
            return f"contains a path of this machine, {place}"
    return None


def _texts(path: Path) -> Iterator[str]:
    """Yield the text of a file in overlapping pieces, so that no token is split."""
    with open(path, "rb") as file:
        overlap = b""
        while piece := file.read(_PIECE):
            yield (overlap + piece).decode("utf-8", errors="replace")
            overlap = piece[-_OVERLAP:]


def _in_header(path: Path) -> str | None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < 1 << 27 else b""
    try:
        end = max([0, *(e["data_offsets"][1] for name, e in json.loads(header).items() if name != "__metadata__")])
    except (ValueError, TypeError, KeyError, AttributeError):
        return "is no safetensors file"
    if path.stat().st_size != 8 + length + end:
        return f"is damaged: {path.stat().st_size:,} bytes where its header says {8 + length + end:,}"
    return private_text_in(header.decode("utf-8", errors="replace"))


def _strings_of(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
        if part.strip():
            yield from _strings(json.loads(part))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
