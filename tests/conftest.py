"""What every test stands on: no network, one thread, fixed seeds, and a tokenizer built on the spot."""

import os
import tempfile
from pathlib import Path

import pytest


# Before transformers is imported, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_modules = tempfile.TemporaryDirectory(prefix="hf_modules_")  # remote code of earlier runs must not be found
os.environ["HF_MODULES_CACHE"] = _modules.name

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast, set_seed  # noqa: E402


# Larger data lives beside the checkout where there is some; tests that want it skip without.
SHARED = Path(__file__).parents[2] / "shared"

CORPUS = [
    "the cat sat on the mat and looked at the moon",
    "a small model learns what a small text can teach",
    "who reads the last page first knows how it ends",
    "rain fell on the roof while the kettle sang",
    "seven ships sailed south and six of them came home",
    "every answer in the book begins with a question",
] * 4

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    set_seed(0)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens that frames a text as `[CLS] text [SEP]`, the ids as in `tiny.py`."""
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name.strip('[]').lower()}_token": name for name in special},
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()
