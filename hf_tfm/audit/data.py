"""
The preflight of data, without a model: `hf-tfm preflight DATA --tokenizer T`.

    from hf_tfm.audit.data import preflight_data

    report = preflight_data(["train.jsonl"], validation=["dev.jsonl"], tokenizer="my-model", max_length=2048)

`data_reading.py` reads files of any form; each other module has checks of one kind.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.reading import ReadingOptions
from . import answers, data_chat, data_tokens, duplicates, label_balance, label_leaks, scripts, text_quality
from .data_reading import Location, read_splits
from .data_subject import DataSubject
from .preflight import run_check
from .report import Report


CHECKS: tuple[Callable[[DataSubject, Report], None], ...] = (
    duplicates.check_duplicates,
    duplicates.check_conflicts,
    duplicates.check_overlap,
    duplicates.check_near_duplicates,
    label_balance.check_labels_of_data,
    label_leaks.check_leaks,
    answers.check_answers,
    data_chat.tell_turns,
    text_quality.check_characters,
)


def preflight_data(
    files: Sequence[Location],
    *,
    validation: Sequence[Location] = (),
    test: Sequence[Location] = (),
    job: str | None = None,
    tokenizer: Any = None,
    template: str | Path | None = None,
    max_length: int | None = None,
    options: ReadingOptions = ReadingOptions(),  # noqa: B008
    ignore: Iterable[str] = (),
) -> Report:
    """
    Look for silent faults of data.

    Args:
        files: Files, folders or globs of records to train on; a folder may hold all splits.
        validation, test: The same of the other splits.
        job: One of `hf_tfm.data.forms.jobs.JOBS`; by default the most specific one whose form the files have.
        tokenizer: A folder, a name on the Hub, a tokenizer.json, or a tokenizer.
        template: File with a chat template, in place of the tokenizer's.
        max_length: Longest row, in tokens; by default the tokenizer's limit, if it names one.
        options: How the files are read.
        ignore: Codes of findings to leave out.

    Raises:
        InputError: Files, tokenizer or template cannot be read.
    """
    start = time.perf_counter()
    report = Report(frozenset(ignore))
    opened = None if tokenizer is None else data_tokens.open_tokenizer(tokenizer, template)
    job, splits = read_splits(files, validation, test, job, options, report)
    subject = DataSubject(job, {split: records for split, records in splits.items() if records})
    report.facts["job"] = job
    for split, records in splits.items():
        report.facts[f"{split} records"] = len(records)
    for check in CHECKS:
        run_check(lambda: check(subject, report), check.__name__, report)  # noqa: B023
    run_check(lambda: scripts.check_scripts(subject, opened, report), "check_scripts", report)
    if opened is None:
        report.cannot_see("tokens, lengths in tokens and chat templates: no tokenizer is given")
    else:
        check_with_tokenizer(subject, opened, max_length, report)
    # Behind the check of the chat template, which knows its own marks.
    run_check(lambda: answers.check_marks_in_messages(subject, report), "check_marks_in_messages", report)
    report.facts["seconds"] = time.perf_counter() - start
    return report


def check_with_tokenizer(subject: DataSubject, tokenizer: Any, max_length: int | None, report: Report) -> None:
    """Run the checks that need a tokenizer."""
    checks: dict[str, Callable[[], None]] = {
        "require_template": lambda: data_tokens.require_template(subject, tokenizer, report),
        "show_chats": lambda: data_chat.show_chats(subject, tokenizer, report),
        "check_chat_template": lambda: data_chat.check_chat_template(subject, tokenizer, report),
        "check_special_tokens_in_texts": lambda: data_tokens.check_special_tokens_in_texts(subject, tokenizer, report),
        "check_tokens": lambda: data_tokens.check_tokens(subject, tokenizer, max_length, report),
    }
    for name, check in checks.items():
        run_check(check, name, report)
