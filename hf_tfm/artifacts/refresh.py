"""Updates the code in a saved folder, for `hf-tfm refresh`."""

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
from ..core.model_files import ADAPTER_FILE
from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from ..models.modeling_tfm_encoder_decoder import TfmEncoderDecoderConfig
from .record import RECORD_FILE, read_record, versions
from .tokenizer_files import mend_tokenizer_files
from .verify import Verdict, open_subject, verify
from .verify_checks import reference_outputs
from .verify_subject import Subject


# The reference outputs of a run record are for this text.
REFERENCE_TEXT = "Once upon a time"

_CONFIGS = {config.model_type: config for config in (TfmDecoderConfig, TfmEncoderConfig, TfmEncoderDecoderConfig)}
_LARGE = {".safetensors", ".bin", ".pt"}


@dataclass
class Refreshed:
    """Names of replaced and of removed files of a refreshed folder, and the verdicts of its checks."""

    replaced: list[str]
    removed: list[str]
    verdicts: list[Verdict]


def code_files(config_class: type) -> dict[str, Path]:
    """Return the Python files of saved models with this configuration class, by name."""
    package = Path(inspect.getfile(config_class)).parent
    modules = {reference.partition(".")[0] for reference in config_class().auto_map.values()}
    files = {package / f"{module}.py" for module in modules}
    for module in modules:
        files |= {Path(file) for file in get_relative_import_files(package / f"{module}.py")}
    return {file.name: file for file in sorted(files)}


def refresh(folder: str | Path, dry_run: bool = False) -> Refreshed:
    """
    Update code, `auto_map` and tokenizer files in a saved folder of this package, and verify the result.

    Weights, card and token ids stay as they are. The run record, if there is one, gets the versions that the folder was
    verified with, and reference outputs if it has none.

    Args:
        folder: of a model, or of an adapter, which has tokenizer files but no code. Manual changes to its copies of
            this package's code are lost.
        dry_run: verify, and change nothing.

    Raises:
        InputError: the folder contains no model of this package, or a check fails; the folder is unchanged.
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
        subject = open_subject(str(staging))
        verdicts = verify(str(staging), subject=subject)
        if failed := [verdict for verdict in verdicts if verdict.outcome == "failed"]:
            check, reason = failed[0].check, failed[0].found
            raise InputError(f"{folder}: is unchanged, because {check} fails with the new code: {reason}")
        if (staging / RECORD_FILE).is_file():
            _record(staging, subject)
        if (staging / MARKER).is_file():  # a checkpoint, which is complete if its files have the sizes in the marker
            write_marker(staging)
        return Refreshed(*_take_over(staging, folder, dry_run), verdicts)


def _read_config(folder: Path) -> dict[str, Any]:
    with explain(folder):
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    kind = config.get("model_type")
    if kind not in _CONFIGS:
        raise InputError(f"{folder}: contains a model of type {kind!r}, which needs no code of this package")
    auto_map: dict[str, str] = _CONFIGS[kind]().auto_map or {}
    if foreign := sorted(set((config.get("auto_map") or {}).values()) - set(auto_map.values())):
        raise InputError(f"{folder}: its auto_map names {foreign[0]}, which is not code of this package")
    return config


def _link_large_files(source: str, target: str) -> None:
    """Link weights where the disk can; copy other files, which may be changed."""
    if Path(source).suffix in _LARGE:
        try:
            return os.link(source, target)
        except OSError:
            pass
    shutil.copy2(source, target)


def _record(staging: Path, subject: Subject) -> None:
    record, installed = read_record(staging), versions()
    used = {name: installed[name] for name in ("hf-tfm", "transformers", "torch") if name in installed}
    verified = record.setdefault("verified_with", [])
    if used not in verified:
        verified.append(used)
    if "reference" not in record:
        ids = subject.tokenizer(REFERENCE_TEXT)["input_ids"]
        outputs = reference_outputs(subject.model, ids)
        record["reference"] = {"text": REFERENCE_TEXT, "input_ids": ids, "outputs": outputs}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (staging / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def _take_over(staging: Path, folder: Path, dry_run: bool) -> tuple[list[str], list[str]]:
    """Move changed files into the folder, record and marker last; return names of replaced and of removed files."""
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
