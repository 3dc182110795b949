"""Grids of an ablation: every combination of labels is a cell with its own recipe."""

import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...core.errors import InputError, explain
from ...train.pretrain_recipe import PretrainingArguments
from ...train.recipe import parse_recipe


_GRID_FIELDS = {"seed", "output_dir"}  # set by the grid, not by a recipe
_TOKENIZER_FIELDS = ("kind", "vocab_size", "lowercase", "min_frequency", "num_spare_tokens")


@dataclass(frozen=True)
class Cell:
    """
    One recipe of the grid.

    Attributes:
        name: the labels of the cell.
        fields: fields of the recipe; `tokenizer` may be a mapping with the tokenizer to train.
        embeddings_from: name of the cell whose trained embeddings this one starts with.
    """

    name: str
    fields: dict[str, Any]
    embeddings_from: str | None = None

    @property
    def folder(self) -> str:
        """Return a folder name that is unique to the fields, so that a changed cell runs again."""
        digest = hashlib.sha256(json.dumps([self.fields, self.embeddings_from], sort_keys=True).encode()).hexdigest()
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{digest[:8]}"


def expand(base: Mapping[str, Any], grid: Mapping[str, Any], override: Mapping[str, Any]) -> list[Cell]:
    """
    Return the cells of a grid: every combination of one label per axis.

    Args:
        base: fields that all recipes share.
        grid: `{axis: {label: {field: value}}}`; `model_overrides` are merged field by field, all other fields replaced.
        override: fields that override all others.

    Raises:
        InputError: the grid is malformed, two cells have one name, a cell sets its seed or output folder, or
            embeddings come from a cell that is not an earlier one.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise InputError("grid: is empty; write it as {axis: {label: {field: value}}}")
    for axis, labels in grid.items():
        if not isinstance(labels, Mapping) or not labels:
            raise InputError(f"grid: axis {axis!r} has no labels; write it as {{label: {{field: value}}}}")
        for label, changes in labels.items():
            if not isinstance(changes, Mapping | None):
                raise InputError(f"grid: {label!r} of axis {axis!r} must be {{field: value}}, not {changes!r}")
    cells: list[Cell] = []
    for combination in itertools.product(*(labels.items() for labels in grid.values())):
        fields: dict[str, Any] = {}
        for changes in (base, *(changes for _, changes in combination), override):
            fields = merge_fields(fields, changes or {})
        donor = fields.pop("embeddings_from", None)
        if donor is not None and donor not in [cell.name for cell in cells if cell.embeddings_from is None]:
            raise InputError(f"grid: embeddings_from {donor!r} is no earlier cell with embeddings of its own")
        if reserved := sorted(_GRID_FIELDS & fields.keys()):
            raise InputError(f"grid: {reserved[0]} cannot be set in a recipe: use --seeds and --output_dir of the grid")
        cells.append(Cell(", ".join(label for label, _ in combination), fields, donor))
    names = [cell.name for cell in cells]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"grid: two cells are called {duplicate!r}; give their labels other names")
    return cells


def merge_fields(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with changes; `model_overrides` are merged field by field."""
    overrides: dict[str, Any] = {}
    for source in (fields, changes):
        override = source.get("model_overrides") or {}
        if not isinstance(override, Mapping):
            raise InputError(f"grid: model_overrides must be {{field: value}}, not {override!r}")
        overrides |= override
    return {**fields, **changes, **({"model_overrides": overrides} if overrides else {})}


def check_cells(cells: Sequence[Cell], recipe_class: type, config_class: Any) -> None:
    """
    Raise `InputError` for the first cell whose recipe its script would refuse.

    Args:
        recipe_class: dataclass of the script's fields.
        config_class: class of new models' configurations.
    """
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            spec = cell.fields.get("tokenizer")
            unknown = set(spec) - set(_TOKENIZER_FIELDS) if isinstance(spec, Mapping) else set()
            if unknown or not isinstance(spec, Mapping | str):
                wrong = f"unknown {min(unknown)!r}" if unknown else "missing"
                known = ", ".join(_TOKENIZER_FIELDS)
                raise InputError(
                    f"grid: cell {cell.name!r}: tokenizer: {wrong}; give a folder, or what to train: {known}"
                )
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(yaml.safe_dump({**cell.fields, "tokenizer": "not trained yet"}), encoding="utf-8")
            try:
                fields, _ = parse_recipe([str(recipe)], recipe_class, PretrainingArguments)
                if not Path(fields.model).exists():
                    name, _, size = fields.model.partition("/")
                    with explain(f"model {fields.model}", "{reason}", ValueError):
                        config_class.preset(name, size or None, **json.loads(fields.model_overrides))
            except InputError as error:
                reason = str(error).removeprefix(f"{recipe}: ")
                raise InputError(f"grid: cell {cell.name!r}: {reason}") from None
