"""Opens a model folder as a stranger would: in a new process, without this package, caches or secrets."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from .secret_scan import SECRETS


_WITHOUT_PACKAGE = """
import importlib.abc, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_tfm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""
_STRANGER = f"""{_WITHOUT_PACKAGE}
import torch, transformers
folder, auto_class, base, case = sys.argv[1:]
inputs, options = torch.load(case, weights_only=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
opener = getattr(transformers, auto_class)
model = opener.from_pretrained(base or folder, trust_remote_code=True, dtype=torch.float32, **options)
if base:
    from peft import PeftModel
    if len(tokenizer) > len(model.get_input_embeddings().weight):  # as PEFT's own Auto classes do
        model.resize_token_embeddings(len(tokenizer))
    model = PeftModel.from_pretrained(model, folder)
with torch.no_grad():
    outputs = model.eval()(**inputs)
torch.save({{k: v for k, v in outputs.items() if isinstance(v, torch.Tensor) and k != "loss"}}, case)
"""


class DoesNotLoad(Exception):
    """The new process failed; the message is the last line of its standard error."""


def stranger_environment(home: str | Path) -> dict[str, str]:
    """Returns this process's environment without secrets and `PYTHONPATH`, with new and empty caches."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "HF_MODULES_CACHE", "HF_HUB_CACHE") and not name.upper().endswith(SECRETS)
    }
    return {**variables, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def outputs_for_a_stranger(
    folder: str | Path,
    auto_class: str,
    inputs: dict[str, torch.Tensor],
    base: str | Path | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """
    Returns a model's outputs for `inputs`, computed in a new process with the code and tokenizer of the folder.

    Args:
        auto_class: Name of the Auto class that opens the folder.
        base: Folder of the base model, if the folder contains an adapter.
        options: Arguments of `from_pretrained`, such as the number of labels of an adapter's head.

    Raises:
        DoesNotLoad: The process failed.
    """
    with tempfile.TemporaryDirectory() as home:
        case = Path(home) / "case.pt"
        torch.save((inputs, options or {}), case)
        arguments = [str(Path(folder).absolute()), auto_class, str(Path(base).absolute()) if base else "", str(case)]
        _run(_STRANGER, arguments, home, home)
        return torch.load(case, weights_only=True)


def run_for_a_stranger(code: str, folder: str | Path) -> None:
    """
    Runs code in a new process inside a folder, without this package.

    Raises:
        DoesNotLoad: The process failed.
    """
    with tempfile.TemporaryDirectory() as home:
        _run(f"{_WITHOUT_PACKAGE}\n{code}", [], home, folder)


def _run(code: str, arguments: list[str], home: str, folder: str | Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=folder, env=stranger_environment(home),
    )  # fmt: skip
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise DoesNotLoad(lines[-1] if lines else f"it ended with {process.returncode}")
