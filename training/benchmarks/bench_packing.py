"""
From tokenised documents to training batches: transformers' recipe against hf_tfm's packing.

    python training/benchmarks/bench_packing.py texts.jsonl.gz --tokenizer my-tokenizer

The recipe is that of transformers' example `run_clm.py`: `group_texts` in `Dataset.map`, then a shuffling DataLoader
with `default_data_collator`. Both sides start from the same tokens and give batches of `--batch_size` rows as tensors
for one epoch, both loaders in this process. Tokenising is measured separately. All times are CPU times, which other
load on the machine affects less; the best of `--repeats` counts. counts.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from hf_tfm.data.packed_blocks import PackedBlocks
from hf_tfm.data.sources import read_documents
from hf_tfm.data.step_batches import StepBatches
from hf_tfm.data.tokens import TokenStore
from side_by_side import write_result

import datasets
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, default_data_collator


def group_texts(examples: dict[str, list], block_length: int) -> dict[str, list]:
    """Concatenate all texts and cut them into blocks, as the recipe does."""
    joined = {name: list(itertools.chain(*lists)) for name, lists in examples.items()}
    total = len(joined["input_ids"]) // block_length * block_length
    rows = {name: [ids[i : i + block_length] for i in range(0, total, block_length)] for name, ids in joined.items()}
    rows["labels"] = rows["input_ids"].copy()
    return rows


def seconds(function, *args) -> tuple[float, object]:
    """Return the CPU seconds of a call, and its result."""
    started = time.process_time()
    result = function(*args)
    return time.process_time() - started, result


def consume(loader) -> int:
    """Iterate over a loader and return its number of tokens."""
    return sum(batch["input_ids"].numel() for batch in loader)


def recipe(tokenized: datasets.Dataset, args) -> dict[str, float]:
    def pack():
        fn_kwargs = {"block_length": args.block_length}
        return tokenized.map(group_texts, batched=True, fn_kwargs=fn_kwargs, load_from_cache_file=False)

    packing, rows = seconds(pack)
    loader = DataLoader(rows, args.batch_size, shuffle=True, collate_fn=default_data_collator)
    batching, tokens = seconds(consume, loader)
    return {"packing": packing, "batching": batching, "batches": len(loader), "tokens": tokens}


def packed(store: TokenStore, args) -> dict[str, float]:
    in_memory = TokenStore(store.tokens, store.offsets, store.byte_counts)  # without the plan on disk
    packing, blocks = seconds(PackedBlocks, in_memory, args.block_length)
    loader = StepBatches(blocks.rows, args.batch_size, blocks.num_blocks // args.batch_size).loader()
    batching, tokens = seconds(consume, loader)
    return {"packing": packing, "batching": batching, "batches": len(loader), "tokens": tokens}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("data", help="text: a file, folder, glob or hub:NAME")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--documents", type=int, default=1000, help="number of documents")
    parser.add_argument("--block_length", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=16, help="16 is the default of the pretraining scripts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry_run", action="store_true", help="print the figures without writing them")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    texts = list(itertools.islice(read_documents(args.data), args.documents))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        ours_tokenizing, store = seconds(lambda: TokenStore.build(file, tokenizer, cache_dir=folder, num_proc=1))
        reopening, _ = seconds(lambda: TokenStore.build(file, tokenizer, cache_dir=folder))
        dataset = datasets.Dataset.from_json(str(file), cache_dir=folder)
        theirs_tokenizing, tokenized = seconds(
            lambda: dataset.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
        )
        runs = {
            "group_texts": min((recipe(tokenized, args) for _ in range(args.repeats)), key=_total),
            "hf_tfm": min((packed(store, args) for _ in range(args.repeats)), key=_total),
        }
    print(f"{len(store)} documents, {megabytes:.1f} MB, {store.num_tokens:,} tokens; rows of {args.block_length}")
    print(f"tokenising: recipe {megabytes / theirs_tokenizing:.2f} MB/s, hf_tfm {megabytes / ours_tokenizing:.2f} MB/s")
    print(f"opening what was tokenised: {reopening * 1e3:.1f} ms")
    print(f"{'':12} {'packing s':>10} {'batch ms':>10} {'epoch s':>10} {'MB/s':>10}")
    for name, run in runs.items():
        batch = run["batching"] / run["batches"] * 1e3
        print(f"{name:12} {run['packing']:10.3f} {batch:10.3f} {_total(run):10.3f} {megabytes / _total(run):10.1f}")
    theirs, ours = runs.values()
    print(f"packing and batching: {_total(theirs) / _total(ours):.0f} times as fast", end="; ")
    print(
        f"tokens that reach a batch: {theirs['tokens'] / store.num_tokens:.1%}, {ours['tokens'] / store.num_tokens:.1%}"
    )
    if not args.dry_run:
        settings = {name: str(value) for name, value in vars(args).items() if name not in ("data", "tokenizer")}
        write_result(
            "packing",
            {"packing": _total(theirs) / _total(ours)},
            "python training/benchmarks/bench_packing.py TEXT --tokenizer TOKENIZER",
            opponent="group_texts in Dataset.map and a shuffling DataLoader with default_data_collator",
            settings={**settings, "documents": len(store), "megabytes": megabytes, "tokens": store.num_tokens},
            seconds=runs,
            tokenising_megabytes_per_second={
                "recipe": megabytes / theirs_tokenizing,
                "hf_tfm": megabytes / ours_tokenizing,
            },
        )
    return 0


def _total(run: dict[str, float]) -> float:
    return run["packing"] + run["batching"]


if __name__ == "__main__":
    sys.exit(main())
