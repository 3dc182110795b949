"""
Write sums to learn from: text to pretrain on, questions with answers, and test questions that are in neither.

    python training/make_sums.py --output sums --digits 2

`pretrain.jsonl` has lines such as `17 + 25 = 42` (field `text`); `train.jsonl`, `validation.jsonl` and `test.jsonl`
have `prompt`, `response` and `answer`, for finetune_instruct.py and finetune_rlvr.py alike. Every pair of numbers
belongs to one split, a + b together with b + a, so that no test sum occurs elsewhere in either order. Sums are learned
best with a tokenizer that splits numbers into digits, as all tokenizers of train_tokenizer.py do.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from hf_tfm.core.errors import InputError, OneLineParser
from hf_tfm.train.recipe import one_line_errors, refuse_below


SHARES = {"validation": 0.03, "test": 0.05}


def split_pairs(digits: int, seed: int) -> dict[str, list[tuple[int, int]]]:
    """Return all pairs of numbers of up to so many digits, split at random into train, validation and test."""
    draw = random.Random(seed)
    pairs = [(a, b) for a in range(10**digits) for b in range(a + 1)]
    draw.shuffle(pairs)
    splits, start = {}, 0
    for name, share in SHARES.items():
        end = start + round(share * len(pairs))
        splits[name] = [(a, b) if draw.random() < 0.5 else (b, a) for a, b in pairs[start:end]]
        start = end
    splits["train"] = [pair for a, b in pairs[start:] for pair in {(a, b), (b, a)}]
    draw.shuffle(splits["train"])
    return splits


def question(a: int, b: int) -> dict[str, str]:
    """Return a record: the prompt as in the pretraining text, the response, and the answer to check it by."""
    return {"prompt": f"{a} + {b} =", "response": str(a + b), "answer": str(a + b)}


def write(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{path}: {len(records):,} records")


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--digits", type=int, default=2, choices=(1, 2, 3), help="digits of the numbers (default 2)")
    parser.add_argument("--lines", type=int, default=20, help="sums per pretraining document (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    args = parser.parse_args(argv)
    refuse_below(args, lines=1)
    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give the name of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    splits = split_pairs(args.digits, args.seed)
    lines = [f"{a} + {b} = {a + b}" for a, b in splits["train"]]
    documents = ["\n".join(lines[first : first + args.lines]) for first in range(0, len(lines), args.lines)]
    held_out = max(1, len(documents) // 50)
    write(folder / "pretrain.jsonl", [{"text": text} for text in documents[held_out:]])
    write(folder / "pretrain_validation.jsonl", [{"text": text} for text in documents[:held_out]])
    for name, pairs in splits.items():
        write(folder / f"{name}.jsonl", [question(a, b) for a, b in pairs])


if __name__ == "__main__":
    sys.exit(main())
