"""
Run all benchmarks, and summarise them as a table and a picture.

    python training/benchmarks/run_all.py
    python training/benchmarks/run_all.py --train texts.jsonl.gz --validation held_out.jsonl.gz --threads 2
    python training/benchmarks/run_all.py --only step decode

This takes hours on an idle machine, most of them for the time to loss (`--only` selects). Results are written to
`training/benchmarks/results/`, on a CPU without bf16 to its folder `fp32`: a file per benchmark with opponent,
settings, spread and commit, `summary.json` with the ratios by name, `summary.md` and `summary.png`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import RESULTS


HERE = Path(__file__).parent
TEXT = HERE.parent / "data" / "text"

# What the README's table shows, in its order.
SHOWN = {
    "causal_time_to_loss": "time to the tuned opponent's loss, next token",
    "causal_time_to_loss_long": "the same at ten times the tokens",
    "causal_time_to_loss_own_shape": "next token, in a shape that no native family has",
    "causal_time_to_loss_long_own_shape": "so too at ten times the tokens",
    "masked_time_to_loss": "time to the tuned opponent's loss, masked tokens",
    "causal_step": "training step, next token",
    "masked_step": "training step, masked tokens",
    "decode_1": "generating text, one row (`hf_tfm.cpu.generate`)",
    "decode_16": "generating text, sixteen rows (`hf_tfm.cpu.generate`)",
    "encoder_inference": "encoding texts",
    "packing": "packing and batching",
}


def commands(args: argparse.Namespace, folder: str) -> dict[str, list[list[str]]]:
    """Return the command lines of each benchmark by name."""
    text, threads = [args.train, args.validation], ["--threads", str(args.threads)]
    tokenizer = str(Path(folder) / "tokenizer")
    masked = ["--kind", "masked", "--rows", "32", "--length", "128"]
    return {
        "step": [
            ["bench_step.py", "--kind", "causal", *threads],
            ["bench_step.py", *masked, *threads],
        ],
        "decode": [["bench_decode.py", *threads]],
        "encoder": [["bench_encoder.py", *threads]],
        "packing": [
            ["../train_tokenizer.py", "--data", args.train, "--output", tokenizer],
            ["bench_packing.py", args.train, "--tokenizer", tokenizer],
        ],
        "kill": [["bench_kill.py"]],
        "time_to_loss": [
            ["bench_time_to_loss.py", *text, "--kind", "causal", *threads],
            ["bench_time_to_loss.py", *text, "--kind", "masked", *threads],
            ["bench_time_to_loss.py", *text, "--kind", "causal", "--long", *threads],
            ["bench_time_to_loss.py", *text, "--kind", "causal", "--own_shape", *threads],
            ["bench_time_to_loss.py", *text, "--kind", "causal", "--long", "--own_shape", *threads],
        ],
    }


def summarise() -> None:
    """Write a table and a picture of the ratios in `summary.json`."""
    from matplotlib.figure import Figure

    ratios = json.loads((RESULTS / "summary.json").read_text())
    shown = {name: label for name, label in SHOWN.items() if name in ratios}
    lines = ["| what | times as fast | both keep freed memory | against |", "|---|---|---|---|"]
    for name, label in shown.items():
        file = next(f for f in RESULTS.glob("*.json") if name in json.loads(f.read_text()).get("ratios", {}))
        result = json.loads(file.read_text())
        opponent, exact = result["opponent"], result["ratios"]
        opponent = opponent if isinstance(opponent, str) else opponent["model"]
        same = f"{exact[memory]:.2f}" if (memory := f"{name}_same_memory") in exact else ""
        lines.append(f"| {label} | {exact[name]:.2f} | {same} | {opponent} |")
    (RESULTS / "summary.md").write_text("\n".join(lines) + "\n")

    figure = Figure(figsize=(8, 0.5 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    values = [ratios[name] for name in shown]
    colours = ["#4c72b0" if value >= 1 else "#c44e52" for value in values]
    bars = axes.barh(list(shown.values()), [value - 1 for value in values], left=1, color=colours)
    axes.bar_label(bars, labels=[f"{value:.2f}" for value in values], padding=3)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.7, max(values) * 1.6)
    axes.set_xlabel("times as fast as transformers' best of equal size")
    ticks = [tick for tick in (0.5, 1, 2, 4, 8, 16, 32, 64) if tick < max(values) * 1.6]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "summary.png", dpi=120)
    print("\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--train", default=str(TEXT / "train.jsonl.gz"))
    parser.add_argument("--validation", default=str(TEXT / "validation.jsonl.gz"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="step, decode, encoder, packing, kill, time_to_loss")
    parser.add_argument("--summary", action="store_true", help="run nothing; only rewrite the table and the picture")
    args = parser.parse_args(argv)
    # As the Makefile has it; as fast as threads that never sleep, on both sides.
    environment = {"GOMP_SPINCOUNT": "10000", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        known = commands(args, folder)
        if unknown := set(args.only or ()) - known.keys():
            parser.error(f"--only knows {', '.join(known)}, not {', '.join(sorted(unknown))}")
        for name in () if args.summary else args.only or known:
            for command in known[name]:
                print(f"\n$ python {' '.join(command)}", flush=True)
                status = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], env=environment)
                if status.returncode:
                    return status.returncode
    summarise()
    return 0


if __name__ == "__main__":
    sys.exit(main())
