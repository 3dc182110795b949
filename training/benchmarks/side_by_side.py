"""Shared code of the benchmarks: opponents of equal size, interleaved timing, options, result files."""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hf_tfm import TfmDecoderConfig, TfmEncoderConfig
from hf_tfm.core.limits import cpu_has_fast_bf16, has_fast_bf16
from hf_tfm.core.memory import keep_freed_memory

import torch
import transformers
from transformers import BertConfig, GPT2Config, LlamaConfig, ModernBertConfig, PretrainedConfig, PreTrainedModel


# A CPU without bf16 trains in fp32, with other ratios: these have a folder of their own.
ALL_RESULTS = Path(__file__).parent / "results"
RESULTS = ALL_RESULTS if has_fast_bf16() else ALL_RESULTS / "fp32"

# Layers, width, heads of 64: 5.3, 6.9 and 13.8 million parameters with 8,192 tied tokens.
SHAPES = {
    "xs": dict(num_hidden_layers=4, hidden_size=256, num_attention_heads=4),
    "tiny": dict(num_hidden_layers=6, hidden_size=256, num_attention_heads=4),
    "s": dict(num_hidden_layers=6, hidden_size=384, num_attention_heads=6),
}


def gated_width(hidden_size: int) -> int:
    """Return the width of a gated feed-forward layer: 8/3 of the hidden size, rounded up to a multiple of 64."""
    return 64 * -(-8 * hidden_size // (3 * 64))


def causal_configs(shape: dict[str, int], vocab_size: int, length: int) -> dict[str, PretrainedConfig]:
    """Return configurations of our default decoder, Llama and GPT-2: tied embeddings, no dropout."""
    common = dict(vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    width = gated_width(shape["hidden_size"])
    gpt2 = dict(n_layer=shape["num_hidden_layers"], n_embd=shape["hidden_size"], n_head=shape["num_attention_heads"])
    no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return {
        "hf_tfm": TfmDecoderConfig(**common, **shape, qk_norm=True, max_position_embeddings=max(length, 1024)),
        "llama": LlamaConfig(**common, **shape, intermediate_size=width, max_position_embeddings=max(length, 1024)),
        "gpt2": GPT2Config(**common, **gpt2, **no_dropout, n_positions=max(length, 1024)),
    }


def masked_configs(shape: dict[str, int], vocab_size: int, length: int) -> dict[str, PretrainedConfig]:
    """Return configurations of our default encoder, ModernBERT and BERT, without dropout."""
    common = dict(vocab_size=vocab_size, pad_token_id=0, cls_token_id=1, sep_token_id=2, tie_word_embeddings=True)
    marks = dict(bos_token_id=1, eos_token_id=2)
    gated = gated_width(shape["hidden_size"])
    positions = max(length, 512)
    ours = TfmEncoderConfig.preset("tiny", **common, **shape, max_position_embeddings=positions, mask_token_id=3)
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return {
        "hf_tfm": ours,
        "modernbert": ModernBertConfig(
            **common, **marks, **shape, intermediate_size=gated, max_position_embeddings=positions
        ),
        "bert": BertConfig(
            **common,
            **shape,
            **no_dropout,
            intermediate_size=4 * shape["hidden_size"],
            max_position_embeddings=positions,
        ),
    }


def describe_size(model: PreTrainedModel) -> str:
    """Return the number of parameters in words."""
    return f"{model.num_parameters() / 1e6:.2f} million parameters"


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int, warmups: int = 2) -> dict[str, list[float]]:
    """
    Return the seconds of `repeats` calls of each function.

    In each round every function is called once, in a random order, so that other load on the machine affects all alike.
    """
    for function in functions.values():
        for _ in range(warmups):
            function()
    order, seconds = random.Random(0), {name: [] for name in functions}
    for _ in range(repeats):
        for name in order.sample(list(functions), len(functions)):
            started = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def first_calls(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the seconds of each function's first call, compiling included."""
    seconds = {}
    for name, function in functions.items():
        started = time.perf_counter()
        function()
        seconds[name] = time.perf_counter() - started
    return seconds


# Suffix of an opponent that runs with our setting of the allocator.
MEMORY_KEPT = ", memory kept"


@contextlib.contextmanager
def in_two_processes(
    build: Callable[..., tuple[dict[str, Callable[[], Any]], dict[str, Any]]], peers: list[str], *arguments: Any
) -> Iterator[tuple[dict[str, Callable[[], None]], dict[str, Any]]]:
    """
    Yield functions by name that run in two processes, one at a time, and the facts of the second process.

    The first process runs the opponents with default settings; the second one keeps freed memory
    ([`keep_freed_memory`]) and runs this project and the opponents again, these with the suffix [`MEMORY_KEPT`].

    Args:
        build: called as `build(names, *arguments)` in both processes; must be importable. Returns functions, whose
            names begin with the model's, and facts about them.
    """
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with contextlib.ExitStack() as stack:

        def start(names: list[str], keep: bool) -> tuple[dict[str, Callable[[], None]], dict[str, Any]]:
            pipe, far = context.Pipe()
            process = context.Process(target=_serve, args=(far, build, names, arguments, threads, keep), daemon=True)
            process.start()
            stack.callback(process.terminate)
            far.close()  # so that waiting for a process ends when it dies

            def call(name: str) -> None:
                pipe.send(name)
                pipe.recv()

            functions, facts = pipe.recv()
            return {name: partial(call, name) for name in functions}, facts

        functions, _ = start(peers, keep=False)
        kept, facts = start(["hf_tfm", *peers], keep=True)
        for name, function in kept.items():
            functions[name if name.startswith("hf_tfm") else name + MEMORY_KEPT] = function
        yield functions, facts


def _serve(pipe: Connection, build: Callable, names: list[str], arguments: tuple, threads: int, keep: bool) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    functions, facts = build(names, *arguments)
    pipe.send((list(functions), facts))
    while True:
        functions[pipe.recv()]()
        pipe.send(None)


def fastest(seconds: dict[str, dict], model: str, *words: str, memory_kept: bool = False) -> float:
    """
    Return the smallest median among a model's functions.

    Args:
        words: words that the function's name must contain behind the model's name.
        memory_kept: of an opponent, look at the functions with [`MEMORY_KEPT`] rather than at those without.
    """
    return min(
        spread["median"]
        for name, spread in seconds.items()
        if name.split()[0] == model
        and set(words) <= set(name.removesuffix(MEMORY_KEPT).split()[1:])
        and (model == "hf_tfm" or name.endswith(MEMORY_KEPT) == memory_kept)
    )


def spread(samples: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    quartiles = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]], "samples": len(samples)}


def machine() -> dict[str, Any]:
    """Return commit, CPU, threads and versions of a measurement."""
    repository = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout.strip()
    code = ("hf_tfm", "training", ":!training/benchmarks/results")  # the results change during a benchmark
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", *code], cwd=repository.parents[1], capture_output=True
    ).stdout
    return {
        "commit": commit + ("+" if changed else ""),
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": cpu_has_fast_bf16(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "python": platform.python_version(),
        "spin": {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ},
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def benchmark_parser(description: str, shape: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser of the options that benchmarks share."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default=shape, help="size of the models")
    parser.add_argument("--vocab", type=int, default=8192, help="tokens of the vocabulary")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls of each function")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry_run", action="store_true", help="print the figures without writing them")
    return parser


def command_line() -> str:
    """Return the command of this benchmark, as anybody can run it."""
    return f"python training/benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}"


def report_ratios(name: str, ratios: dict[str, float], args: argparse.Namespace, **facts: Any) -> None:
    """Print ratios, and write them with their facts unless it is a dry run; see [`write_result`]."""
    print("  " + ", ".join(f"{ratio} {value:.2f}" for ratio, value in ratios.items()))
    if not args.dry_run:
        facts["settings"] = {**vars(args), **facts.get("settings", {})}
        write_result(name, ratios, command_line(), **facts)


def write_result(name: str, ratios: dict[str, float], command: str, **facts: Any) -> None:
    """
    Write `<name>.json` to the results and its ratios to `summary.json`.

    Args:
        ratios: how many times as fast this project is as the opponent in `facts`, by name.
        facts: opponent, settings, samples and their spread, and whatever else a reader needs.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"ratios": ratios, "command": command, "date": time.strftime("%Y-%m-%d"), **facts, "machine": machine()}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    summary_file = RESULTS / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    summary.update({ratio: round(value, 3) for ratio, value in ratios.items()})
    summary_file.write_text(json.dumps(dict(sorted(summary.items())), indent=1) + "\n")
