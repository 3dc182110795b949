"""
Kill a pretraining run with SIGKILL repeatedly, and compare its end with that of an uninterrupted run.

    python training/benchmarks/bench_kill.py --kills 30

A small run with dropout, evaluation and a checkpoint every other step is killed (its whole process group) at random
moments, and at the most critical ones: while a checkpoint is written, while an old one is deleted, while the finished
model is moved into place. The same command resumes it; at the end weights, optimizer, schedule, random state and losses
are compared bit by bit with those of an uninterrupted run. Writes results/bench_kill.json.

Each attempt is a fork of one process, so that imports are paid once.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pretrain_clm  # noqa: E402
from hf_tfm.artifacts.record import RECORD_FILE, versions  # noqa: E402
from hf_tfm.core.checkpoints import complete_checkpoints  # noqa: E402
from hf_tfm.data.tokenizer import train_tokenizer  # noqa: E402
from side_by_side import ALL_RESULTS  # noqa: E402


STEPS, KILLS_PER_RUN = 24, 3
# Files in the run's folder during critical moments.
MOMENTS = {
    "anywhere": None,
    "checkpoint written": ".checkpoint-*.partial",
    "old checkpoint deleted": ".checkpoint-*.deleted",
    "model put in place": "*finished*",
}
# Dropout makes the random state matter.
OVERRIDES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout": 0.1}


def arguments(root: Path, run: Path) -> list[str]:
    fields = {
        "data": root / "text.jsonl", "validation_data": root / "text.jsonl", "tokenizer": root / "tokenizer",
        "cache_dir": root / "cache", "model": "nano", "model_overrides": json.dumps(OVERRIDES), "block_length": 64,
        "max_steps": STEPS, "per_device_train_batch_size": 4, "validation_tokens": 500, "logging_steps": 1,
        "save_steps": 2, "eval_steps": 5, "compile": "off", "output_dir": run,
    }  # fmt: skip
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


def prepare(root: Path) -> None:
    """Write a text and its tokenizer."""
    draw = random.Random(0)
    words = ["river", "miller", "forest", "story", "told", "asked", "the", "and", "a", "of", "once", "lived"]
    texts = [" ".join(draw.choices(words, k=60)) + "." for _ in range(200)]
    (root / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(texts, vocab_size=320, num_spare_tokens=0).save_pretrained(root / "tokenizer")


def start(root: Path, run: Path) -> int:
    """Start the run in a process group of its own and return its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    log = os.open(root / f"{run.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = pretrain_clm.main(arguments(root, run))
    finally:
        os._exit(code)


def finished(child: int) -> bool:
    """Return whether a process has ended by itself. Raises `RuntimeError` if it failed."""
    process, status = os.waitpid(child, os.WNOHANG)
    if process and os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"the run failed with exit code {os.waitstatus_to_exitcode(status)}: see its log")
    return bool(process)


def attempt(root: Path, run: Path, moment: str, draw: random.Random, seconds: float) -> dict | None:
    """Start or resume the run and kill it; returns None if it ended before."""
    before = complete_checkpoints(run)
    child, began = start(root, run), time.monotonic()
    # A random one of the next checkpoints; a critical moment lasts some milliseconds.
    wait, seen, skip = draw.uniform(0, 0.8 * seconds), set(), draw.randrange(3)
    while True:
        if finished(child):
            return None
        if MOMENTS[moment] is None:
            if time.monotonic() - began > wait:
                break
        else:
            seen.update(path.name for path in run.glob(MOMENTS[moment]))
            if len(seen) > (0 if moment == "model put in place" else skip):
                time.sleep(draw.uniform(0, 0.01))
                break
        time.sleep(0)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = [name for name, pattern in MOMENTS.items() if pattern and list(run.glob(pattern))]
    step = lambda found: int(found[-1].name.split("-")[1]) if found else 0  # noqa: E731
    return {
        "aimed at": moment,
        "hit": ", ".join(left) or "between",
        "seconds": round(time.monotonic() - began, 3),
        "began at step": step(before),
        "whole checkpoint of step": step(complete_checkpoints(run)),
    }


def difference(one: Path, other: Path) -> str | None:
    """Return the first file or field in which two finished runs differ, or None."""
    last = f"checkpoint-{STEPS}"
    for name in ("model.safetensors", f"{last}/model.safetensors"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            return name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        first, second = (torch.load(run / last / name, weights_only=False) for run in (one, other))
        if not same(first, second):
            return name
    curves = [json.loads((run / RECORD_FILE).read_text()) for run in (one, other)]
    for name in ("curve", "results", "samples"):
        if curves[0][name] != curves[1][name]:
            return f"{name} in the record"
    return None


def same(first: object, second: object) -> bool:
    """Return whether two states are equal, including every bit of their tensors."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool((first == second).all()) if hasattr(first, "all") else first == second


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ALL_RESULTS / "bench_kill.json")
    args = parser.parse_args(argv)
    draw, kills, runs = random.Random(args.seed), [], 0
    with tempfile.TemporaryDirectory(prefix="bench_kill_") as folder:
        root = Path(folder)
        prepare(root)
        reference, began = root / "untouched", time.monotonic()
        child = start(root, reference)
        while not finished(child):
            time.sleep(0.01)
        seconds = time.monotonic() - began
        print(f"untouched run: {STEPS} steps, {STEPS // 2} checkpoints, {seconds:.1f} s", flush=True)
        while len(kills) < args.kills:
            runs += 1
            run, own = root / f"run{runs}", []
            while not (run / RECORD_FILE).exists():
                moment = list(MOMENTS)[(len(kills) + len(own)) % len(MOMENTS)]
                wanted = len(own) < min(KILLS_PER_RUN, args.kills - len(kills))
                if not wanted:
                    moment, limit = "anywhere", float("inf")
                hit = attempt(root, run, moment, draw, seconds if wanted else limit)
                own += [hit] if hit else []
            differs = difference(reference, run)
            for hit in own:
                kills.append({"kill": len(kills) + 1, "run": runs, **hit, "bit-identical": differs is None})
                print("  ".join(f"{name} {value}" for name, value in kills[-1].items()), flush=True)
            if differs:
                print(f"run {runs} differs in {differs}", flush=True)

    identical = sum(kill["bit-identical"] for kill in kills)
    print(f"\n{identical} of {len(kills)} kills left no trace, in {len({kill['run'] for kill in kills})} runs")
    print("hit: " + ", ".join(f"{count} {hit}" for hit, count in Counter(kill["hit"] for kill in kills).items()))
    args.results.parent.mkdir(exist_ok=True)
    facts = {"versions": versions(), "steps": STEPS, "seed": args.seed, "identical": identical, "kills": kills}
    args.results.write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if identical == len(kills) else 1


if __name__ == "__main__":
    sys.exit(main())
