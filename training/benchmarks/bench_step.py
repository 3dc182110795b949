"""
Train for a step: our decoder and encoder against transformers' models of equal size.

    python training/benchmarks/bench_step.py
    python training/benchmarks/bench_step.py --kind masked --shape s --rows 32 --length 128 --threads 2

A step is forward, backward, clipping and AdamW on both sides, on random tokens, in bf16 autocast where the CPU has bf16
(`--fp32`: without). Each model runs eagerly and compiled, and all take turns: ours in a process that keeps freed memory
as the training scripts do, opponents in one process that does and one that does not. The ratio in the summary compares
our faster variant with the fastest opponent that does not; `_same_memory` with the fastest one that does.
"""

import argparse
import copy
import sys
from collections.abc import Callable

from hf_tfm.core.limits import has_fast_bf16
from hf_tfm.cpu.attention import enable_blockwise_attention
from hf_tfm.cpu.compile import compile_blocks
from hf_tfm.train.optim import build_optimizer
from side_by_side import (
    SHAPES,
    benchmark_parser,
    causal_configs,
    describe_size,
    fastest,
    first_calls,
    in_two_processes,
    interleaved,
    masked_configs,
    report_ratios,
    spread,
)

import torch
import torch._inductor.config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM


def causal_batch(rows: int, length: int, vocab_size: int) -> dict[str, dict[str, torch.Tensor]]:
    ids = torch.randint(5, vocab_size, (rows, length))
    batch = {"input_ids": ids, "labels": ids}
    return {"hf_tfm": {**batch, "skip_logits": True}, "llama": batch, "gpt2": batch}


def masked_batch(rows: int, length: int, vocab_size: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return rows with 15 % masked tokens; for our model as positions, in the form its objective returns."""
    ids = torch.randint(5, vocab_size, (rows, length))
    chosen = torch.rand(rows, length).argsort().argsort() < round(0.15 * length)
    labels = torch.where(chosen, ids, -100)
    inputs = torch.where(chosen, 3, ids)
    positions = chosen.flatten().nonzero().flatten()
    compact = {"input_ids": inputs, "labels": ids.flatten()[positions], "masked_positions": positions}
    dense = {"input_ids": inputs, "labels": labels}
    return {"hf_tfm": {**compact, "skip_logits": True}, "modernbert": dense, "bert": dense}


def make_step(model: torch.nn.Module, batch: dict[str, torch.Tensor], bf16: bool) -> Callable[[], float]:
    """Return a function that trains a model for a step."""
    optimizer = build_optimizer(model, "adamw")

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def build(names: list[str], kind: str, args: argparse.Namespace) -> tuple[dict[str, Callable], dict[str, str]]:
    """Return a training step of each model, eager and compiled, and the models' sizes."""
    configs = {"causal": causal_configs, "masked": masked_configs}[kind](SHAPES[args.shape], args.vocab, args.length)
    batches = {"causal": causal_batch, "masked": masked_batch}[kind](args.rows, args.length, args.vocab)
    auto = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}[kind]
    torch._inductor.config.force_disable_caches = True  # so that first steps include compiling
    steps, sizes = {}, {}
    for name in names:
        for way in ("eager", "compiled"):
            torch.manual_seed(0)
            model = auto.from_config(copy.deepcopy(configs[name])).train()
            if kind == "causal":
                model.config.use_cache = False  # as transformers' Trainer has it
            sizes[name] = describe_size(model)
            if name == "hf_tfm":
                enable_blockwise_attention(model)
            if way == "compiled":
                if name == "hf_tfm":
                    compile_blocks(model)
                else:
                    model.compile()
            steps[f"{name} {way}"] = make_step(model, batches[name], has_fast_bf16() and not args.fp32)
    return steps, sizes


def measure(kind: str, args: argparse.Namespace) -> None:
    peers = {"causal": ["llama", "gpt2"], "masked": ["modernbert", "bert"]}[kind]
    with in_two_processes(build, peers, kind, args) as (steps, sizes):
        first = first_calls(steps)
        seconds = {name: spread(samples) for name, samples in interleaved(steps, args.repeats).items()}
    bf16 = has_fast_bf16() and not args.fp32
    print(f"{kind}, {args.rows} rows of {args.length}, {'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        low, high = value["quartiles"]
        print(f"  {name:34} {value['median'] * 1e3:7.1f} ms  [{low * 1e3:.1f}, {high * 1e3:.1f}]   first "
              f"{first[name]:5.1f} s   {sizes[name.split()[0]]}")  # fmt: skip
    ours = fastest(seconds, "hf_tfm")

    def best(*words: str, memory_kept: bool = False) -> float:
        return min(fastest(seconds, peer, *words, memory_kept=memory_kept) for peer in peers)

    ratios = {
        f"{kind}_step": best() / ours,
        f"{kind}_step_same_memory": best(memory_kept=True) / ours,
        f"{kind}_step_against_eager": best("eager") / ours,
        f"{kind}_step_eager": best("eager") / fastest(seconds, "hf_tfm", "eager"),
    }
    report_ratios(
        f"{kind}_step",
        ratios,
        args,
        opponent="the faster of eager and compiled among " + ", ".join(peers),
        settings={"bf16": bf16, "models": sizes},
        seconds=seconds,
        first_step_seconds=first,
    )


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(__doc__, shape="xs", repeats=15)
    parser.add_argument("--kind", choices=("causal", "masked", "both"), default="both")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--fp32", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for kind in ("causal", "masked") if args.kind == "both" else (args.kind,):
        measure(kind, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
