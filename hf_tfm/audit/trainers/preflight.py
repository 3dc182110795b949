"""
The preflight of a live trainer: one call before `trainer.train()`.

    from hf_tfm import preflight

    preflight(trainer)                        # prints findings, and what is trained, in colours
    preflight(trainer, depth=2)               # computes with two layers: seconds for a model of billions
    preflight(trainer, raise_on="error")      # raises PreflightError if the run would be wrong
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from ...core.errors import reason_of
from ..report import Report
from . import (
    accumulation,
    adapters,
    batches,
    chat_template,
    generation,
    gradients,
    labels,
    loss,
    row_losses,
    schedule,
    special_tokens,
    token_view,
    weights,
)
from .resume import check_resume
from .subject import TrainerSubject


# In this order: what is cheap and explains later findings comes first.
CHECKS: tuple[Callable[[TrainerSubject, Report], None], ...] = (
    schedule.check_settings,
    special_tokens.check_special_tokens,
    chat_template.check_trainer_template,
    token_view.show_rows,
    labels.check_labels,
    batches.check_positions,
    weights.check_weights,
    adapters.check_adapter,
    batches.check_padding_and_packing,
    row_losses.check_padded_loss,
    loss.check_first_loss,
    accumulation.check_accumulation,
    gradients.check_gradients,
    generation.check_cache,
)


def preflight(
    trainer: Any,
    *,
    depth: int | None = None,
    ignore: Iterable[str] = (),
    raise_on: str | None = None,
    html: str | Path | None = None,
    resume_from_checkpoint: str | Path | bool | None = None,
    show: str | None = "all",
) -> Report:
    """
    Look for silent faults of a trainer before it trains, and leave it as it was.

    Args:
        trainer: A `Trainer` of transformers, a trainer of TRL, or one of sentence-transformers.
        depth: Number of layers to compute with. By default the first loss and the gradients are computed with all
            layers, and the rest with a few.
        ignore: Codes of findings to leave out.
        raise_on: Raise `PreflightError` if there is an "error", or a "warning" or error, or a "note" or more.
        html: File for the report as a page.
        resume_from_checkpoint: Checkpoint that the run will resume from, or True for the last one of its folder.
        show: Print "all", the "findings" only, or nothing (None).

    Returns:
        The report, with `findings`, `facts` and `unseen`.
    """
    start = time.perf_counter()
    report = Report(frozenset(ignore))
    subject = TrainerSubject(trainer, depth)
    with subject.left_as_it_was():
        run_checks(subject, report)
        if resume_from_checkpoint:
            checkpoint = Path(trainer.args.output_dir if resume_from_checkpoint is True else resume_from_checkpoint)
            report.run("check_resume", check_resume, subject, checkpoint, report)
    report.facts["seconds"] = time.perf_counter() - start
    if html is not None:
        report.save_html(html)
    if show is not None:
        Console(markup=False, highlight=False, soft_wrap=True).print(report.render(short=show == "findings"))
    report.raise_on(raise_on)
    return report


def run_checks(subject: TrainerSubject, report: Report) -> None:
    """Run all checks of a live trainer."""
    dataset = subject.trainer.train_dataset
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        report.add("P801", "the training data have no record: none was given, or the trainer dropped them all")
        return
    try:
        subject.read_features()
        for batch in subject.batches:
            del batch
    except Exception as error:
        report.add("P200", f"the trainer's loader or collator fails: {type(error).__name__}: {reason_of(error)}")
        return
    if subject.reads_once:
        report.cannot_see("rows: the dataset gives each record only once, so that none is taken from the training")
        return
    for check in CHECKS:
        report.run(check.__name__, check, subject, report)
