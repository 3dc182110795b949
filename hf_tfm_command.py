"""
Entry point of the `hf-tfm` command.

`import hf_tfm` imports torch and transformers, which takes seconds. Help, completion and mistakes in the arguments must
not wait for them, so this module loads `hf_tfm/apps/cli` by its path, as a package of its own that imports Typer alone.
The chosen command then imports what it needs from `hf_tfm`.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def load_cli() -> ModuleType:
    """Load `hf_tfm/apps/cli` under the name `hf_tfm_cli`, without its parent packages."""
    if "hf_tfm_cli" not in sys.modules:
        package = find_spec("hf_tfm")  # finds the package without importing it
        folder = Path(package.origin).parent / "apps" / "cli"
        spec = spec_from_file_location("hf_tfm_cli", folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = sys.modules["hf_tfm_cli"] = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["hf_tfm_cli"]


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; see `hf_tfm.apps.cli.main`."""
    return load_cli().main(argv)


if __name__ == "__main__":
    sys.exit(main())
