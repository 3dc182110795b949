"""Stand-in: starts the processes of the FSDP and tensor-parallel suites, one for each rank."""

import os
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing


def _get_distributed_device_type() -> str:
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def _get_distributed_backend() -> str:
    return dist.get_default_backend_for_device(_get_distributed_device_type())


def _get_rank_device(rank: int) -> torch.device:
    device_type = _get_distributed_device_type()
    return torch.device(device_type) if device_type == "cpu" else torch.device(device_type, rank)


def _set_rank_device(rank: int) -> None:
    if _get_distributed_device_type() != "cpu":
        torch.accelerator.set_device_index(rank)


def _start_rank_processes(function: Callable, args: tuple, nprocs: int) -> None:
    """Call `function(rank, *args)` in `nprocs` new processes; an error in one of them is raised here."""
    torch.multiprocessing.spawn(function, args=args, nprocs=nprocs)


def _run_rank(rank: int, function: Callable, args: tuple, world_size: int, rendezvous: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    _set_rank_device(rank)
    dist.init_process_group(
        _get_distributed_backend(), init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    function(rank, *args)
    dist.destroy_process_group()


def run_distributed(world_size: int) -> Callable:
    """`run_distributed(n)(function)(*args)` calls `function(rank, *args)` in `n` processes that form one group."""

    def decorate(function: Callable) -> Callable:
        def run(*args) -> None:
            # A file instead of a port: parallel test runs cannot take it from one another.
            with tempfile.TemporaryDirectory() as folder:
                arguments = (function, args, world_size, os.path.join(folder, "rendezvous"))
                _start_rank_processes(_run_rank, args=arguments, nprocs=world_size)

        return run

    return decorate
