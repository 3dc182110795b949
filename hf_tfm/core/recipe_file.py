"""Reads recipes: YAML mappings of a script's fields to their values."""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .package_data import find_packaged


# Fields of older recipes, and the field that replaced them.
_REPLACED_FIELDS = {"masking_rate": "masking_rates", "final_masking_rate": "masking_rates"}


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the mapping of a recipe. Raises `InputError` if it cannot be read."""
    import yaml

    try:
        recipe = yaml.safe_load(Path(find_packaged(str(path))).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such recipe") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML recipe: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: a recipe is a mapping of fields to values")
    return recipe


def as_arguments(recipe: Mapping[str, Any]) -> list[str]:
    """Returns the fields of a recipe as command-line arguments, so that both are parsed and checked alike."""
    arguments = []
    for name, value in recipe.items():
        if value is None:
            continue
        arguments.append(f"--{name}")
        if isinstance(value, list):
            arguments.extend(str(item) for item in value)
        else:
            arguments.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return arguments


def check_field(name: str, fields: Collection[str], place: str) -> None:
    """Raises `InputError` if a script has no such field; the message names the nearest one."""
    if name not in fields and name.removeprefix("no_") not in fields:
        close = difflib.get_close_matches(_REPLACED_FIELDS.get(name, name), fields, n=1, cutoff=0.7)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"{place}: unknown field {name!r}{hint}")
