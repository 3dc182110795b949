"""Verifies the promises of a saved model: runs the checks of `verify_checks.py` and reports their outcomes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from packaging.version import Version
from transformers import PreTrainedModel

from ..core.errors import InputError
from ..core.model_files import ADAPTER_FILE
from ..core.quiet import quiet
from .open import auto_class_of, open_model, recorded
from .record import versions
from .verify_checks import CHECKS
from .verify_subject import Broken, NotApplicable, Subject


def versions_line(path: str, model: PreTrainedModel) -> str:
    """Return installed versions and whether transformers is newer than those that the folder was verified with."""
    installed = versions()
    line = ", ".join(f"{name} {installed[name]}" for name in ("hf-tfm", "transformers", "torch") if name in installed)
    verified = [each["transformers"] for each in recorded(path, "verified_with") or []]
    saved = (recorded(path, "versions") or {}).get("transformers") or model.config.transformers_version
    known = verified or [saved] * (saved is not None)
    if not known:
        return f"{line}; the folder does not name the versions it was saved with"
    newest = max(known, key=Version)
    verb = "verified" if verified else "saved"
    if Version(installed["transformers"]) > Version(newest):
        return f"{line}; this transformers is newer than {newest}, the newest that the folder was {verb} with"
    return f"{line}; the folder was {verb} with transformers {', '.join(sorted(known, key=Version))}"


@dataclass
class Verdict:
    """Outcome of one check (`passed`, `failed` or `skipped`) with its result or its reason."""

    check: str
    outcome: str
    found: str


def open_subject(path: str, trust_remote_code: bool = False) -> Subject:
    """
    Open a saved model for verification.

    Args:
        path: folder or name on the Hub.

    Raises:
        InputError: the model cannot be opened, or it is an adapter.
    """
    if (Path(path) / ADAPTER_FILE).is_file():
        raise InputError(f"{path}: is an adapter: verify the model that `hf-tfm merge` makes of it")
    auto_class = auto_class_of(path, trust_remote_code)
    model, tokenizer = open_model(path, auto_class, trust_remote_code=trust_remote_code)
    return Subject(path, auto_class, model, tokenizer, trust_remote_code)


def verify(
    path: str, only: list[str] | None = None, trust_remote_code: bool = False, subject: Subject | None = None
) -> list[Verdict]:
    """
    Check the promises of a saved model.

    Args:
        path: folder or name on the Hub.
        only: names of `CHECKS`; by default all.
        subject: the model if it is open already.

    Raises:
        InputError: as [`open_subject`].
    """
    subject = subject or open_subject(path, trust_remote_code)
    verdicts = []
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        torch.manual_seed(0)
        try:
            with quiet():
                verdicts.append(Verdict(name, "passed", check(subject)))
        except NotApplicable as error:
            verdicts.append(Verdict(name, "skipped", str(error)))
        except Broken as error:
            verdicts.append(Verdict(name, "failed", str(error)))
        except Exception as error:  # a model's own code may raise anything
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            verdicts.append(Verdict(name, "failed", f"{type(error).__name__}: {reason}"))
    return verdicts


def as_table(verdicts: list[Verdict]) -> str:
    """Return a line for each check."""
    marks = {"passed": "ok", "failed": "FAILED", "skipped": "–"}
    return "\n".join(f"{v.check:18} {marks[v.outcome]:7} {v.found}" for v in verdicts)


def as_json(path: str, verdicts: list[Verdict]) -> str:
    """Return counts of outcomes and all verdicts as JSON."""
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in ("passed", "failed", "skipped")}
    return json.dumps({"model": path, **counts, "checks": [asdict(v) for v in verdicts]}, indent=1)
