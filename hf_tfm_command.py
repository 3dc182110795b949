"""
Entry point of the `hf-tfm` command, and of what runs before `import hf_tfm`.

`import hf_tfm` imports torch and transformers, which takes seconds. Help, completion and mistakes in the arguments must
not wait for them, so this module loads parts of the package under another name, without `hf_tfm/__init__.py`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


LIGHT = "hf_tfm_light"


def load_light(name: str) -> ModuleType:
    """Import the module `hf_tfm.NAME` as `hf_tfm_light.NAME`; its relative imports stay under that name."""
    if LIGHT not in sys.modules:
        spec = find_spec("hf_tfm")  # which is not imported for it
        package = sys.modules[LIGHT] = ModuleType(LIGHT)
        package.__path__ = list((spec and spec.submodule_search_locations) or [])
    return import_module(f"{LIGHT}.{name}")


def check_data(script: str) -> None:
    """End a script with one line and exit code 2 if its arguments name a file or a field that is not there."""
    if mistake := load_light("data.forms.early_check").find_mistake(Path(script), sys.argv[1:]):
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; see `hf_tfm.apps.cli.main`."""
    return load_light("apps.cli").main(argv)


if __name__ == "__main__":
    sys.exit(main())
