"""
The version of this package, and the versions of other packages that it requires.

The build reads this file without importing torch, so its module-level imports come from the standard library alone.
"""

__version__ = "0.2.0"

# The same bounds as in pyproject.toml; a test compares them. Newer, untested versions are accepted.
REQUIRED = {
    "transformers": ">=5.19",
    "torch": ">=2.9.1",
}


class UnsupportedVersionError(ImportError):
    """A required package is installed in a version that does not work with this one."""


def check_versions() -> None:
    """
    Compare the metadata of the installed packages with `REQUIRED`, without importing the packages.

    Raises:
        UnsupportedVersionError: In one line: the installed version, the required range and the command that fixes it.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    for package, supported in REQUIRED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:  # a source tree on sys.path has no metadata; a missing package fails on import
            continue
        if not SpecifierSet(supported).contains(installed, prereleases=True):
            raise UnsupportedVersionError(
                f"hf_tfm needs {package}{supported}, but {package} {installed} is installed: "
                f"pip install --upgrade '{package}{supported}'"
            )
