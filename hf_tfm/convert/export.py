"""What `hf-tfm export` does: one folder out for each kind of program that runs models, compared before it is done."""

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TorchAoConfig

from ..artifacts.card import EVALUATION_FILE, rewrite_card, task_of
from ..artifacts.families import FAMILIES
from ..artifacts.open import ADAPTER_FILE, open_model
from ..artifacts.record import RECORD_FILE
from ..core.errors import InputError, explain
from ..core.files import atomic_directory, require_empty
from ..core.model_files import read_config
from .check import Report, TorchSide, compare, report_on, rows_for, write_usage
from .native import carry_over, export_folder, load_tfm


ROUNDED = {"bf16": torch.bfloat16, "f16": torch.float16}
FORMATS = (*FAMILIES, "gguf", "onnx", *ROUNDED, "int8")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_USAGE = """\
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained(".")
model = {auto_class}.from_pretrained(".", trust_remote_code=True)  # with torchao
"""


def export(
    source: str | os.PathLike, target: str | os.PathLike, to: str, untie: bool = False, dtype: str | None = None
) -> Report:
    """
    Writes a model of this package in another form, with `export_check.json` beside it.

    Args:
        to: One of `FORMATS`: a native family, `gguf` (llama.cpp), `onnx` (ONNX Runtime), or this package's own classes
            (also an adapter) with all weights in `bf16` or `f16`, or the matrices of the blocks in `int8` by torchao.
        untie: Write the output projection although it is the token embedding; native families and GGUF.
        dtype: Of GGUF weights, see [`export_gguf`].

    Raises:
        InputError: the form cannot hold the model, a package is missing, or outputs differ. Nothing is written then.
    """
    if to not in FORMATS:
        raise InputError(f"unknown form {to!r}; choose one of {', '.join(FORMATS)}")
    if dtype is not None and to != "gguf":
        raise InputError(f"a dtype can be chosen for gguf only, not for {to}, which keeps what the weights are")
    if untie and to in ("onnx", "int8", *ROUNDED):
        raise InputError(f"untie does nothing for {to}; it is for native families and gguf")
    if to in ROUNDED and (Path(source) / ADAPTER_FILE).is_file():
        return export_rounded(source, target, to)
    if read_config(source).get("quantization_config"):
        raise InputError(f"{source}: quantization_config: its weights are rounded already; export the original")
    if to == "gguf":
        from .gguf import export_gguf

        return export_gguf(source, target, dtype, untie)
    if to == "onnx":
        from .onnx import export_onnx

        return export_onnx(source, target)
    if to in ROUNDED:
        return export_rounded(source, target, to)
    return export_int8(source, target) if to == "int8" else export_folder(source, target, to, untie).report


def export_rounded(source: str | os.PathLike, target: str | os.PathLike, to: str) -> Report:
    """
    Writes a folder of the same class with weights of half the size, to give to others; of an adapter, another adapter.
    Its card says that training's figures are from before the rounding; what `training/evaluate_model.py` measured is to
    be measured again.

    Raises:
        InputError: the weights are of that kind already, or the outputs, computed in float32, differ by more than a
            tenth. Nothing is written then.
    """
    require_empty(target)
    source, dtype, is_adapter = Path(source), ROUNDED[to], (Path(source) / ADAPTER_FILE).is_file()
    with explain(source):
        adapter = load_file(source / _ADAPTER_WEIGHTS) if is_adapter else {}
    model = open_model(str(source))[0].get_base_model() if is_adapter else load_tfm(source)
    if {weight.dtype for weight in (adapter or dict(model.named_parameters())).values()} == {dtype}:
        raise InputError(f"{source}: its weights are {to} already")
    name = str(dtype).removeprefix("torch.")
    with atomic_directory(target) as folder:
        if is_adapter:
            halves = {key: weight.to(dtype) for key, weight in adapter.items()}
            save_file(halves, folder / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
            if (source / "generation_config.json").is_file():
                shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
        else:
            load_tfm(source).to(dtype).save_pretrained(folder)
        carry_over(source, folder)
        (folder / EVALUATION_FILE).unlink(missing_ok=True)
        rounded = open_model(str(folder))[0].get_base_model() if is_adapter else load_tfm(folder)
        written = TorchSide(rounded.float(), f"transformers, {name} weights computed with in float32")
        check = compare(model.float(), written, rows_for(model.config, source), relative=0.1)
        report = report_on(to, name, model, source, folder, check)
        report.save(folder)
        if (folder / RECORD_FILE).is_file():
            change = f"outputs differ by {check.relative_difference:.1e} of their norm"
            weights = f"{name}, rounded after the run; its figures and samples are from before ({change})"
            rewrite_card(folder, weights=weights)
        return report


def export_int8(source: str | os.PathLike, target: str | os.PathLike) -> Report:
    """
    Writes a folder of the same class, the matrices of its blocks in 8 bits with one scale a row, by torchao; embeddings
    and output projection stay. It loads like any other where torchao is installed.

    Raises:
        InputError: torchao is missing, or the outputs differ by more than a tenth. Nothing is written then.
    """
    if not importlib.util.find_spec("torchao"):
        raise InputError("--to int8 needs the package torchao: pip install 'hf-tfm[export]'")
    from torchao.quantization import Int8WeightOnlyConfig

    require_empty(target)
    source = Path(source)
    model = load_tfm(source)
    # The version is the one that safetensors can hold; torchao 0.16 and 0.17 have another by default.
    rounded = type(model).from_pretrained(source, quantization_config=TorchAoConfig(Int8WeightOnlyConfig(version=2)))
    with atomic_directory(target) as folder:
        rounded.save_pretrained(folder)
        del rounded
        carry_over(source, folder)
        for name in (RECORD_FILE, EVALUATION_FILE):  # what they tell was measured before the rounding
            (folder / name).unlink(missing_ok=True)
        written = TorchSide(load_tfm(folder), "transformers, int8 by torchao")
        check = compare(model.float(), written, rows_for(model.config, source), relative=0.1)
        report = report_on("int8", "int8", model, source, folder, check)
        usage = _USAGE.format(auto_class=task_of(type(model).__name__)[0])
        write_usage(folder, Path(target).name, source, report, usage, "transformers")
        return report
