"""What every test stands on: no network, one thread, fixed seeds, and a tokenizer built on the spot."""

import os
import tempfile

import pytest


# Before transformers is imported, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_modules = tempfile.TemporaryDirectory(prefix="hf_modules_")  # remote code of earlier runs must not be found
os.environ["HF_MODULES_CACHE"] = _modules.name

import torch  # noqa: E402
from tiny import build_tokenizer  # noqa: E402
from transformers import PreTrainedTokenizerFast, set_seed  # noqa: E402


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    set_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()
