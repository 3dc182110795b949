"""What ablations measure beside a run's own results: longer text, cache and speed of writing, words, a linear probe."""

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ... import cpu
from ...artifacts.open import LANGUAGE_MODELS, auto_class_of, open_model
from ...core.errors import InputError
from ...data.records import read_records
from ...evaluate.language_model import bits_per_byte, read_text
from ...models.modeling_tfm_compat import CACHE_NAME
from ...tasks.likelihood import LanguageModel
from ..retrieval.retrieval import embed, open_encoder


_ROWS, _NEW_TOKENS, _ROUNDS = 8, 32, 5


@dataclass(frozen=True)
class Asked:
    """
    What the measures need to know.

    Attributes:
        text: files to measure on, of which `bytes` are read.
        lengths: windows, in tokens.
        context: tokens that the cache has where writing is timed.
        probe: labelled records to fit a linear classifier on, and to measure it on.
    """

    text: list[str]
    text_field: str = "text"
    bytes: int = 120_000
    lengths: list[int] = field(default_factory=list)
    context: int = 256
    probe: tuple[str, str] | None = None


def _language_model(folder: Path) -> LanguageModel:
    auto_class = auto_class_of(str(folder))
    model, tokenizer = open_model(str(folder), auto_class)
    return LanguageModel(model, tokenizer, auto_class == LANGUAGE_MODELS[0])


def _documents(asked: Asked, most: int) -> Iterator[tuple[str, str]]:
    size = 0
    for path in asked.text:
        for source, text in read_text(path, asked.text_field):
            yield source, text[: most - size]  # cut by characters: near enough, and the same for all
            size += len(text)
            if size >= most:
                return


def by_length(folder: Path, asked: Asked) -> dict[str, float]:
    """Bits per byte where a model reads through windows of different lengths, in steps of half a window."""
    lm = _language_model(folder)
    figures = {}
    for length in asked.lengths:
        if length <= lm.max_length:
            measured = bits_per_byte(lm, _documents(asked, asked.bytes), window=length)
            figures[f"length {length}"] = measured["all"]["bits_per_byte"].value
    return figures


def pseudo(folder: Path, asked: Asked) -> dict[str, float]:
    """Pseudo bits per byte of a masked LM: each token masked alone, which costs a row each."""
    measured = bits_per_byte(_language_model(folder), _documents(asked, asked.bytes // 8))
    return {"pseudo_bits_per_byte": measured["all"]["bits_per_byte"].value}


def probe(folder: Path, asked: Asked) -> dict[str, float]:
    """
    Accuracy of a linear classifier (ridge regression to the classes) over the pooled states of the model as it is
    (Alain & Bengio 2016, https://huggingface.co/papers/1610.01644).
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    encoder = open_encoder(str(folder))
    sides = []
    for path in asked.probe:
        records = read_records(path)
        sides.append((embed(encoder, records.texts("text", "probe")), records.values("label", "probe")))
    (train, labels), (held_out, right) = sides
    classifier = make_pipeline(StandardScaler(), RidgeClassifier()).fit(train, np.asarray(labels, str))
    return {"probe_accuracy": float((classifier.predict(held_out) == np.asarray(right, str)).mean())}


@torch.inference_mode()
def decoding(folders: Mapping[str, Path], asked: Asked) -> dict[str, dict[str, float]]:
    """
    Bytes of cache for a token of a full context (fp32), and tokens a second where eight rows are written behind it:
    medians, the models taking turns, so that what else the machine does falls on all of them.
    """
    models, seconds, figures = {}, {}, {}
    for name, folder in folders.items():
        model, _ = open_model(str(folder), "AutoModelForCausalLM")
        model.generation_config.eos_token_id = None
        vocabulary, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
        prompt = torch.randint(vocabulary // 2, vocabulary, (_ROWS, asked.context), generator=generator)
        cache = model(prompt, use_cache=True)[CACHE_NAME]
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        figures[name] = {"cache_bytes_per_token": held / prompt.numel()}
        models[name], seconds[name] = (model, prompt), []
    for _ in range(_ROUNDS):
        for name, (model, prompt) in models.items():
            took = []
            for count in (1, 1 + _NEW_TOKENS):
                started = time.perf_counter()
                options = dict(attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count)
                cpu.generate(model, prompt, **options)
                took.append(time.perf_counter() - started)
            seconds[name].append(took[1] - took[0])  # without the reading of the prompt
    for name, several in seconds.items():
        figures[name]["written_tokens_per_second"] = _ROWS * _NEW_TOKENS / statistics.median(several)
    return figures


# What is measured of each run, and what of the first seed's models side by side.
OF_A_RUN = {"length": by_length, "pseudo": pseudo, "probe": probe}
SIDE_BY_SIDE = {"decoding": decoding}


def check_measures(names: list[str], asked: Asked, script: str) -> None:
    """Raises `InputError` for a measure that is unknown, is not for these models, or lacks what it needs."""
    known = {**OF_A_RUN, **SIDE_BY_SIDE}
    unfit = {"pretrain_clm": {"pseudo"}, "pretrain_mlm": {"length", "decoding"}}[script]
    for name in names:
        if name not in known:
            raise InputError(f"measure {name!r} is unknown; choose of {', '.join(known)}")
        if name in unfit:
            raise InputError(f"measure {name!r} is not for models of {script}")
    if "length" in names and not asked.lengths:
        raise InputError("measure length: needs --lengths, as in --lengths 128 256 512")
    if min(asked.lengths, default=1) < 1 or asked.context < 1:
        raise InputError("--lengths and --context are tokens: at least 1")
    if "probe" in names and asked.probe is None:
        raise InputError("measure probe: needs --probe with two files of records with text and label")
    for file in asked.probe or ():
        if "probe" in names and not os.path.exists(file):
            raise InputError(f"measure probe: {file}: no such file")
