"""Measures of ablations beyond a run's own results: text length, generation, pseudo-likelihood, a linear probe."""

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ... import cpu
from ...artifacts.open import LANGUAGE_MODELS, auto_class_of, open_model
from ...artifacts.record import read_record
from ...core.errors import InputError
from ...data.forms.form import Reading
from ...data.forms.reader import read_records
from ...evaluate.language_model import TextReader, bits_per_byte
from ...evaluate.result_store import ResultStore
from ...models.modeling_tfm_compat import CACHE_NAME
from ...tasks.likelihood import LanguageModel
from ..retrieval.text_encoder import embed, open_encoder
from .report import Figures, figures_of
from .runner import Run


_ROWS, _NEW_TOKENS, _ROUNDS = 8, 32, 5


@dataclass(frozen=True)
class MeasureOptions:
    """
    Options of the measures.

    Attributes:
        text: validation files, of which the first `bytes` are read.
        lengths: context lengths of `by_length`, in tokens.
        context: tokens in the cache while generation is timed.
        probe: files of labelled records, to fit a linear classifier and to evaluate it.
    """

    text: list[str]
    text_field: str = "text"
    bytes: int = 120_000
    lengths: list[int] = field(default_factory=list)
    context: int = 256
    probe: tuple[str, str] | None = None

    @classmethod
    def from_recipe(cls, recipe: Any, shared: Mapping[str, Any]) -> Self:
        """Return the options of a recipe of `ablate.py`; `shared` are the fields of all runs, which name the text."""
        text = shared.get("validation_data", [])
        return cls(
            [text] if isinstance(text, str) else text,
            shared.get("text_field", "text"),
            bytes=recipe.measure_bytes,
            lengths=recipe.lengths,
            context=recipe.context,
            probe=tuple(recipe.probe) if len(recipe.probe) == 2 else None,
        )


def _language_model(folder: Path) -> LanguageModel:
    auto_class = auto_class_of(str(folder))
    model, tokenizer = open_model(str(folder), auto_class)
    return LanguageModel(model, tokenizer, auto_class == LANGUAGE_MODELS[0])


def _documents(options: MeasureOptions, max_length: int) -> Iterator[tuple[str, str]]:
    size = 0
    for path in options.text:
        for source, text in TextReader(path, text_field=options.text_field):
            yield source, text[: max_length - size]  # characters for bytes: close enough, and alike for all
            size += len(text)
            if size >= max_length:
                return


def by_length(folder: Path, options: MeasureOptions) -> dict[str, float]:
    """Return bits per byte with contexts of different lengths, in strides of half a context."""
    lm = _language_model(folder)
    figures = {}
    for length in options.lengths:
        if length <= lm.max_length:
            measured = bits_per_byte(lm, _documents(options, options.bytes), window=length)
            figures[f"length {length}"] = measured["all"]["bits_per_byte"].value
    return figures


def pseudo(folder: Path, options: MeasureOptions) -> dict[str, float]:
    """Return pseudo bits per byte of a masked LM: every token is masked alone, one row per token."""
    measured = bits_per_byte(_language_model(folder), _documents(options, options.bytes // 8))
    return {"pseudo_bits_per_byte": measured["all"]["bits_per_byte"].value}


def probe(folder: Path, options: MeasureOptions) -> dict[str, float]:
    """
    Return the accuracy of a linear classifier (ridge regression) on the frozen model's pooled states.

    Alain & Bengio 2016, https://huggingface.co/papers/1610.01644
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    encoder = open_encoder(str(folder))
    splits = []
    for path in options.probe or ():
        records = read_records(path, Reading("classification"))
        splits.append((embed(encoder, records.texts("text")), records.values("label")))
    (train, labels), (test, test_labels) = splits
    classifier = make_pipeline(StandardScaler(), RidgeClassifier()).fit(train, np.asarray(labels, str))
    return {"probe_accuracy": float((classifier.predict(test) == np.asarray(test_labels, str)).mean())}


@torch.inference_mode()
def decoding(folders: Mapping[str, Path], options: MeasureOptions) -> dict[str, dict[str, float]]:
    """
    Return the bytes of cache per token (fp32), and generated tokens per second for eight rows.

    Speeds are medians; the models take turns, so that other load on the machine affects all of them alike.
    """
    models, seconds, figures = {}, {}, {}
    for name, folder in folders.items():
        model, _ = open_model(str(folder), "AutoModelForCausalLM")
        model.generation_config.eos_token_id = None
        vocabulary, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
        prompt = torch.randint(vocabulary // 2, vocabulary, (_ROWS, options.context), generator=generator)
        cache = model(prompt, use_cache=True)[CACHE_NAME]
        cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        figures[name] = {"cache_bytes_per_token": cache_bytes / prompt.numel()}
        models[name], seconds[name] = (model, prompt), []
    for _ in range(_ROUNDS):
        for name, (model, prompt) in models.items():
            durations = []
            for count in (1, 1 + _NEW_TOKENS):
                started = time.perf_counter()
                options = dict(attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count)
                cpu.generate(model, prompt, **options)
                durations.append(time.perf_counter() - started)
            seconds[name].append(durations[1] - durations[0])  # without the prompt
    for name, durations in seconds.items():
        figures[name]["written_tokens_per_second"] = _ROWS * _NEW_TOKENS / statistics.median(durations)
    return figures


# Measures of every run, and measures that compare the models of the first seed.
RUN_MEASURES = {"length": by_length, "pseudo": pseudo, "probe": probe}
MODEL_MEASURES = {"decoding": decoding}


def measure_runs(runs: Sequence[Run], measures: Sequence[str], options: MeasureOptions, store: ResultStore) -> Figures:
    """Return the figures by cell and seed; measurements of an earlier start are read from the store."""
    figures: Figures = {}
    shared = {"options": vars(options)}
    finished = [run for run in runs if run.finished]
    cells = list(dict.fromkeys(run.cell.name for run in runs))
    for run in sorted(finished, key=lambda run: cells.index(run.cell.name)):
        run_figures = figures_of(run)
        for name in set(measures) & RUN_MEASURES.keys():
            part = {**shared, "measure": name, "run": str(run.folder), "started": read_record(run.folder)["started"]}
            run_figures |= store.compute_once(part, partial(RUN_MEASURES[name], run.folder, options))
        figures.setdefault(run.cell.name, {})[run.seed] = run_figures
    folders = {run.cell.name: run.folder for run in finished if run.seed == runs[0].seed}
    for name in set(measures) & MODEL_MEASURES.keys():
        part = {**shared, "measure": name, "runs": sorted(map(str, folders.values()))}
        for cell, model_figures in store.compute_once(part, partial(MODEL_MEASURES[name], folders, options)).items():
            figures[cell][runs[0].seed] |= model_figures
    return figures


def check_measures(names: list[str], options: MeasureOptions, script: str) -> None:
    """Raise `InputError` for a measure that is unknown, does not fit these models, or lacks its options."""
    known = {**RUN_MEASURES, **MODEL_MEASURES}
    unfit = {"pretrain_clm": {"pseudo"}, "pretrain_mlm": {"length", "decoding"}}[script]
    for name in names:
        if name not in known:
            raise InputError(f"measure {name!r} is unknown; choose of {', '.join(known)}")
        if name in unfit:
            raise InputError(f"measure {name!r} is not for models of {script}")
    if "length" in names and not options.lengths:
        raise InputError("measure length: needs --lengths, as in --lengths 128 256 512")
    if min(options.lengths, default=1) < 1 or options.context < 1:
        raise InputError("--lengths and --context are tokens: at least 1")
    if "probe" in names and options.probe is None:
        raise InputError("measure probe: needs --probe with two files of records with text and label")
    for file in options.probe or ():
        if "probe" in names and not os.path.exists(file):
            raise InputError(f"measure probe: {file}: no such file")
