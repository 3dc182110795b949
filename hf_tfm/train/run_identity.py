"""Run identity: what must stay the same while a run is stopped and resumed; kept beside its checkpoints."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..core.atomic_files import write_atomically
from ..core.errors import InputError, cannot_write, explain


IDENTITY_FILE = ".recipe.json"  # hidden: it names this machine's paths and is no part of the model

# Settings of transformers that decide what is learned; all others may change between the parts of one run.
DECISIVE_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "seed", "data_seed", "optim", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "label_smoothing_factor", "bf16", "fp16", "train_sampling_strategy", "neftune_noise_alpha", "metric_for_best_model",
)  # fmt: skip


def run_identity(
    recipe: Mapping[str, Any], args: TrainingArguments, contents: Mapping[str, Any], free: Collection[str] = ()
) -> dict[str, Any]:
    """
    Return what must stay the same while a run is stopped and resumed.

    Args:
        recipe: the script's own fields.
        args: of these the `DECISIVE_SETTINGS`.
        contents: hashes of files, and the rows of a step, by name.
        free: names of recipe fields that may change.
    """
    fields = {name: value for name, value in recipe.items() if name not in free}
    settings = {name: getattr(args, name) for name in DECISIVE_SETTINGS}
    return json.loads(json.dumps({**fields, **settings, **contents}, default=str))


def data_seed(args: TrainingArguments) -> int:
    """Return the seed of the order of the training data."""
    return args.seed if args.data_seed is None else args.data_seed


def read_identity(run: str | Path) -> dict[str, Any] | None:
    """Return the identity of the run in a folder, or None if no run began there."""
    file = Path(run) / IDENTITY_FILE
    if not file.exists():
        return None
    identity: dict[str, Any] = {}
    for name, value in json.loads(file.read_text(encoding="utf-8")).items():
        identity |= value if name == "script" else {name: value}  # an older version kept the recipe in a field
    if "masking_rate" in identity:  # an older version had two fields for the first and the last rate
        identity["masking_rates"] = [identity.pop("masking_rate"), identity.pop("final_masking_rate")]
    return identity


def write_identity(run: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity atomically. Raises `InputError` if the folder cannot be written."""
    with explain(f"--output_dir {run}", cannot_write("mend that or give another folder"), OSError):
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / IDENTITY_FILE, json.dumps(identity, indent=1))


def require_same_identity(run: Path, identity: Mapping[str, Any]) -> None:
    """Raise `InputError` if the checkpoints in a folder belong to a run with another identity."""
    # An older version may have kept fewer names: those it did not keep cannot be compared.
    for name, value in sorted((read_identity(run) or {}).items()):
        if value != identity.get(name):
            raise InputError(
                f"{run}: its checkpoints come from another recipe ({name}: {value!r}, now {identity.get(name)!r}): "
                "choose another --output_dir or delete it"
            )
