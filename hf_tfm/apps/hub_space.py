"""The demo page of a model as a Space of the Hub: a folder with everything that the page needs."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

import hf_tfm

from ..artifacts.open import recorded
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError
from ..core.model_files import ADAPTER_FILE
from ..hub.push import check_files, files_to_push
from .demo import build


# Packages that the page imports; the other requirements of this package are for training.
_REQUIREMENTS = ("torch", "transformers", "accelerate", "numpy", "scipy", "tqdm", "jinja2", "gradio")

_APP = '''"""The demo page of a model. Start it with `python app.py`; a Space starts it by itself."""

from pathlib import Path

from hf_tfm.apps.demo import build, launch


HERE = Path(__file__).parent
page = build({path}, base={base}, trust_remote_code={trust}, title={title!r})

if __name__ == "__main__":
    launch(page)
'''

_README = """---
{metadata}
---

# {title}

A page for the model's head, with a view of its attention; written by `hf-tfm demo --space`.

```bash
pip install -r requirements.txt
python app.py
```
"""


def write_space(path: str, target: str, base: str | None = None, trust_remote_code: bool = False) -> None:
    """
    Write a Space: `app.py`, `requirements.txt`, `README.md` with metadata, this package's code, and the model.

    A model on the Hub is not copied; the Space loads it from there.

    Args:
        target: folder that does not exist or is empty.
        base: base model of an adapter, if it is not where the adapter's settings say.

    Raises:
        InputError: there is no such model or no page for it, `target` is not empty, or a file of the model's folder
            must not be published.
    """
    require_empty(target)
    build(path, base, trust_remote_code)  # raises the errors of the model before anything is written
    folder = Path(path)
    with atomic_directory(target) as space:
        models = [] if folder.is_dir() else [path]
        where, base_where = repr(path), "None"
        if folder.is_dir():
            where = 'str(HERE / "model")'
            _copy_model(folder, space / "model")
            config = space / "model" / ADAPTER_FILE
            if config.is_file():
                facts = json.loads(config.read_text(encoding="utf-8"))
                source = base or facts["base_model_name_or_path"]
                base_where = repr(source)
                if Path(source).is_dir():
                    _copy_model(Path(source), space / "base")
                    base_where, facts["base_model_name_or_path"] = 'str(HERE / "base")', "base"
                    config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
                else:
                    models.append(source)
            for copied in ("model", "base"):
                check_files(files_to_push(space / copied))
        package = Path(hf_tfm.__file__).parent
        shutil.copytree(
            package, space / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "training")
        )
        title = folder.resolve().name if folder.is_dir() else path
        app = _APP.format(path=where, base=base_where, trust=trust_remote_code, title=title)
        (space / "app.py").write_text(app, encoding="utf-8")
        names = [*_REQUIREMENTS, *(["peft"] if base_where != "None" else [])]
        lines = [f"{name}=={version(name).partition('+')[0]}" for name in names]
        (space / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (space / "README.md").write_text(_readme(title, models, recorded(path, "license")), encoding="utf-8")


def _copy_model(folder: Path, target: Path) -> None:
    for name, source in files_to_push(folder).items():
        if name == "README.md":  # the Space has a README of its own
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / name)
    if not target.is_dir():
        raise InputError(f"{folder}: contains no file of a model")


def _readme(title: str, models: list[str], license_: str | None) -> str:
    card = SpaceCardData(
        title=title,
        emoji="🔎",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version="3.11",
        app_file="app.py",
        license=license_,
        models=models or None,
    )
    return _README.format(metadata=card.to_yaml(), title=title)
