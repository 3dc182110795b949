"""
Ablations: what a switch is worth. A grid of recipes times seeds, every one a run of a pretraining script in a process
of its own, as many side by side as there are cores for.
"""

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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ...core.checkpoints import complete_checkpoints, last_checkpoint
from ...core.errors import InputError
from ...core.files import atomic_directory, remove_directory, write_atomically
from ...core.quiet import quiet
from ...data.sources import read_documents
from ...data.tokenizer import train_tokenizer
from ...train.initialization import zero_init_output_projections


_BY_THE_GRID = {"seed", "output_dir"}  # fields that a recipe cannot say here
_TOKENIZER_FIELDS = ("kind", "vocab_size", "lowercase", "min_frequency", "num_spare_tokens")


@dataclass(frozen=True)
class Cell:
    """
    One place of the grid.

    Attributes:
        name: its labels.
        fields: its recipe; `tokenizer` may be a mapping of what to train.
        embeddings_from: the cell whose trained embeddings it begins with.
    """

    name: str
    fields: dict[str, Any]
    embeddings_from: str | None = None

    @property
    def folder(self) -> str:
        """A name for files, another one for other fields: what was run with these is not taken for this."""
        digest = hashlib.sha256(json.dumps([self.fields, self.embeddings_from], sort_keys=True).encode()).hexdigest()
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{digest[:8]}"


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
    def finished(self) -> bool:
        return (self.folder / RECORD_FILE).is_file()

    def facts(self) -> dict[str, Any]:
        """`tokens_per_second` and `peak_bytes` of the training, None where unknown."""
        file = self.folder.with_suffix(".json")
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def expand(base: Mapping[str, Any], grid: Mapping[str, Any], override: Mapping[str, Any]) -> list[Cell]:
    """
    The cells of a grid: every way to take one label of each axis.

    Args:
        base: fields of all recipes.
        grid: `{axis: {label: {field: value}}}`; `model_overrides` are merged field by field, everything else replaced.
        override: fields that win over all others.

    Raises:
        InputError: the grid has another shape, two cells the same name, a seed of its own, or embeddings come from no
            earlier cell.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise InputError("grid: is empty; write it as {axis: {label: {field: value}}}")
    for axis, labels in grid.items():
        if not isinstance(labels, Mapping) or not labels:
            raise InputError(f"grid: axis {axis!r} has no labels; write it as {{label: {{field: value}}}}")
        for label, changes in labels.items():
            if not isinstance(changes, Mapping | None):
                raise InputError(f"grid: {label!r} of axis {axis!r} must be {{field: value}}, not {changes!r}")
    cells: list[Cell] = []
    for several in itertools.product(*(labels.items() for labels in grid.values())):
        fields: dict[str, Any] = {}
        for changes in (base, *(changes for _, changes in several), override):
            fields = merged(fields, changes or {})
        donor = fields.pop("embeddings_from", None)
        if donor is not None and donor not in [cell.name for cell in cells if cell.embeddings_from is None]:
            raise InputError(f"grid: embeddings_from {donor!r} is no earlier cell with embeddings of its own")
        if taken := sorted(_BY_THE_GRID & fields.keys()):
            raise InputError(f"grid: {taken[0]} is not a recipe's to say: --seeds and --output_dir of the grid decide")
        cells.append(Cell(", ".join(label for label, _ in several), fields, donor))
    names = [cell.name for cell in cells]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"grid: two cells are called {double!r}; give their labels other names")
    return cells


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with changes; of the model's configuration field by field."""
    inner = [several.get("model_overrides") or {} for several in (fields, changes)]
    for one in inner:
        if not isinstance(one, Mapping):
            raise InputError(f"grid: model_overrides must be {{field: value}}, not {one!r}")
    both = {**inner[0], **inner[1]}
    return {**fields, **changes, **({"model_overrides": both} if both else {})}


def check_cells(cells: Sequence[Cell], parse: Callable[[list[str]], Any]) -> None:
    """
    Read every cell's recipe as its script will.

    Args:
        parse: takes a script's arguments, and raises an `InputError` for what is wrong with them.
    """
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            spec = cell.fields.get("tokenizer")
            unknown = set(spec) - set(_TOKENIZER_FIELDS) if isinstance(spec, Mapping) else set()
            if unknown or not isinstance(spec, Mapping | str):
                wrong = f"unknown {min(unknown)!r}" if unknown else "missing"
                known = ", ".join(_TOKENIZER_FIELDS)
                raise InputError(
                    f"grid: cell {cell.name!r}: tokenizer: {wrong}; give a folder, or what to train: {known}"
                )
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(yaml.safe_dump({**cell.fields, "tokenizer": "not trained yet"}), encoding="utf-8")
            try:
                parse([str(recipe)])
            except InputError as error:
                reason = str(error).removeprefix(f"{recipe}: ")
                raise InputError(f"grid: cell {cell.name!r}: {reason}") from None


def write_recipes(
    cells: Sequence[Cell], seeds: Sequence[int], output: Path, style: Literal["decoder", "encoder"]
) -> list[Run]:
    """
    Train the tokenizers that cells ask for, write each cell's recipe, and list the runs: each seed's cells one after
    the other, so that what else the machine does falls on all of them alike.
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
    """The folder of a cell's tokenizer, trained on its text if it is not there."""
    spec = cell.fields["tokenizer"]
    if isinstance(spec, str):
        return spec
    data, text_field = cell.fields["data"], cell.fields.get("text_field", "text")
    digest = hashlib.sha256(json.dumps([spec, data, text_field, style], sort_keys=True).encode()).hexdigest()
    target = folder / f"{spec.get('kind', 'bpe')}-{digest[:8]}"
    if not target.exists():
        print(f"tokenizer  {dict(spec)} is trained", flush=True)
        trained = train_tokenizer(read_documents(data, text_field), style=style, **spec)
        with atomic_directory(target) as staging:
            save_tokenizer(trained, staging)
    return str(target)


def begin_with_embeddings(donor: Path, target: Path, seed: int) -> None:
    """Write a new model of the donor's shape that has the donor's token embeddings."""
    trained, tokenizer = open_model(str(donor))
    transformers.set_seed(seed)
    model = getattr(transformers, auto_class_of(str(donor))).from_config(trained.config)
    zero_init_output_projections(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(trained.get_input_embeddings().weight)
    with atomic_directory(target, replace=True) as staging, quiet():
        model.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)


@dataclass
class Runner:
    """
    Runs scripts in processes of their own. SIGINT and SIGTERM are passed on: each run saves a checkpoint and ends.

    Attributes:
        script: path of the training script.
        jobs: how many run side by side.
        threads: of each.
        say: is told of every run that ends.
        failed: the last line that each failed run said.
    """

    script: Path
    jobs: int
    threads: int
    say: Callable[[str], None] = print
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    _children: set[subprocess.Popen] = field(default_factory=set)

    def __call__(self, runs: Sequence[Run]) -> None:
        """Run what is not finished; what takes embeddings from other runs comes after these."""
        self._by_cell = {(run.cell.name, run.seed): run for run in runs}
        with self._signals_passed_on():
            for waiting in (False, True):
                with ThreadPoolExecutor(self.jobs) as pool:
                    list(pool.map(self._run, [r for r in runs if (r.cell.embeddings_from is not None) == waiting]))

    @contextlib.contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            self.stopped = True
            for child in list(self._children):
                child.send_signal(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, run: Run) -> None:
        import fcntl

        if self.stopped:
            return
        # The child holds the lock too: were this process killed, its next start would wait for what still runs.
        with open(run.folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if run.finished:
                return _keep_facts(run)
            if run.cell.embeddings_from is not None and not self._begin(run):
                return
            peak = self._spawn(run, lock.fileno())
            if run.finished:
                _keep_facts(run, peak)
                figures = ", ".join(f"{name} {value:.4g}" for name, value in read_record(run.folder)["results"].items())
                self.say(f"{run.name}: {figures}")
            elif not self.stopped:
                self.failed[run.name] = _last_line(run.log)
                self.say(f"{run.name}: failed ({run.log}): {self.failed[run.name]}")

    def _begin(self, run: Run) -> bool:
        donor = self._by_cell[run.cell.embeddings_from, run.seed]
        if not donor.finished:
            self.failed[run.name] = f"{donor.name}, which its embeddings come from, is not finished"
            return False
        if not _start_of(run).exists():
            begin_with_embeddings(donor.folder, _start_of(run), run.seed)
        return True

    def _spawn(self, run: Run, lock: int) -> int:
        """Run a script to its end; the most memory that it had, in bytes."""
        command = [sys.executable, str(self.script), str(run.recipe), "--seed", str(run.seed)]
        command += ["--output_dir", str(run.folder)]
        if run.cell.embeddings_from is not None:
            command += ["--model", str(_start_of(run))]
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


def _start_of(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}-start")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", log.read_text(encoding="utf-8", errors="replace"))]
    return next((line for line in reversed(lines) if line), "it said nothing")


def _keep_facts(run: Run, peak: int | None = None) -> None:
    """Keep what a finished run's checkpoints and process tell, and delete the checkpoints."""
    file = run.folder.with_suffix(".json")
    if not file.exists():
        facts = {"tokens_per_second": training_speed(run.folder), "peak_bytes": peak}
        write_atomically(file, json.dumps(facts))
    for checkpoint in complete_checkpoints(run.folder):
        remove_directory(checkpoint)


def training_speed(folder: Path) -> float | None:
    """
    Tokens a second, the median over the times between two lines of the run's log: what evaluations and saves take is
    in few of them.
    """
    if (checkpoint := last_checkpoint(folder)) is None:
        return None
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    marks = [(line["num_input_tokens_seen"], line["train_runtime"]) for line in history if "train_runtime" in line]
    speeds = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(marks) if b[1] > a[1]]
    return statistics.median(speeds) if speeds else None
