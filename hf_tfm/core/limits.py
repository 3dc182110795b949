"""Limits of a model's configuration, tokenizer and hardware, and errors for inputs beyond them."""

import os
import pickle
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from .errors import InputError


def read_config(path: str | os.PathLike, **load_kwargs: Any) -> dict:
    """
    What stands in `config.json` (or in a GGUF file) of a folder or a Hub repository.

    Raises:
        InputError: when there is no such folder or file, or it cannot be read.
    """
    _refuse_missing(path)
    if Path(path).is_dir() and "gguf_file" not in load_kwargs and not (Path(path) / "config.json").is_file():
        raise InputError(f"{path}: no config.json in this folder: no model (of an adapter `hf-tfm merge` makes one)")
    with as_input_errors(path):
        config = PreTrainedConfig.get_config_dict(path, **load_kwargs)[0]
        if not isinstance(config, dict):
            raise ValueError(f"config.json holds no object but a {type(config).__name__}")
        return config


@contextmanager
def as_input_errors(where: str | os.PathLike) -> Iterator[None]:
    """What reading a person's files or fields can raise, as one line."""
    try:
        yield
    except InputError:
        raise
    except (
        *(OSError, ValueError, RuntimeError, KeyError, EOFError, ImportError),
        *(SafetensorError, StrictDataclassError, pickle.UnpicklingError, yaml.YAMLError),
    ) as error:
        # The validators of configurations wrap the message that helps.
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise InputError(f"{where}: {textwrap.shorten(str(cause), 300, placeholder=' …')}") from error


def _refuse_missing(path: str | os.PathLike) -> None:
    """A path that is not there, unless it could be a name on the Hub: those are looked up for half a minute."""
    looks_local = Path(path).is_absolute() or str(path).startswith((".", "~")) or len(Path(path).parts) > 2
    if looks_local and not Path(path).exists():
        raise InputError(f"{path}: no such folder")


def _local_folder(source: str | os.PathLike, gguf_file: str | None) -> Path:
    """The folder itself, or a snapshot of a Hub repository without what is not needed."""
    _refuse_missing(source)
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise InputError(f"{source} is a file; give the folder, and --gguf-file NAME for a GGUF file in it")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
    ignored = ["onnx/*", "openvino/*", "original/*"]
    with as_input_errors(f"{source} is no folder, and the Hub has no such model either"):
        wanted = [*patterns, gguf_file or "*.safetensors"]
        folder = Path(snapshot_download(str(source), allow_patterns=wanted, ignore_patterns=ignored))
        if gguf_file is None and not any(folder.glob("*.safetensors")):
            snapshot_download(str(source), allow_patterns=["pytorch_model*.bin"])
    return folder


# Models whose positions start behind the pad token's id.
_BEHIND_PADDING = (
    "camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def longest_input(config: PreTrainedConfig) -> int | None:
    """How many tokens a model can take; None if its configuration does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _BEHIND_PADDING:
        # MPNet has the pad token's id in its code.
        positions -= 2 if config.model_type == "mpnet" else config.pad_token_id + 1
    return positions


def refuse_unknown_tokens(model: Any, ids: torch.Tensor) -> None:
    """Raises `InputError` where a tokenizer made ids beyond the model's embeddings: a bare IndexError in torch."""
    try:
        rows = model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):  # CANINE hashes characters
        return
    if ids.numel() and (largest := int(ids.max())) >= rows:
        raise InputError(
            f"the tokenizer makes token {largest} of the text, and the model has embeddings of {rows}: another model's"
        )


def refuse_diverged(logits: np.ndarray | torch.Tensor) -> None:
    """Raise `InputError` for outputs that are no numbers."""
    if not bool((np if isinstance(logits, np.ndarray) else torch).isfinite(logits).all()):
        raise InputError("the model's outputs are not finite, the training diverged: lower --learning_rate")


def fast_bf16() -> bool:
    """Return whether this machine multiplies bf16 matrices in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_fast_bf16()


def cpu_has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bf16 matrices in hardware."""
    # Private: torch has no public name for it. tests/train/test_trainer.py fails if one of them goes away.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
