"""
From text to models in one go: tokenizers, a causal LM, an encoder, a classifier on the encoder, native exports.

    python training/quickstart.py [--output_dir runs/quickstart]

Uses the data in `training/data` and nothing else; each step is one of the scripts beside this file, with the command
shown. Run it again after an interruption: what is finished stays, the rest goes on.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import finetune_classification
import pretrain_clm
import pretrain_mlm
import train_tokenizer
from hf_tfm.apps.cli import main as cli
from hf_tfm.artifacts.record import RECORD_FILE
from hf_tfm.core.errors import OneLineParser


REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = "training/data/text/train.jsonl.gz"


LOADING = """
Done in {minutes:.1f} minutes. The models load in three ways:

  with hf_tfm:            import hf_tfm; AutoModelForCausalLM.from_pretrained("{out}/decoder")
  without it:             AutoModelForMaskedLM.from_pretrained("{out}/encoder", trust_remote_code=True)
  as native classes:      AutoModelForCausalLM.from_pretrained("{out}/decoder-qwen3")

Try them:

  hf-tfm generate {out}/decoder "Once upon a time"
  hf-tfm fill-mask {out}/encoder "The old [MASK] lived in the forest."
"""


def steps(out: str) -> list[tuple[str, object, list[str], str]]:
    """What is run, in order: title, function, arguments, and the file that says it is finished."""
    tokenizer = ["--data", TEXT, "--vocab-size", "4096"]
    recipes = {job: [f"training/recipes/quickstart_{job}.yaml"] for job in ("clm", "mlm", "classifier")}
    return [
        (
            "A tokenizer for the causal LM",
            train_tokenizer.main,
            [*tokenizer, "--output", f"{out}/tokenizer-decoder"],
            f"{out}/tokenizer-decoder/tokenizer.json",
        ),
        (
            "The causal LM",
            pretrain_clm.main,
            [*recipes["clm"], "--tokenizer", f"{out}/tokenizer-decoder", "--output_dir", f"{out}/decoder"],
            f"{out}/decoder/{RECORD_FILE}",
        ),
        (
            "A tokenizer for the encoder",
            train_tokenizer.main,
            [*tokenizer, "--style", "encoder", "--output", f"{out}/tokenizer-encoder"],
            f"{out}/tokenizer-encoder/tokenizer.json",
        ),
        (
            "The encoder",
            pretrain_mlm.main,
            [*recipes["mlm"], "--tokenizer", f"{out}/tokenizer-encoder", "--output_dir", f"{out}/encoder"],
            f"{out}/encoder/{RECORD_FILE}",
        ),
        (
            "A classifier on the encoder: which of 77 questions does a bank's customer ask?",
            finetune_classification.main,
            [*recipes["classifier"], "--model", f"{out}/encoder", "--output_dir", f"{out}/classifier"],
            f"{out}/classifier/{RECORD_FILE}",
        ),
        (
            "The causal LM as a Qwen3 folder, which needs no code of ours",
            cli,
            ["export", f"{out}/decoder", f"{out}/decoder-qwen3", "--to", "qwen3"],
            f"{out}/decoder-qwen3/config.json",
        ),
        (
            "The encoder as a ModernBERT folder",
            cli,
            ["export", f"{out}/encoder", f"{out}/encoder-modernbert", "--to", "modernbert"],
            f"{out}/encoder-modernbert/config.json",
        ),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/quickstart", help="where the folders are written")
    folder = Path(parser.parse_args(argv).output_dir).absolute()  # before the steps' own paths begin at the repository
    out = str(folder.relative_to(REPOSITORY) if folder.is_relative_to(REPOSITORY) else folder)
    os.chdir(REPOSITORY)
    started = time.time()
    for number, (title, function, arguments, finished) in enumerate(steps(out), 1):
        name = "hf-tfm" if function is cli else f"python training/{function.__module__}.py"
        print(f"\n=== {number}. {title}\n$ {name} {' '.join(arguments)}", flush=True)
        if Path(finished).exists():
            print("finished before")
            continue
        if code := function(arguments):
            return code
        if not Path(finished).exists():  # stopped by a signal
            return 0
    print(LOADING.format(minutes=(time.time() - started) / 60, out=out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
