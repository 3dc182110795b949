"""Folders of runs for tests of the preflight: written by hand, or left by a Trainer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from audit_helpers import arguments, byte_tokenizer, chats, tiny_llama, token_rows
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback


def write_run(
    folder: Path,
    losses: Sequence[float],
    every: int = 10,
    rates: Callable[[float], float] | None = None,
    evaluations: Sequence[tuple[int, dict[str, float]]] = (),
    config: dict[str, Any] | None = None,
    **columns: Any,
) -> Path:
    """
    Write the state of a run that logged these losses, one each `every` steps.

    Args:
        rates: Learning rate by the fraction of the run that is done; by default it falls linearly from 1e-4.
        evaluations: Steps with their metrics, without `eval_`.
        columns: Other values of the log, as lists, or values of the state.
    """
    steps = [every * (place + 1) for place in range(len(losses))]
    last = steps[-1]
    rates = rates or (lambda done: 1e-4 * (1 - done))
    lists = {name: values for name, values in columns.items() if isinstance(values, list | np.ndarray)}
    log: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": step / last * 2,
            "loss": float(loss),
            "learning_rate": rates((step - 1) / last),
            "grad_norm": 1.0,
        }
        | {name: float(values[place]) for name, values in lists.items()}
        for place, (step, loss) in enumerate(zip(steps, losses))
    ]
    for step, metrics in evaluations:
        log.append({"step": step, "epoch": step / last * 2, **{f"eval_{key}": each for key, each in metrics.items()}})
    log.sort(key=lambda entry: entry["step"])
    state = {"global_step": last, "max_steps": last, "epoch": 2.0, "num_train_epochs": 2, "log_history": log}
    state |= {name: value for name, value in columns.items() if name not in lists}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def learning_curve(count: int = 60, start: float = 4.0, end: float = 1.5, noise: float = 0.05) -> np.ndarray:
    """Returns losses that fall from `start` towards `end`, with seeded noise."""
    done = np.arange(count) / count
    return end + (start - end) * np.exp(-5 * done) + np.random.default_rng(0).normal(0, noise, count)


def tiny_run(folder: Path, **options: Any) -> Trainer:
    """Returns a plain Trainer on 64 tiny chats, with checkpoints after 10 and 20 of 20 steps."""
    tokenizer = byte_tokenizer()
    settings = dict(max_steps=20, logging_steps=1, save_strategy="steps", save_steps=10, learning_rate=5e-3)
    return Trainer(
        model=tiny_llama(tokenizer),
        args=arguments(folder, **settings | options),
        train_dataset=Dataset.from_list(token_rows(tokenizer, chats(64))),
        eval_dataset=Dataset.from_list(token_rows(tokenizer, chats(8))),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


class StopAt(TrainerCallback):
    """Ends the process of training at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
