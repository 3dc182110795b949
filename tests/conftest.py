"""Fixtures and settings of every test: no network, one thread, fixed seeds, a small tokenizer; `--quick`."""

import gc
import os
import tempfile
from pathlib import Path

import pytest


# transformers reads these once, on import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_modules = tempfile.TemporaryDirectory(prefix="hf_modules_")  # hides remote code that earlier runs cached
os.environ["HF_MODULES_CACHE"] = _modules.name

import torch  # noqa: E402
from pretraining_runs import files, quick_runs  # noqa: E402, F401
from tiny import build_tokenizer  # noqa: E402
from transformers import PreTrainedTokenizerFast, set_seed  # noqa: E402


torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="run the tests marked `quick`, and import no other file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        config.option.markexpr = "quick and not slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--quick") and collection_path.suffix == ".py":
        return "pytest.mark.quick" not in collection_path.read_text(encoding="utf-8")
    return None


@pytest.fixture(autouse=True, scope="session")
def _frozen_imports():
    """Exclude everything imported so far from garbage collection, which accelerate calls in each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    set_seed(0)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Confidence intervals from fewer resamples, so that tests are fast."""
    monkeypatch.setattr("hf_tfm.core.statistics.RESAMPLES", 60)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()
