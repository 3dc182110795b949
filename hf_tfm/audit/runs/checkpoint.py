"""A checkpoint on the disk: complete, finite, different from the first. It needs no torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.checkpoints import MARKER, is_complete
from ..report import Level, Report
from .folder import ARGUMENTS_FILE, STATE_FILE, Run, read_arguments, read_json, read_state


SAFETENSORS = "*.safetensors"
_LARGEST_SCAN = 4 << 30  # bytes of weights that are looked at
_CHUNK = 1 << 22  # numbers
# Bits of the exponent, which are all set where a number is not finite, with the type of the same width.
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
# Prefixes of wrappers under which no model finds its weights; a Trainer loads with strict=False and goes on.
_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: its name, type and shape, and its place in bytes."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_checkpoints(run: Run, report: Report) -> None:
    """The last checkpoint can be resumed from, and its weights are finite and were trained."""
    if not run.checkpoints:
        return
    last = run.checkpoints[-1]
    check_checkpoint(last, report)
    check_change(run.checkpoints[0], last, report)


def check_checkpoint(folder: Path, report: Report) -> None:
    """A checkpoint holds what resuming needs, unless its run is at its end, and finite weights."""
    state = read_state(folder)
    if state is None:
        damaged = (folder / STATE_FILE).exists()
        report.add("P712", f"{STATE_FILE} is {'damaged' if damaged else 'missing'}", str(folder))
    elif not 0 < (state.get("max_steps") or 0) <= (state.get("global_step") or 0):
        check_parts(folder, report)
    if (folder / MARKER).exists() and not is_complete(folder):
        report.add("P712", f"files that {MARKER} lists are missing or cut off", str(folder))
    check_weights(folder, report)


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was saved in shards by FSDP or DeepSpeed, in formats of their own."""
    patterns = ("global_step*", "pytorch_model_fsdp*", "optimizer_[0-9]*", "zero_to_fp32.py", "*.distcp")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def check_parts(folder: Path, report: Report) -> None:
    """The optimizer, the schedule and the states of random generators are there."""
    if any(folder.glob("global_step*")):
        return  # DeepSpeed keeps all in one folder
    parts = {
        "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_[0-9]*", "optimizer.pt_*", "rank*-optimizer.pt"),
        "scheduler.pt": ("scheduler.pt",),
        "rng_state.pth": ("rng_state*.pth",),
    }
    missing = [name for name, patterns in parts.items() if not any(any(folder.glob(pattern)) for pattern in patterns)]
    arguments = read_arguments(folder / ARGUMENTS_FILE)
    if missing:
        meant = arguments.get("save_only_model") is True
        report.add(
            "P712",
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            str(folder),
            level=Level.WARNING if meant or missing == ["rng_state.pth"] else None,
            why="save_only_model leaves them out, so the run cannot go on as it was." if meant else None,
        )
    elif arguments.get("fp16") is True and not (folder / "scaler.pt").exists():
        report.add(
            "P712",
            "scaler.pt is missing, and the run is in fp16",
            str(folder),
            level=Level.NOTE,
            why="Some versions of transformers do not save it: the loss scale is then found anew.",
            mend="Nothing.",
        )


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint, those of its subfolders included."""
    return sorted(folder.rglob(SAFETENSORS))


def check_weights(folder: Path, report: Report) -> None:
    """Weights are there, whole, finite, and named as a model names them."""
    for index in folder.glob("*.index.json"):
        names = set(((read_json(index) or {}).get("weight_map") or {}).values())
        if lacking := sorted(name for name in names if not (folder / name).is_file()):
            report.add("P712", f"{len(lacking)} of {len(names)} files of weights are missing", f"{folder / lacking[0]}")
    files = weight_files(folder)
    if not files:
        if any(folder.glob("*model*.bin")) or any(folder.glob("*/*model*.bin")) or is_sharded(folder):
            report.cannot_see("weights in sharded or pickled files are not read")
        else:
            report.add("P712", "no file of weights is there", str(folder))
        return
    tensors = []
    for path in files:
        try:
            tensors += read_header(path)
        except ValueError as error:
            report.add(
                "P713", str(error), str(path), why="The file was cut off or damaged: the disk was full, perhaps."
            )
    for wrapper in _WRAPPERS:
        if named := [tensor for tensor in tensors if tensor.name.startswith(wrapper)]:
            report.add(
                "P713",
                f"{len(named)} of {len(tensors)} weights have names that begin with {wrapper}",
                named[0].name,
                why="No model has weights of these names, so they are left out with a warning when it is loaded.",
                mend="Save the model without its wrapper (accelerator.unwrap_model), or rename the weights.",
            )
    _check_finite(tensors, report)
    _check_adapter_was_trained(folder, tensors, report)


def read_header(path: Path) -> list[StoredTensor]:
    """
    Returns the tensors of a safetensors file, without reading them.

    Raises:
        ValueError: The file is cut off or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"the file of {size:,} bytes has no header of safetensors")
        header = json.loads(file.read(length))
    tensors = [
        StoredTensor(
            path, name, entry["dtype"], tuple(entry["shape"]), *(8 + length + place for place in entry["data_offsets"])
        )
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    if (end := max((tensor.end for tensor in tensors), default=0)) > size:
        raise ValueError(f"the file has {size:,} bytes and should have {end:,}")
    return tensors


def numbers_of(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """Yields the bits of a tensor's numbers in chunks, as unsigned integers of their width."""
    kind = _EXPONENTS[tensor.dtype][0]
    count = (tensor.end - tensor.begin) // np.dtype(kind).itemsize
    with tensor.path.open("rb") as file:
        file.seek(tensor.begin)
        while count > 0:
            chunk = np.fromfile(file, kind, min(count, _CHUNK))
            count -= len(chunk)
            yield chunk


def is_finite(tensor: StoredTensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    exponent = _EXPONENTS[tensor.dtype][1]
    return not any(((chunk & exponent) == exponent).any() for chunk in numbers_of(tensor))


def _check_finite(tensors: list[StoredTensor], report: Report) -> None:
    budget, bad, unread = _LARGEST_SCAN, [], 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.end - tensor.begin):
        if tensor.dtype not in _EXPONENTS or (budget := budget - (tensor.end - tensor.begin)) < 0:
            unread += 1
        elif not is_finite(tensor):
            bad.append(tensor.name)
    if bad:
        report.add("P713", f"{len(bad)} of {len(tensors)} weights hold numbers that are not finite", bad[0])
    if unread:
        report.cannot_see(f"{unread} of {len(tensors)} weights are integers or too large to look at for numbers")


def _check_adapter_was_trained(folder: Path, tensors: list[StoredTensor], report: Report) -> None:
    """
    The second factors of a LoRA adapter, which begin as zeros, are no longer zero.

    Ones that stay zero got no gradient (huggingface/trl#3926).
    """
    second = [tensor for tensor in tensors if ".lora_B." in tensor.name and tensor.dtype in _EXPONENTS]
    # Twice the bits have lost the sign, which -0.0 has.
    zero = [tensor.name for tensor in second if not any((chunk * 2).any() for chunk in numbers_of(tensor))]
    step = (read_state(folder) or {}).get("global_step") or 0
    if second and step and len(zero) == len(second):
        report.add(
            "P704",
            f"all {len(zero)} second factors (lora_B) of the adapter are zero after {step:,} steps",
            zero[0],
            why="The adapter was not trained.",
        )
    elif zero and step:
        report.add(
            "P704",
            f"{len(zero)} of {len(second)} second factors (lora_B) of the adapter are zero after {step:,} steps",
            zero[0],
            level=Level.WARNING,
            why="These parts of the adapter were not trained.",
        )


def check_change(first: Path, last: Path, report: Report) -> None:
    """The weights of the first checkpoint that was kept and those of the last one differ."""
    steps = [(read_state(folder) or {}).get("global_step") for folder in (first, last)]
    if None in steps or steps[0] == steps[1]:
        return
    files = [weight_files(folder) for folder in (first, last)]
    if not files[0] or [path.name for path in files[0]] != [path.name for path in files[1]]:
        return
    if all(have_equal_content(earlier, later) for earlier, later in zip(*files)):
        report.add(
            "P704",
            f"the weights of steps {steps[0]:,} and {steps[1]:,} are equal, number by number",
            f"{first.name} and {last.name}",
            why="The weights were not trained, or no step was large enough for their dtype.",
        )


def have_equal_content(path: Path, second_path: Path) -> bool:
    """Whether two files are equal; files that are too large to compare count as different."""
    size = path.stat().st_size
    if size != second_path.stat().st_size or size > _LARGEST_SCAN:
        return False
    with path.open("rb") as first, second_path.open("rb") as second:
        while chunk := first.read(_CHUNK):
            if chunk != second.read(len(chunk)):
                return False
    return True
