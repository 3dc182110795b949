"""Runs of an ablation: one process per cell and seed, resumable, in parallel as far as there are cores."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml

from ...artifacts.open import auto_class_of, open_model
from ...artifacts.record import RECORD_FILE, read_record
from ...artifacts.tokenizer_files import save_tokenizer
from ...core.atomic_files import atomic_directory, remove_directory, write_atomically
from ...core.checkpoints import complete_checkpoints, last_checkpoint
from ...core.errors import InputError
from ...core.quiet import quiet
from ...data.sources import read_documents
from ...data.tokenizer import train_tokenizer
from ...train.initialization import zero_init_output_projections
from .grid import Cell


@dataclass(frozen=True)
class Run:
    """A cell with a seed, and the folder of its model."""

    cell: Cell
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def recipe(self) -> Path:
        return self.folder.parent / "recipe.yaml"

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def initial_model(self) -> Path:
        """Folder of the untrained model that has another run's embeddings."""
        return self.folder.with_name(f"{self.folder.name}-start")

    @property
    def finished(self) -> bool:
        return (self.folder / RECORD_FILE).is_file()

    def facts(self) -> dict[str, Any]:
        """Return `tokens_per_second` and `peak_bytes` of the training; None if unknown."""
        file = self.folder.with_suffix(".json")
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_recipes(
    cells: Sequence[Cell], seeds: Sequence[int], output: Path, style: Literal["decoder", "encoder"]
) -> list[Run]:
    """
    Train missing tokenizers, write each cell's recipe, and return the runs.

    The runs are ordered by seed, so that other load on the machine affects all cells alike.
    """
    for cell in cells:
        recipe = Run(cell, 0, output / "runs" / cell.folder / "seed-0").recipe
        if not recipe.exists():
            tokenizer = _tokenizer(cell, output / "tokenizers", style)
            recipe.parent.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump({**cell.fields, "tokenizer": tokenizer}, sort_keys=False)
            write_atomically(recipe, f"# {cell.name}\n{text}")
    return [Run(cell, seed, output / "runs" / cell.folder / f"seed-{seed}") for seed in seeds for cell in cells]


def _tokenizer(cell: Cell, folder: Path, style: Literal["decoder", "encoder"]) -> str:
    """Return the folder of a cell's tokenizer; train it on the cell's text if it is missing."""
    spec = cell.fields["tokenizer"]
    if isinstance(spec, str):
        return spec
    data, text_field = cell.fields["data"], cell.fields.get("text_field", "text")
    digest = hashlib.sha256(json.dumps([spec, data, text_field, style], sort_keys=True).encode()).hexdigest()
    target = folder / f"{spec.get('kind', 'bpe')}-{digest[:8]}"
    if not target.exists():
        print(f"tokenizer  training {dict(spec)}", flush=True)
        tokenizer = train_tokenizer(read_documents(data, text_field=text_field), style=style, **spec)
        with atomic_directory(target) as staging:
            save_tokenizer(tokenizer, staging)
    return str(target)


def write_model_with_embeddings(donor: Path, target: Path, seed: int) -> None:
    """Write a new model with the donor's shape and token embeddings."""
    trained, tokenizer = open_model(str(donor))
    transformers.set_seed(seed)
    model = getattr(transformers, auto_class_of(str(donor))).from_config(trained.config)
    zero_init_output_projections(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(trained.get_input_embeddings().weight)
    with atomic_directory(target, replace=True) as staging, quiet():
        model.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)


def choose_cores(cores: int | None, threads: int) -> int:
    """Return the number of cores to use. Raises `InputError` for one below 1, or too few for a run's threads."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 1:
        raise InputError(f"cores {cores}: must be at least 1")
    if not 1 <= threads <= cores:
        raise InputError(f"threads {threads}: a run may have 1 to {cores} (--cores)")
    return cores


@dataclass
class Runner:
    """
    Run a training script in processes of its own. SIGINT and SIGTERM are passed on: each run saves a checkpoint.

    Attributes:
        script: path of the training script.
        jobs: number of parallel runs.
        threads: threads of each run.
        report: called with one line for every run that ends.
        failed: last line of output of each failed run, by its name.
    """

    script: Path
    jobs: int
    threads: int
    report: Callable[[str], None] = print
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    _children: set[subprocess.Popen] = field(default_factory=set)

    def __call__(self, runs: Sequence[Run]) -> None:
        """Run all that is not finished; runs with embeddings of other runs come after these."""
        self._by_cell = {(run.cell.name, run.seed): run for run in runs}
        independent = [run for run in runs if run.cell.embeddings_from is None]
        dependent = [run for run in runs if run.cell.embeddings_from is not None]
        with self._passing_on_signals():
            for batch in (independent, dependent):
                with ThreadPoolExecutor(self.jobs) as pool:
                    list(pool.map(self._run, batch))

    @contextlib.contextmanager
    def _passing_on_signals(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            self.stopped = True
            for child in list(self._children):
                child.send_signal(number)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, run: Run) -> None:
        import fcntl

        if self.stopped:
            return
        # The child holds the lock too: if this process is killed, the next one waits for the children still running.
        with open(run.folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if run.finished:
                return _write_facts(run)
            if run.cell.embeddings_from is not None and not self._prepare_embeddings(run):
                return
            peak_bytes = self._spawn(run, lock.fileno())
            if run.finished:
                _write_facts(run, peak_bytes)
                figures = ", ".join(f"{name} {value:.4g}" for name, value in read_record(run.folder)["results"].items())
                self.report(f"{run.name}: {figures}")
            elif not self.stopped:
                self.failed[run.name] = _last_line(run.log)
                self.report(f"{run.name}: failed ({run.log}): {self.failed[run.name]}")

    def _prepare_embeddings(self, run: Run) -> bool:
        """Write the run's initial model; return False if the run with its embeddings is not finished."""
        donor = self._by_cell[str(run.cell.embeddings_from), run.seed]
        if not donor.finished:
            self.failed[run.name] = f"{donor.name}, which its embeddings come from, is not finished"
            return False
        if not run.initial_model.exists():
            write_model_with_embeddings(donor.folder, run.initial_model, run.seed)
        return True

    def _spawn(self, run: Run, lock: int) -> int:
        """Run the script to its end; return its peak memory in bytes."""
        command = [sys.executable, str(self.script), str(run.recipe), "--seed", str(run.seed)]
        command += ["--output_dir", str(run.folder)]
        if run.cell.embeddings_from is not None:
            command += ["--model", str(run.initial_model)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with open(run.log, "ab") as log:
            child = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, pass_fds=(lock,), start_new_session=True
            )
        self._children.add(child)
        if self.stopped:
            child.terminate()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self._children.discard(child)
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", log.read_text(encoding="utf-8", errors="replace"))]
    return next((line for line in reversed(lines) if line), "no output")


def _write_facts(run: Run, peak_bytes: int | None = None) -> None:
    """Write speed and memory of a finished run, and delete its checkpoints."""
    file = run.folder.with_suffix(".json")
    if not file.exists():
        facts = {"tokens_per_second": training_speed(run.folder), "peak_bytes": peak_bytes}
        write_atomically(file, json.dumps(facts))
    for checkpoint in complete_checkpoints(run.folder):
        remove_directory(checkpoint)


def training_speed(folder: Path) -> float | None:
    """
    Return tokens per second: the median over the lines of the run's log, few of which include evaluations and saves.
    """
    if (checkpoint := last_checkpoint(folder)) is None:
        return None
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    marks = [(line["num_input_tokens_seen"], line["train_runtime"]) for line in history if "train_runtime" in line]
    speeds = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(marks) if b[1] > a[1]]
    return statistics.median(speeds) if speeds else None
