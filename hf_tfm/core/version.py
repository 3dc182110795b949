"""
This package's version, and the versions of other packages without which it cannot be imported.

The build reads this file without importing torch, so it imports nothing but the standard library at its top.
"""

__version__ = "0.1.0"

# As in pyproject.toml, which tests compare with this. Newer versions than any that was tried are not refused.
REQUIRED = {
    "transformers": ">=5.19",
    "torch": ">=2.9.1",
}


class UnsupportedVersionError(ImportError):
    """A package that this one builds on has a version with which it does not work."""


def check_versions() -> None:
    """
    Compare the installed packages with `REQUIRED`, from their metadata, without importing them.

    Raises:
        UnsupportedVersionError: with one line that has the installed version, the range and the command to mend it.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    for package, supported in REQUIRED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:  # a source tree on the path has no metadata, or the import itself will fail
            continue
        if not SpecifierSet(supported).contains(installed, prereleases=True):
            raise UnsupportedVersionError(
                f"hf_tfm needs {package}{supported}, but {package} {installed} is installed: "
                f"pip install --upgrade '{package}{supported}'"
            )
