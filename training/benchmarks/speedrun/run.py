"""
Verify an entry of the speedrun, or write the table of records.

    python training/benchmarks/speedrun/run.py verify ENTRY --track causal
    python training/benchmarks/speedrun/run.py table

An entry's code is run as it is: read it first. README.md beside this file has the rules.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from hf_tfm.core.atomic_files import require_empty, write_atomically
from hf_tfm.core.clean_process import DoesNotLoad, run_for_a_stranger
from hf_tfm.core.errors import InputError
from hf_tfm.train.recipe import one_line_errors


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import tracks  # noqa: E402
from entry import Entry  # noqa: E402
from judge import column, judge  # noqa: E402
from measure import MASKED_TOKENIZER, read_texts  # noqa: E402
from side_by_side import machine  # noqa: E402
from table import read_records, update_table  # noqa: E402
from tracks import HASHES, HERE, TRACKS  # noqa: E402

import torch  # noqa: E402


CORES, SEEDS = 2, 3
# Facts about a machine; with equal ones, the minutes in a record are compared as they are.
DECIDE_SPEED = ("processor", "gpu", "threads", "bf16_in_hardware", "amx", "versions")
# No network, no held-out text, no other processes; all that an entry starts ends with it.
ISOLATION = ("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
HIDING = ("sh", "-c", 'mount --bind /dev/null "$0" && exec "$@"', str((tracks.TEXTS / "test.jsonl.gz").resolve()))


class Runner:
    """
    Runs entries on one track and measures their models.

    Args:
        output: folder for text, models and logs.

    Attributes:
        runs: minutes, loss and other figures of each seed, by the name of the entry.
    """

    def __init__(self, name: str, device: str, output: Path):
        self.name, self.track, self.device, self.output = name, TRACKS[name], device, output.absolute()
        self.train, self.held_out = self.output / "train.jsonl", tracks.TEXTS / "test.jsonl.gz"
        self.runs: dict[str, list[dict[str, float]]] = defaultdict(list)
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < CORES:
            raise InputError(f"this process may use {len(cores)} CPU core; the rules give an entry {CORES}")
        if device == "gpu" and not torch.cuda.is_available():
            raise InputError("--device gpu: torch finds none")
        require_empty(self.output)
        self.output.mkdir(parents=True, exist_ok=True)
        tracks.write_training_text(self.train, self.track.train_bytes)
        self.limits = ["taskset", "-c", ",".join(map(str, cores[:CORES]))] if device == "cpu" else []
        self.isolated = subprocess.run([*ISOLATION, *HIDING, "true"], capture_output=True).returncode == 0
        if self.isolated:
            self.limits += [*ISOLATION, *HIDING]

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables of a run: empty caches, so that compiling counts; this Python; no secrets."""
        passed = {name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ}
        temporary = home / "tmp"
        temporary.mkdir()
        return {
            **passed,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PYTHONUSERBASE": site.getuserbase(),
            "HF_HUB_OFFLINE": "1",
            **({"OMP_NUM_THREADS": str(CORES)} if self.device == "cpu" else {}),
            "CUDA_VISIBLE_DEVICES": "" if self.device == "cpu" else "0",
        }

    def run(self, entry: Entry, seed: int) -> None:
        """
        Train and measure with one seed; nothing of it is there for the next one.

        Raises:
            InputError: the run fails, takes too long, or its model must not be measured.
        """
        run = f"{entry.name}, seed {seed}"
        folder, log = self.output / f"{entry.name}-{seed}", self.output / f"{entry.name}-{seed}.log"
        folder.mkdir()
        model, environment = folder / "model", self.environment(folder)
        command = [*self.limits, str(entry.program), "--track", self.name, "--train", str(self.train)]
        command += ["--output", str(model), "--seed", str(seed)]
        if self.track.kind == "masked":
            command += ["--tokenizer", str(MASKED_TOKENIZER)]
        print(f"{run}: log in {log}", flush=True)
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=entry.folder, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(timeout=60 * self.track.minutes)
                minutes = (time.monotonic() - started) / 60
            except subprocess.TimeoutExpired:
                raise InputError(f"{run}: stopped because it ran for over {self.track.minutes:g} minutes") from None
            finally:
                kill_group(process)
        if code:
            last = (log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
            raise InputError(f"{run}: ended with exit code {code}: {last} (log in {log})")
        measured = self.measure(model, run)
        if measured["loss"] in column(self.runs[entry.name], "loss"):
            raise InputError(f"{run}: the same loss as with another seed, so the entry ignores --seed")
        self.runs[entry.name].append({"minutes": minutes, **measured})
        print(f"{run}: {minutes:.2f} minutes, loss {measured['loss']:.4f}", flush=True)
        shutil.rmtree(folder)

    def measure(self, model: Path, run: str) -> dict[str, float]:
        """Return a model's figures, computed in a clean process in a folder without the entry's files."""
        result, place = self.output / "measured.json", self.output / "empty"
        place.mkdir(exist_ok=True)
        arguments = ["measure.py", str(model), self.track.kind, str(self.held_out), "--result", str(result)]
        if self.track.held_out_documents is not None:
            arguments += ["--documents", str(self.track.held_out_documents)]
        script = str(HERE / "measure.py")
        try:
            run_for_a_stranger(
                f"import runpy, sys\nsys.argv = {arguments!r}\nrunpy.run_path({script!r}, run_name='__main__')", place
            )
        except DoesNotLoad as error:
            raise InputError(f"{run}: {error}") from None
        return json.loads(result.read_text())

    def machine(self) -> dict[str, Any]:
        """Return the facts by which times are compared, and the commit."""
        name = torch.cuda.get_device_name(0) if self.device == "gpu" else None
        return {**machine(), "threads": CORES if self.device == "cpu" else None, "gpu": name}


def kill_group(process: subprocess.Popen) -> None:
    """End a process and all that it started, which may still be at work when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def verify(args: argparse.Namespace) -> None:
    """Run an entry with each seed, in turns with the standing record's, and write the result."""
    tracks.check_shared_files()
    held_out = "\n".join(read_texts(tracks.TEXTS / "test.jsonl.gz"))
    entry = Entry(args.entry, held_out)
    output = args.output or Path("runs/speedrun") / f"{entry.name}-{args.track}"
    runner = Runner(args.track, args.device, output)
    here = runner.machine()
    records = [r for r in read_records() if (r["track"], r["device"]) == (args.track, args.device)]
    record = records[-1] if records else None
    rival = None
    if record is not None and record["entry"] != entry.name:
        rival = Entry(HERE / "entries" / record["entry"], held_out)
        if all(record["machine"][name] == here[name] for name in DECIDE_SPEED):
            runner.runs[rival.name] = record["runs"]
    contestants = [entry] if rival is None or rival.name in runner.runs else [entry, rival]
    for seed in range(args.seeds):
        for contestant in contestants:
            runner.run(contestant, seed)
    result = {
        "track": args.track, "device": args.device, "date": time.strftime("%Y-%m-%dT%H:%M"), "entry": entry.name,
        **entry.facts, "runs": runner.runs[entry.name], "isolated": runner.isolated, "machine": here,
        "record": None if rival is None else {"entry": rival.name, "runs": runner.runs[rival.name]},
        "sha256": {**HASHES, "entry": entry.hash},
    }  # fmt: skip
    verdict = judge(runner.track, result)
    write_atomically(output / "result.json", json.dumps(result, indent=1) + "\n")
    print(f"verified: {verdict}; {output}/result.json")


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    verifying = commands.add_parser("verify", help="run an entry with several seeds, and measure its models")
    verifying.add_argument("entry", type=Path, help="folder of the entry")
    verifying.add_argument("--track", choices=TRACKS, required=True)
    verifying.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="two CPU cores, or one GPU")
    verifying.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to this number less one, at least three")
    verifying.add_argument("--output", type=Path, help="folder to write, by default runs/speedrun/ENTRY-TRACK")
    verifying.set_defaults(command=verify)
    table = commands.add_parser("table", help="write the table of records in README.md")
    table.add_argument("--check", action="store_true", help="fail if the table is not that of the records")
    table.set_defaults(command=lambda args: update_table(args.check))
    args = parser.parse_args(argv)
    if args.command is verify and args.seeds < SEEDS:
        parser.error(f"--seeds {args.seeds}: the rules ask for {SEEDS} at least")
    args.command(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
