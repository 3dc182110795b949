"""Files of any model of transformers, in a folder or on the Hub: its configuration, and a local copy."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig

from .errors import InputError, explain
from .package_data import refuse_missing_folder


ADAPTER_FILE = "adapter_config.json"


def refuse_adapter(path: str | os.PathLike[str]) -> None:
    """Raises `InputError` if a folder contains an adapter instead of a whole model."""
    folder = Path(path)
    if (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{path}: is an adapter: merge it first with `hf-tfm merge {path} MERGED`, and give MERGED")


def read_config(path: str | os.PathLike[str], **load_kwargs: Any) -> dict[str, Any]:
    """
    Returns `config.json` (or a GGUF file's configuration) of a folder or a Hub repository as a dictionary.

    Raises:
        InputError: There is no such folder or file, or it cannot be read.
    """
    refuse_missing_folder(path)
    refuse_adapter(path)
    if Path(path).is_dir() and "gguf_file" not in load_kwargs and not (Path(path) / "config.json").is_file():
        raise InputError(f"{path}: no config.json in this folder, so it is not a model")
    with explain(path):
        config = PreTrainedConfig.get_config_dict(path, **load_kwargs)[0]
        if not isinstance(config, dict):
            raise ValueError(f"config.json contains a {type(config).__name__} instead of an object")
        return config


def download_model(source: str | os.PathLike[str], gguf_file: str | None) -> Path:
    """
    Returns a model's local folder: `source` itself, or a snapshot of that Hub repository without files we do not use.

    Raises:
        InputError: There is no such folder or repository, or `source` is a file.
    """
    refuse_missing_folder(source)
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise InputError(f"{source} is a file; give the folder, and --gguf-file NAME for a GGUF file in it")
    patterns = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", gguf_file or "*.safetensors"]
    ignored = ["onnx/*", "openvino/*", "original/*"]
    with explain(f"{source} is no folder, and the Hub has no such model either"):
        folder = Path(snapshot_download(str(source), allow_patterns=patterns, ignore_patterns=ignored))
        if gguf_file is None and not any(folder.glob("*.safetensors")):
            snapshot_download(str(source), allow_patterns=["pytorch_model*.bin"])
    return folder
