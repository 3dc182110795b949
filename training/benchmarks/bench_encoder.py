"""
Encode many texts: our encoder against BERT and ModernBERT of equal size.

    python training/benchmarks/bench_encoder.py
    python training/benchmarks/bench_encoder.py --shape s --texts 1024 --threads 2

Texts have 8 to 128 tokens, distributed as in sentences and short paragraphs. Every model gets the same batches, sorted
by length and padded to the longest text. Opponents run in fp32, in bf16 and in bf16 autocast, and the fastest counts;
our model runs as in `hf-tfm predict`, in a process of its own that keeps freed memory.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

from hf_tfm.core.limits import has_fast_bf16
from hf_tfm.cpu.encoding import enable_unpadded_encoding
from side_by_side import (
    SHAPES,
    benchmark_parser,
    describe_size,
    fastest,
    in_two_processes,
    interleaved,
    masked_configs,
    report_ratios,
    spread,
)

import numpy as np
import torch
from transformers import AutoModel


def sorted_batches(texts: int, rows: int, vocab_size: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of random tokens with lengths as in texts (log-normal, median 28), shortest first."""
    draw = np.random.default_rng(0)
    lengths = np.sort(np.clip(np.exp(draw.normal(np.log(28), 0.7, texts)), 8, 128).astype(int))
    batches = []
    for first in range(0, texts, rows):
        some = torch.from_numpy(lengths[first : first + rows])
        columns = torch.arange(int(some.max()))
        mask = (columns < some[:, None]).long()
        batches.append({"input_ids": torch.randint(5, vocab_size, mask.shape) * mask, "attention_mask": mask})
    return batches


def make_encode(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], autocast: bool) -> Callable[[], None]:
    """Return a function that encodes all batches."""

    @torch.inference_mode()
    def encode() -> None:
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                model(**batch).last_hidden_state  # noqa: B018

    return encode


def build(names: list[str], args: argparse.Namespace) -> tuple[dict[str, Callable[[], None]], dict[str, Any]]:
    """Return a function for each model and precision that encodes all texts, and the number of tokens and sizes."""
    torch.manual_seed(0)
    batches = sorted_batches(args.texts, args.rows, args.vocab)
    functions, sizes = {}, {}
    ways = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "autocast": (torch.float32, True)}
    configs = masked_configs(SHAPES[args.shape], args.vocab, 128)
    for name in names:
        for way, (dtype, autocast) in ways.items():
            if way != "fp32" and not has_fast_bf16():
                continue
            model = AutoModel.from_config(copy.deepcopy(configs[name])).eval().to(dtype)
            sizes[name] = describe_size(model)
            if name == "hf_tfm":
                enable_unpadded_encoding(model)
            functions[f"{name} {way}"] = make_encode(model, batches, autocast)
    return functions, {"sizes": sizes, "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches)}


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(__doc__, shape="s", repeats=7)
    parser.add_argument("--texts", type=int, default=256, help="number of texts")
    parser.add_argument("--rows", type=int, default=32, help="texts per batch")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with in_two_processes(build, ["bert", "modernbert"], args) as (functions, facts):
        seconds = {name: spread(samples) for name, samples in interleaved(functions, args.repeats, warmups=1).items()}
    for name, value in seconds.items():
        print(f"  {name:34} {value['median'] * 1e3:7.1f} ms  {facts['tokens'] / value['median']:9,.0f} tokens/s   "
              f"{facts['sizes'][name.split()[0]]}")  # fmt: skip
    ours = fastest(seconds, "hf_tfm")
    ratios = {
        "encoder_inference": fastest(seconds, "bert") / ours,
        "encoder_inference_same_memory": fastest(seconds, "bert", memory_kept=True) / ours,
        "encoder_inference_against_modernbert": fastest(seconds, "modernbert") / ours,
    }
    report_ratios(
        "encoder_inference",
        ratios,
        args,
        opponent="BERT, the fastest of fp32, bf16 and autocast",
        settings={"tokens": facts["tokens"], "models": facts["sizes"]},
        seconds=seconds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
