"""
From text to models in one go: tokenizers, a causal LM, an encoder, a classifier on the encoder, native exports.

    hf-tfm quickstart [--output_dir runs/quickstart]

It uses the data of `training/data` alone. Each step is a command of `hf-tfm`, which is shown. After an interruption the
same command goes on with the steps that are not finished.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from hf_tfm.apps.cli import main as hf_tfm
from hf_tfm.artifacts.record import RECORD_FILE
from hf_tfm.core.errors import OneLineParser


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


def steps(out: str) -> list[tuple[str, list[str], str]]:
    """Title of each step, arguments of its `hf-tfm` command, and the file that exists when it is finished."""
    tokenizer = ["train", "tokenizer", "--data", TEXT, "--vocab-size", "4096"]
    return [
        (
            "A tokenizer for the causal LM",
            [*tokenizer, "--output", f"{out}/tokenizer-decoder"],
            f"{out}/tokenizer-decoder/tokenizer.json",
        ),
        (
            "The causal LM",
            ["train", "clm", "quickstart_clm.yaml", "--tokenizer", f"{out}/tokenizer-decoder",
             "--output_dir", f"{out}/decoder"],
            f"{out}/decoder/{RECORD_FILE}",
        ),
        (
            "A tokenizer for the encoder",
            [*tokenizer, "--style", "encoder", "--output", f"{out}/tokenizer-encoder"],
            f"{out}/tokenizer-encoder/tokenizer.json",
        ),
        (
            "The encoder",
            ["train", "mlm", "quickstart_mlm.yaml", "--tokenizer", f"{out}/tokenizer-encoder",
             "--output_dir", f"{out}/encoder"],
            f"{out}/encoder/{RECORD_FILE}",
        ),
        (
            "A classifier on the encoder: which of 77 questions does a bank's customer ask?",
            ["train", "classification", "quickstart_classifier.yaml", "--model", f"{out}/encoder",
             "--output_dir", f"{out}/classifier"],
            f"{out}/classifier/{RECORD_FILE}",
        ),
        (
            "The causal LM as a Qwen3 folder, which needs no code of this package",
            ["export", f"{out}/decoder", f"{out}/decoder-qwen3", "--to", "qwen3"],
            f"{out}/decoder-qwen3/config.json",
        ),
        (
            "The encoder as a ModernBERT folder",
            ["export", f"{out}/encoder", f"{out}/encoder-modernbert", "--to", "modernbert"],
            f"{out}/encoder-modernbert/config.json",
        ),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/quickstart", help="folder to write the models to")
    out = parser.parse_args(argv).output_dir
    started = time.time()
    for number, (title, arguments, finished) in enumerate(steps(out), 1):
        print(f"\n=== {number}. {title}\n$ hf-tfm {shlex.join(arguments)}", flush=True)
        if Path(finished).exists():
            print("finished before")
            continue
        if code := hf_tfm(arguments):
            return code
        if not Path(finished).exists():  # stopped by a signal
            return 0
    print(LOADING.format(minutes=(time.time() - started) / 60, out=out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
