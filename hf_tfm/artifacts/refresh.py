"""Bring the code of a saved folder up to date: what `hf-tfm refresh` does."""

import inspect
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..core.checkpoints import MARKER, write_marker
from ..core.errors import InputError, explain
from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from ..models.modeling_tfm_encoder_decoder import TfmEncoderDecoderConfig
from . import verify
from .open import ADAPTER_FILE
from .record import RECORD_FILE, read_record, versions
from .tokenizer_files import mend_tokenizer_files


# The text whose outputs a run record keeps as reference.
REFERENCE_TEXT = "Once upon a time"

_CONFIGS = {each.model_type: each for each in (TfmDecoderConfig, TfmEncoderConfig, TfmEncoderDecoderConfig)}
_LARGE = {".safetensors", ".bin", ".pt"}


@dataclass
class Refreshed:
    """File names in a refreshed folder, and what was checked."""

    replaced: list[str]
    removed: list[str]
    verdicts: list[verify.Verdict]


def code_files(config_class: type) -> dict[str, Path]:
    """The Python files that a saved model of this configuration class carries, by name."""
    package = Path(inspect.getfile(config_class)).parent
    modules = {reference.partition(".")[0] for reference in config_class().auto_map.values()}
    files = {package / f"{module}.py" for module in modules}
    for module in modules:
        files |= {Path(file) for file in get_relative_import_files(package / f"{module}.py")}
    return {file.name: file for file in sorted(files)}


def refresh(folder: str | Path, dry_run: bool = False) -> Refreshed:
    """
    Rewrite the code, the `auto_map` and the form of the tokenizer's files in a saved folder of this package, and verify
    the result with every check of `hf-tfm verify`. Weights, card and token ids stay as they are. The run record, where
    there is one, gets the versions that the folder was verified with, and reference outputs if it has none.

    Args:
        folder: of a model, or of an adapter, which carries no code but a tokenizer. What was edited by hand in copies
            of this package's code is lost.
        dry_run: verify, and change nothing.

    Raises:
        InputError: the folder holds no model of this package, or a check fails; it is unchanged then.
    """
    folder = Path(folder)
    is_adapter = (folder / ADAPTER_FILE).is_file()
    config = {} if is_adapter else _read_config(folder)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as parent:
        staging = Path(parent) / folder.name
        shutil.copytree(folder, staging, copy_function=_link_large_files)
        mend_tokenizer_files(staging)
        if is_adapter:
            return Refreshed(*_take_over(staging, folder, dry_run), [])
        config_class = _CONFIGS[config["model_type"]]
        code = code_files(config_class)
        for name, source in code.items():
            shutil.copyfile(source, staging / name)
        for file in [*staging.glob("modeling_tfm*.py"), *staging.glob("configuration_tfm*.py")]:
            if file.name not in code:
                file.unlink()
        if config.get("auto_map") != config_class().auto_map:
            text = json.dumps({**config, "auto_map": config_class().auto_map}, indent=2, ensure_ascii=False)
            (staging / "config.json").write_text(text + "\n", encoding="utf-8")
        subject = verify.open_subject(str(staging))
        verdicts = verify.verify(str(staging), subject=subject)
        if failed := [verdict for verdict in verdicts if verdict.outcome == "failed"]:
            raise InputError(f"{folder}: is unchanged, because {failed[0].check} fails afterwards: {failed[0].found}")
        if (staging / RECORD_FILE).is_file():
            _record(staging, subject)
        if (staging / MARKER).is_file():  # of a checkpoint: by these sizes a run finds out whether it is whole
            write_marker(staging)
        return Refreshed(*_take_over(staging, folder, dry_run), verdicts)


def _read_config(folder: Path) -> dict[str, Any]:
    with explain(folder):
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    kind = config.get("model_type")
    if kind not in _CONFIGS:
        raise InputError(f"{folder}: holds a model of type {kind!r}, which needs no code of this package")
    ours: dict[str, str] = _CONFIGS[kind]().auto_map or {}
    if other := sorted(set((config.get("auto_map") or {}).values()) - set(ours.values())):
        raise InputError(f"{folder}: its auto_map names {other[0]}, which is not this package's code")
    return config


def _link_large_files(source: str, target: str) -> None:
    """Weights are not copied where the disk can link them; other files may be changed, so they are."""
    if Path(source).suffix in _LARGE:
        try:
            return os.link(source, target)
        except OSError:
            pass
    shutil.copy2(source, target)


def _record(staging: Path, subject: verify.Subject) -> None:
    record, here = read_record(staging), versions()
    used = {name: here[name] for name in ("hf-tfm", "transformers", "torch") if name in here}
    verified = record.setdefault("verified_with", [])
    if used not in verified:
        verified.append(used)
    if "reference" not in record:
        ids = subject.tokenizer(REFERENCE_TEXT)["input_ids"]
        outputs = verify.reference_outputs(subject.model, ids)
        record["reference"] = {"text": REFERENCE_TEXT, "input_ids": ids, "outputs": outputs}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (staging / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def _take_over(staging: Path, folder: Path, dry_run: bool) -> tuple[list[str], list[str]]:
    """Move what differs into the folder, record and marker last; the names of replaced and of removed files."""
    new = {str(path.relative_to(staging)): path for path in staging.rglob("*") if path.is_file()}
    old = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    removed = sorted(old.keys() - new.keys())
    replaced = [
        name
        for name in sorted(new, key=lambda name: (name in (RECORD_FILE, MARKER), name))
        if new[name].suffix not in _LARGE and (name not in old or old[name].read_bytes() != new[name].read_bytes())
    ]
    if not dry_run:
        for name in replaced:
            os.replace(new[name], folder / name)
        for name in removed:
            (folder / name).unlink()
    return replaced, removed
