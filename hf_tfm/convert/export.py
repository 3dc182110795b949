"""Exports a model for other runtimes, for `hf-tfm export`; each export is compared with its source."""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TorchAoConfig

from ..artifacts.card import rewrite_card
from ..artifacts.head_table import head_of_class
from ..artifacts.measurements import EVALUATION_FILE
from ..artifacts.native_families import FAMILIES
from ..artifacts.open import open_model
from ..artifacts.record import RECORD_FILE
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError, explain
from ..core.model_files import ADAPTER_FILE, read_config
from .check import Report, TorchRunner, check_export, comparison_rows, require_packages, write_export_card, write_report
from .native import copy_other_files, export_folder, load_tfm


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
    Write a model of this package in another format, with `export_check.json`.

    Args:
        to: one of `FORMATS`: a native family, `gguf` (llama.cpp), `onnx` (ONNX Runtime), or this package's classes
            (also adapters) with all weights in `bf16` or `f16`, or the matrices of the blocks in `int8` by torchao.
        untie: write the output projection although it equals the token embedding; for native families and GGUF.
        dtype: of GGUF weights, see [`export_gguf`].

    Raises:
        InputError: the format does not support the model, a package is missing, or outputs differ; nothing is written.
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}; choose one of {', '.join(FORMATS)}")
    if dtype is not None and to != "gguf":
        raise InputError(f"dtype is for gguf only; {to} keeps that of the weights")
    if untie and to in ("onnx", "int8", *ROUNDED):
        raise InputError(f"untie is for native families and gguf, not for {to}")
    if to in ROUNDED and (Path(source) / ADAPTER_FILE).is_file():
        return export_rounded(source, target, to)
    if read_config(source).get("quantization_config"):
        raise InputError(f"{source}: quantization_config: its weights are quantized already; export the original")
    if to == "gguf":
        from .gguf import export_gguf

        return export_gguf(source, target, dtype, untie)
    if to == "onnx":
        from .onnx import export_onnx

        return export_onnx(source, target)
    if to in ROUNDED:
        return export_rounded(source, target, to)
    if to == "int8":
        return export_int8(source, target)
    report = export_folder(source, target, to, untie).report
    assert report is not None
    return report


def export_rounded(source: str | os.PathLike, target: str | os.PathLike, to: str) -> Report:
    """
    Write a folder of the same class with weights of half the size; an adapter becomes another adapter.

    Its card says that the figures of training come from the unrounded weights. It does not contain the results of
    `training/evaluate_model.py`, which have to be measured again.

    Raises:
        InputError: the weights have this dtype already, or the outputs, computed in float32, differ by more than a
            tenth; nothing is written.
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
        copy_other_files(source, folder)
        (folder / EVALUATION_FILE).unlink(missing_ok=True)
        rounded = open_model(str(folder))[0].get_base_model() if is_adapter else load_tfm(folder)
        written = TorchRunner(rounded.float(), f"transformers, {name} weights computed in float32")
        check = check_export(model.float(), written, comparison_rows(model.config, source), relative=0.1)
        report = write_report(to, name, model, source, folder, check)
        report.save(folder)
        if (folder / RECORD_FILE).is_file():
            change = f"outputs differ by {check.relative_difference:.1e} of their norm"
            weights = f"{name}, rounded after the run; figures and samples come from the unrounded weights ({change})"
            rewrite_card(folder, weights=weights)
        return report


def export_int8(source: str | os.PathLike, target: str | os.PathLike) -> Report:
    """
    Write a folder of the same class with the matrices of its blocks in 8 bits and one scale a row, by torchao.

    Embeddings and output projection stay. The folder loads like any other where torchao is installed.

    Raises:
        InputError: torchao is missing, or the outputs differ by more than a tenth; nothing is written.
    """
    require_packages("int8", "torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    require_empty(target)
    source = Path(source)
    model = load_tfm(source)
    # Safetensors supports version 2; the default of torchao 0.16 and 0.17 is another.
    rounded = type(model).from_pretrained(source, quantization_config=TorchAoConfig(Int8WeightOnlyConfig(version=2)))
    with atomic_directory(target) as folder:
        rounded.save_pretrained(folder)
        del rounded
        copy_other_files(source, folder)
        for name in (RECORD_FILE, EVALUATION_FILE):  # their figures come from the unrounded weights
            (folder / name).unlink(missing_ok=True)
        written = TorchRunner(load_tfm(folder), "transformers, int8 by torchao")
        check = check_export(model.float(), written, comparison_rows(model.config, source), relative=0.1)
        report = write_report("int8", "int8", model, source, folder, check)
        usage = _USAGE.format(auto_class=head_of_class(type(model).__name__).auto_class)
        write_export_card(folder, Path(target).name, source, report, usage, "transformers")
        return report
