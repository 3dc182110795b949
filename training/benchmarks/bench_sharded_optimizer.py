"""
Muon's step under FSDP2: each matrix orthogonalized by one process against all of them by every process.

    python training/benchmarks/bench_sharded_optimizer.py
    python training/benchmarks/bench_sharded_optimizer.py --shape 130m --optimizer normuon --processes 3 --repeats 7

Processes of this machine (gloo, one thread each) hold shards of a decoder with random gradients, and the same optimizer
steps both ways in turns. Memory is the growth of a process during a step at its highest point (Linux). CPU seconds, the
sum over processes, depend least on other programs.
"""

import argparse
import ctypes
import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from hf_tfm import TfmDecoderConfig, TfmDecoderForCausalLM
from hf_tfm.train import muon
from hf_tfm.train.optim import build_optimizer
from hf_tfm.train.sharing import RepeatedPart
from side_by_side import command_line, gated_width, spread, write_result

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


SHAPES = {
    "30m": dict(num_hidden_layers=8, hidden_size=512, num_attention_heads=8, vocab_size=8192),
    "130m": dict(num_hidden_layers=14, hidden_size=768, num_attention_heads=12, vocab_size=32000),
}
WAYS = ("shared", "repeated")
MEASURES = {"seconds": "s", "cpu_seconds": "CPU s", "megabytes": "MB"}


def repeat_everywhere(tensors: Sequence[Tensor], max_elements: int) -> Iterator[RepeatedPart]:
    """Yield all matrices for every process, in place of `share_out`."""
    yield RepeatedPart(range(len(tensors)))


def measure(step: Callable[[], object]) -> dict[str, float]:
    """Return time and memory of a step of all processes: the slowest, the sum and the largest."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest point begins at the present size
    dist.barrier()
    resident, started, started_cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    step()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (seconds, cpu_seconds, (_status("VmHWM") - resident) / 1e3))
    every_seconds, every_cpu, every_growth = zip(*everyone, strict=True)
    return {"seconds": max(every_seconds), "cpu_seconds": sum(every_cpu), "megabytes": max(every_growth)}


def _status(field: str) -> int:
    """Return a size of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Measure both ways in one of several processes; the first one reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    shape = SHAPES[args.shape]
    config = TfmDecoderConfig(**shape, intermediate_size=gated_width(shape["hidden_size"]))
    model = TfmDecoderForCausalLM(config)
    parameters = model.num_parameters()
    fully_shard(model, mesh=init_device_mesh("cpu", (args.processes,)))
    optimizer = build_optimizer(model, args.optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        p.grad.to_local().normal_()

    def step(way: str) -> None:
        with mock.patch.object(muon, "share_out", muon.share_out if way == "shared" else repeat_everywhere):
            optimizer.step()

    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    order = random.Random(0)
    for repeat in range(args.repeats + 1):
        for way in order.sample(WAYS, len(WAYS)):
            sample = measure(lambda way=way: step(way))  # type: ignore[misc]
            if repeat:  # the first step creates the state
                samples[way].append(sample)
    if rank == 0:
        report(samples, parameters, args)
    dist.destroy_process_group()


def report(samples: dict[str, list[dict[str, float]]], parameters: int, args: argparse.Namespace) -> None:
    figures = {
        way: {measure: spread([sample[measure] for sample in samples[way]]) for measure in MEASURES} for way in WAYS
    }
    print(f"{args.optimizer}, {parameters / 1e6:.1f} million parameters, {args.processes} processes")
    for way, measures in figures.items():
        parts = [
            f"{measures[name]['median']:8.2f} {unit} [{measures[name]['quartiles'][0]:.2f}, "
            f"{measures[name]['quartiles'][1]:.2f}]"
            for name, unit in MEASURES.items()
        ]
        print(f"  {way:10} {'   '.join(parts)}")
    ratios = {
        f"sharded_{args.optimizer}_{args.shape}_{measure}": figures["repeated"][measure]["median"]
        / figures["shared"][measure]["median"]
        for measure in MEASURES
    }
    print("  " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    if not args.dry_run:
        opponent = "all matrices gathered and orthogonalized by every process"
        write_result(f"sharded_{args.optimizer}_{args.shape}", ratios, command_line(), opponent=opponent,
                     settings=vars(args), parameters=parameters, figures=figures)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="30m", help="size of the model")
    parser.add_argument("--optimizer", choices=("muon", "normuon"), default="muon")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="measured steps of each way")
    parser.add_argument("--dry_run", action="store_true", help="print the figures without writing them")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (args, folder), nprocs=args.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
