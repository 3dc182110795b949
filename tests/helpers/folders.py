"""Edits of saved folders that several tests make."""

import json
from pathlib import Path


def edit_config(folder: Path, remove: tuple[str, ...] = (), **fields) -> Path:
    """Change fields of a saved configuration; returns its folder."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in remove}))
    return folder
