"""
Where the `hf-tfm` command starts: help and mistakes in the arguments are answered before torch is imported.

Whatever is imported from `hf_tfm` first imports all of it, because that enters the models into the Auto classes. So the
arguments are read by a second copy of `hf_tfm/apps/cli.py`, under a package name that does nothing.
"""

import importlib
import importlib.util
import sys
import types


def main(argv: list[str] | None = None) -> int:
    """Runs one command; see `hf_tfm.apps.cli.main`."""
    light = types.ModuleType("_hf_tfm_arguments")
    light.__path__ = importlib.util.find_spec("hf_tfm").submodule_search_locations
    sys.modules[light.__name__] = light
    args = importlib.import_module("_hf_tfm_arguments.apps.cli").parse(argv)
    if args.run.__name__ == "completion":  # shells ask for it when they start
        args.run(args)
        return 0

    versions = importlib.import_module("_hf_tfm_arguments.core.version")
    try:
        versions.check_versions()
    except versions.UnsupportedVersionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from hf_tfm.apps import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
