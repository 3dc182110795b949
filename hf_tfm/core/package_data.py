"""Recipes and data of `training/`, which an installed package carries along; names of folders and of the Hub."""

import os
from pathlib import Path

from .errors import InputError


_PACKAGE = Path(__file__).parents[1]


def find_packaged(location: str) -> str:
    """
    The location of a file or folder as it is, or in the package if it exists only there.

    Recipes name their data as it stands in a checkout, such as `training/data/text/train.jsonl.gz`. In an installed
    package that folder is `hf_tfm/training`. Recipes are found by their bare names too, such as `pretrain_clm.yaml`.
    """
    path = Path(location)
    if path.is_absolute() or ".." in path.parts or path.exists():
        return location
    for root in (_PACKAGE, _PACKAGE.parent):
        for packaged in (root / path, root / "training" / "recipes" / path):
            if packaged.is_relative_to(root / "training") and packaged.exists():
                return str(packaged)
    return location


def refuse_missing_folder(path: str | os.PathLike[str]) -> None:
    """Raises `InputError` for a missing local path; other names may be on the Hub, where a lookup takes long."""
    looks_local = Path(path).is_absolute() or str(path).startswith((".", "~")) or len(Path(path).parts) > 2
    if looks_local and not Path(path).exists():
        raise InputError(f"{path}: no such folder")
