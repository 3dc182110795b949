"""
The preflight of data, without a model: `hf-tfm preflight DATA --tokenizer T`.

    from hf_tfm.audit.records.preflight import preflight_data

    report = preflight_data(["train.jsonl"], validation=["dev.jsonl"], tokenizer="my-model", max_length=2048)

`reading.py` reads files of any form; each other module has checks of one kind.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ...core.memory import pause_garbage_collector
from ...data.reading import ReadingOptions
from ..report import Report
from . import answers, chat, duplicates, label_balance, label_leaks, scripts, text_quality, tokens
from .reading import Location, read_splits
from .subject import DataSubject


CHECKS: tuple[Callable[[DataSubject, Report], None], ...] = (
    duplicates.check_duplicates,
    duplicates.check_conflicts,
    duplicates.check_overlap,
    duplicates.check_near_duplicates,
    label_balance.check_labels_of_data,
    label_leaks.check_leaks,
    answers.check_answers,
    chat.tell_turns,
    text_quality.check_characters,
)


@pause_garbage_collector()
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
    opened = None if tokenizer is None else tokens.open_tokenizer(tokenizer, template)
    job, splits = read_splits(files, validation, test, job, options, report)
    subject = DataSubject(job, {split: records for split, records in splits.items() if records})
    report.facts["job"] = job
    for split, records in splits.items():
        report.facts[f"{split} records"] = len(records)
    for check in CHECKS:
        report.run(check.__name__, check, subject, report)
    report.run("check_scripts", scripts.check_scripts, subject, opened, report)
    if opened is None:
        report.cannot_see("tokens, lengths in tokens and chat templates: no tokenizer is given")
    else:
        check_with_tokenizer(subject, opened, max_length, report)
    # Behind the check of the chat template, which knows its own marks.
    report.run("check_marks_in_messages", answers.check_marks_in_messages, subject, report)
    report.join_equal_codes()
    report.facts["seconds"] = time.perf_counter() - start
    return report


def check_with_tokenizer(subject: DataSubject, tokenizer: Any, max_length: int | None, report: Report) -> None:
    """Run the checks that need a tokenizer."""
    for check in (
        tokens.require_template,
        chat.show_chats,
        chat.check_chat_template,
        tokens.check_special_tokens_in_texts,
    ):
        report.run(check.__name__, check, subject, tokenizer, report)
    report.run("check_tokens", tokens.check_tokens, subject, tokenizer, max_length, report)
