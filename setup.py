"""Adds the scripts, recipes and small data of `training/` to the package as `hf_tfm.training`; see pyproject.toml."""

from setuptools import find_namespace_packages, setup


setup(
    packages=[*find_namespace_packages(include=["hf_tfm", "hf_tfm.*"]), "hf_tfm.training"],
    package_dir={"hf_tfm.training": "training"},
)
