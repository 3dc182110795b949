"""Edits of saved folders."""

import json
from pathlib import Path


def edit_config(folder: Path, remove: tuple[str, ...] = (), **fields) -> Path:
    """Changes fields of a saved configuration and returns its folder."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in remove}))
    return folder
