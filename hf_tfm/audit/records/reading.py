"""Reads the files of a preflight as the records of a job, which is guessed if nobody names it."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...core.errors import InputError
from ...core.package_data import find_packaged
from ...data.files import named_split
from ...data.forms.form import Reading
from ...data.forms.jobs import JOBS
from ...data.forms.reader import FileReport, LeftOut, ReadRecord, RecordReader, collect
from ...data.reading import ReadingOptions
from ...data.records import Records, iter_table
from ..report import Report
from .subject import shorten_places
from .texts import has_scores


Location = str | Path
SPLITS = ("train", "validation", "test")
# The most specific job first: preferences can also be read as texts, and no file of texts as preferences.
_ORDER = (
    *("preferences", "questions", "choices", "tags", "chat", "classification", "pairs", "translation", "prompts"),
    "text",
)
_TRIED_RECORDS, _FEW_RECORDS = 50, 20
# Reasons of the reader for rows in which there is nothing.
_EMPTY = ("blank", "is null", "is nan", "is missing", "is empty", "empty list", "has no content", "no messages")
_BLANK_LINES = "source and target blank"  # between the paragraphs of aligned files
_EQUAL_ANSWERS = "both answers are the same"


class Place(NamedTuple):
    """The files of a split: locations, and the split that is read of them if they are folders."""

    locations: list[Location]
    split: str


class Guess(NamedTuple):
    """How a file can be read, the form that it then has, its first records, and the number of bad rows among them."""

    reading: Reading
    form: str
    read: list[ReadRecord]
    bad: int


def read_splits(
    files: Sequence[Location],
    validation: Sequence[Location],
    test: Sequence[Location],
    job: str | None,
    options: ReadingOptions,
    report: Report,
) -> tuple[str, dict[str, Records]]:
    """
    Returns the job and the records of the splits that are there. Rows that cannot be read become findings.

    Raises:
        InputError: A file is missing, or has no form of the job, or of any job.
    """
    if job is not None and job not in JOBS:
        raise InputError(f"job {job!r}: there are {', '.join(JOBS)}")
    places = _find_splits(files, validation, test)
    reading = _choose_reading(next(iter(places.values())), job, options, report)
    level = "note" if options.skip_bad else None
    return reading.job, {split: _read_split(place, reading, split, level, report) for split, place in places.items()}


def _find_splits(
    files: Sequence[Location], validation: Sequence[Location], test: Sequence[Location]
) -> dict[str, Place]:
    """The places of the splits; a single folder may hold all of them, in files that are named for splits."""
    folder = Path(find_packaged(str(Path(files[0]).expanduser())))
    if len(files) == 1 and not validation and not test and folder.is_dir():
        named = {named_split(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {split: Place([files[0]], split) for split in SPLITS if split in named} or {
            "train": Place([files[0]], "train")
        }
    given = {"train": files, "validation": validation, "test": test}
    return {split: Place(list(locations), split) for split, locations in given.items() if locations}


def _choose_reading(place: Place, job: str | None, options: ReadingOptions, report: Report) -> Reading:
    """How the files are read: for the job that is given, or the most specific one whose form they have."""
    jobs = _ORDER if job is None else (job,)
    guesses = [guess for name in jobs if (guess := _try_job(place, name, options))]
    if job is not None:
        return guesses[0].reading if guesses else Reading(job, options=_skipping(options), dashed=True)
    if not guesses:
        _, row = next(iter_table(place.locations[0], place.split))
        raise InputError(
            f"{place.locations[0]}: has no form that a job reads (`hf-tfm formats` lists them); its fields are "
            f"{', '.join(map(str, row))}; --job says what a job lacks"
        )
    chosen = _prefer(guesses)
    others = [guess.reading.job for guess in guesses if guess is not chosen]
    beside = f"; it also fits {', '.join(others)}: --job {others[0]}" if others else ""
    report.facts["read as"] = f"{chosen.reading.job} (form {chosen.form}{beside})"
    return chosen.reading


def _prefer(guesses: Sequence[Guess]) -> Guess:
    """
    The first guess, with two exceptions: classes whose numbers have fractions are scores of pairs, and a text with
    labels has words with tags only if there are as many in each of many rows.
    """
    first, by_job = guesses[0], {guess.reading.job: guess for guess in guesses}
    if first.reading.job == "tags" and "classification" in by_job:
        has_lists = any(isinstance(value, list) for value in first.read[0].row.values())
        if (
            first.form == "words-and-tags"
            and (first.bad or len(first.read) < _FEW_RECORDS)
            and not (has_lists and not first.bad and all(len(read.record["tokens"]) > 1 for read in first.read))
        ):
            first = by_job["classification"]
    if first.reading.job == "classification" and "pairs" in by_job:
        if has_scores([read.record["label"] for read in first.read]):
            return by_job["pairs"]
    return first


def _skipping(options: ReadingOptions) -> ReadingOptions:
    return replace(options, skip_bad=True)


def _try_job(place: Place, job: str, options: ReadingOptions) -> Guess | None:
    """How the first records can be read for a job, with labels or without; None if they cannot."""
    options = _skipping(options)
    readings = [Reading(job, options=options, dashed=True)]
    if job == "chat" and "label" not in options.ignore_fields:
        unpaired = replace(options, ignore_fields=(*options.ignore_fields, "label"))
        readings.append(Reading(job, options=unpaired, dashed=True))
    if job in ("prompts", "text"):
        readings.append(Reading(job, options=options, labelled=False, dashed=True))
    for reading in readings:
        reader = RecordReader(place.locations, reading, place.split)
        try:
            read = list(itertools.islice(reader, _TRIED_RECORDS))
        except InputError:
            continue
        bad = sum(rows.count for file in reader.reports for rows in file.bad.values())
        if len(read) >= bad and not (job == "tags" and all(len(each.record["tokens"]) == 1 for each in read)):
            return Guess(reading, reader.reports[0].form, read, bad)
    return None


def _read_split(place: Place, reading: Reading, split: str, level: str | None, report: Report) -> Records:
    """Returns all records of a split that can be read. `level` is that of findings on rows that cannot."""
    reader = RecordReader(place.locations, reading, place.split)
    read: list[ReadRecord] = []
    try:
        read.extend(reader)
    except InputError:
        if not any(file.rows for file in reader.reports):
            raise
    for file in reader.reports:
        _report_left_out(file, level, report)
        report.facts[f"{split} file {Path(file.file).name}"] = "; ".join(file.lines()).removeprefix(f"{file.file}: ")
    if reading.job == "chat" and "label" in reading.options.ignore_fields:
        report.cannot_see("the labels of unpaired preferences (KTO): their conversations are read without them")
    return collect(reader, read)


def _report_left_out(file: FileReport, bad_level: str | None, report: Report) -> None:
    """Report rows of a file that give no record, by their reasons."""
    for reason, rows in {**file.left_out, **file.bad}.items():
        code = _code_of(reason)
        means_nothing = reason in file.left_out and (code == "P612" or reason == _BLANK_LINES)
        level = "note" if means_nothing else bad_level
        report.add(code, f"{rows.count:,} of {file.rows:,} rows: {reason}", _places_of(rows), level=level)


def _code_of(reason: str) -> str:
    if reason == _EQUAL_ANSWERS:
        return "P113"
    return "P601" if any(part in reason for part in _EMPTY) else "P612"


def _places_of(rows: LeftOut) -> str:
    return "; ".join(shorten_places(rows.places)) + (" …" if rows.count > len(rows.places) else "")
