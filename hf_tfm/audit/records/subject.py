"""The data that a preflight looks at: the records of all splits, and their texts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...data.records import Records
from ..report import Level, Report
from .texts import Record, input_of, normalise, outcome_of, texts_of


LISTED_PLACES = 3
_INPUT_NAMES = {
    "classification": "text",
    "tags": "words",
    "questions": "question and context",
    "choices": "question and options",
    "pairs": "texts",
    "translation": "source",
    "text": "text",
}


@dataclass
class DataSubject:
    """
    Records of one job.

    Args:
        job: One of `JOBS`.
        splits: Records by the names of their splits, "train" first.
    """

    job: str
    splits: dict[str, Records]
    _keys: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    @property
    def input_name(self) -> str:
        """What a model reads of a record, in words."""
        return _INPUT_NAMES.get(self.job, "prompt")

    def input_keys(self, split: str) -> list[int]:
        """Returns a hash of what a model reads of each record, whatever its case and blanks."""
        return self._hashes(split, "input", lambda record: normalise(input_of(self.job, record)))

    def outcome_keys(self, split: str) -> list[int]:
        """Returns a hash of what is to be learned of each record."""
        return self._hashes(split, "outcome", lambda record: normalise(outcome_of(self.job, record)))

    def _hashes(self, split: str, name: str, view: Any) -> list[int]:
        if (split, name) not in self._keys:
            self._keys[split, name] = [hash(view(record)) for record in self.splits[split]]
        return self._keys[split, name]

    def compared_texts(self, split: str) -> list[str]:
        """Returns the text of each record by which near duplicates are found: the context of questions, else all."""
        if self.job == "questions":
            return [record["context"] for record in self.splits[split]]
        return [self.whole(record) for record in self.splits[split]]

    def whole(self, record: Record) -> str:
        """Returns all that a record says as one text."""
        return "\n".join(texts_of(self.job, record))


def list_places(records: Records, numbers: Sequence[int]) -> str:
    """Returns the places of the first of some records: "chats.jsonl, line 3; line 7 …"."""
    return list_first(shorten_places([records.places[number] for number in numbers[: LISTED_PLACES + 1]]))


def shorten_places(places: Sequence[str]) -> list[str]:
    """Returns places without folders; without the file, too, where the place before has the same one."""
    files = [place.partition(", ")[0] for place in places]
    if len({os.path.basename(file) for file in files}) < len(set(files)):
        return list(places)  # files of one name in several folders
    return [
        place.removeprefix(f"{file}, ") if file == previous else os.path.basename(file) + place.removeprefix(file)
        for place, file, previous in zip(places, files, ["", *files])
    ]


def list_pairs(pairs: Sequence[tuple[str, str]], sign: str) -> str:
    """Returns the first of some pairs of places with a sign between them: "chats.jsonl, line 9 = line 2"."""
    return list_first([f" {sign} ".join(shorten_places(pair)) for pair in pairs[: LISTED_PLACES + 1]])


def list_first(entries: Sequence[str]) -> str:
    """Returns the first of some entries as one text."""
    return "; ".join(entries[:LISTED_PLACES]) + (" …" if len(entries) > LISTED_PLACES else "")


def tell_share(count: int, total: int, noun: str = "records") -> str:
    """Returns a number with the total and the percentage: "3 of 8 records (38%)"."""
    percent = f"{count / total:.0%}" if count >= 0.1 * total else f"{100 * count / total:.2g}%"
    return f"{count:,} of {total:,} {noun} ({percent})"


class Part(NamedTuple):
    """The part of a finding that concerns one split, or a pair of splits."""

    level: str
    what: str
    where: str


def add_parts(report: Report, code: str, parts: Sequence[Part], **texts: str | None) -> None:
    """Add one finding for all splits, at the most serious level of its parts."""
    if parts:
        level = min((Level(part.level) for part in parts), key=list(Level).index)
        what = "; ".join(part.what for part in parts)
        report.add(code, what, "; ".join(part.where for part in parts if part.where), level=level, **texts)
