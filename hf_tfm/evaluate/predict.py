"""
Predictions of a saved model for the records of a file: labels, tags, answers, options, likelihoods or embeddings.

Files are read, predicted and written in chunks, so they may be of any length; within a chunk, rows of similar length
are computed together. The predictions depend on neither.
"""

import contextlib
import csv
import functools
import gzip
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.open import auto_class_of, open_model
from ..artifacts.record import RECORD_FILE, read_record
from ..core.atomic_files import atomic_file
from ..core.errors import InputError, cannot_write, explain
from ..core.limits import longest_input
from ..core.statistics import to_bits_per_byte
from ..data.forms.form import Reading
from ..data.forms.reader import RecordReader, collect
from ..data.records import Records
from ..data.tables import ReadingOptions
from ..data.tokenizer import encode_text
from ..tasks.classification import NextSentencePrediction
from ..tasks.likelihood import LanguageModel
from ..tasks.pooling import PooledModel, further_step, read_pooling
from ..tasks.task import Task
from ..train.finetune import encode_texts
from .labelled import LABEL_TASKS, predict_rows, task_outputs
from .language_model import document_rows


CHUNK = 1024  # records that are in memory at one time
_TASKS: dict[str, type[Task[Any]]] = {**LABEL_TASKS, "AutoModelForNextSentencePrediction": NextSentencePrediction}
_LANGUAGE_MODELS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForPreTraining")


@dataclass
class Predictor:
    """
    A model and its settings for predictions.

    Attributes:
        kind: name of the Auto class that the model was opened with.
        fields: names of fields in the users' files: `text_field`, `text_pair_field`, `words_field`, `question_field`,
            `context_field`, `options_fields`; others are recognised.
        trained_fields: the same of the files that the model was trained on, which hold for files that have them.
        max_length: tokens that texts are cut to.
        stride: tokens that two windows of a long context share.
        threshold: "no answer" is given where it is better than the best span by more than this; None: never.
        top: how many labels or spans are listed with their scores.
        pooling: how hidden states become an embedding, one of `POOLINGS`.
        normalize: whether embeddings get the length 1.
        embedder: the SentenceTransformer of a folder whose embeddings are made in more steps than pooling.
        prompt: text in front of every text to embed; None: the embedder's default.
        batching: `batch_tokens` and `bf16` of [`predict_rows`].
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    trained_fields: dict[str, Any] = field(default_factory=dict)
    max_length: int = 512
    stride: int = 64
    threshold: float | None = None
    top: int = 3
    pooling: str = "mean"
    normalize: bool = False
    embedder: Any = None
    prompt: str | None = None
    batching: dict[str, Any] = field(default_factory=dict)

    def __call__(self, records: Records) -> list[dict[str, Any]]:
        """Return the predictions for each record as new fields. Raises `InputError` for records that do not fit."""
        if self.kind in _TASKS:
            return self._predict_by_task(records)
        return self._likelihoods(records) if self.kind in _LANGUAGE_MODELS else self._embeddings(records)

    def reading(self, options: ReadingOptions | None = None) -> Reading:
        """Return how files are read for the model."""
        if self.kind in _TASKS:
            return self._task().reading(options, labelled=False, trained=self.trained_fields)
        names, defaults = (
            {"text": settings["text_field"]} if settings.get("text_field") else {}
            for settings in (self.fields, self.trained_fields)
        )
        return Reading("text", names, options or ReadingOptions(), labelled=False, dashed=True, defaults=defaults)

    def _task(self) -> Task[Any]:
        settings = {"stride": self.stride, "threshold": self.threshold, "dashed_options": True}
        return _TASKS[self.kind].configure({**self.fields, **settings})

    def _predict_by_task(self, records: Records) -> list[dict[str, Any]]:
        task = self._task()
        task.adopt_labels(self.model.config)
        split = task.read(records, labelled=False)
        outputs = task_outputs(task, split, self.model, self.tokenizer, self.max_length, **self.batching)
        return task.output_fields(outputs, split, self.top)

    def _likelihoods(self, records: Records) -> list[dict[str, Any]]:
        """Log-likelihoods of a causal LM, or pseudo-log-likelihoods of a masked LM (Salazar et al. 2020)."""
        texts = records.texts("text")
        causal = self.kind == "AutoModelForCausalLM"
        lm = LanguageModel(self.model, self.tokenizer, causal, **self.batching)
        window = lm.default_window
        tokens = [np.array(ids, np.int64) for ids in encode_text(self.tokenizer, texts)]
        nats = [0.0] * len(texts)
        rows = (
            row
            for number, ids in enumerate(tokens)
            for row in document_rows(lm, number, ids, window, max(1, window // 2))
        )
        for number, log_probabilities in lm.score(rows):
            nats[number] += float(log_probabilities.sum())
        return [
            {"log_likelihood": value, "tokens": len(ids), "bits_per_byte": to_bits_per_byte(-value, len(text.encode()))}
            for value, ids, text in zip(nats, tokens, texts)
        ]

    def _embeddings(self, records: Records) -> list[dict[str, Any]]:
        texts = records.texts("text")
        if self.embedder is not None:
            vectors = self._encode(texts)
        else:
            rows = encode_texts(self.tokenizer, self.max_length, [(self.prompt or "") + text for text in texts])
            pooled = PooledModel(self.model, self.pooling)
            vectors = predict_rows(pooled, self.tokenizer, rows, lambda outputs: outputs, **self.batching)
        if self.normalize:
            vectors = [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in vectors]
        return [{"embedding": [round(float(number), 7) for number in vector]} for vector in vectors]

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the embeddings of sentence-transformers."""
        batch_size = max(1, self.batching.get("batch_tokens", 4096) // self.max_length)
        device = torch.device(self.embedder.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.batching.get("bf16", False)):
            return list(self.embedder.encode(texts, prompt=self.prompt, batch_size=batch_size, show_progress_bar=False))


def open_predictor(
    path: str,
    base: str | None = None,
    trust_remote_code: bool = False,
    fields: dict[str, Any] | None = None,
    **settings: Any,
) -> Predictor:
    """
    Open a model's or an adapter's folder, or a name on the Hub, for predictions.

    The folder's run record gives what the arguments leave open: the fields of a record, the length, the threshold.

    Args:
        settings: attributes of [`Predictor`]; None stands for the default.

    Raises:
        InputError: there is no such model, or its head predicts nothing from texts.
    """
    kind = auto_class_of(path, trust_remote_code)
    if kind not in (*_TASKS, *_LANGUAGE_MODELS, "AutoModel"):
        raise InputError(f"{path}: is a model for {kind}, which predicts nothing from records")
    model, tokenizer = open_model(path, kind, base=base, trust_remote_code=trust_remote_code)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    record = read_record(Path(path)) if (Path(path) / RECORD_FILE).is_file() else {}
    predictor = Predictor(model, tokenizer, kind, fields or {}, record.get("fields", {}))
    longest = min(tokenizer.model_max_length, longest_input(model.config, 512))
    predictor.max_length = min(longest, record.get("max_length") or 512)
    if kind == "AutoModel":
        pooling = settings.get("pooling")
        if step := further_step(path, pooling):
            predictor.embedder = _open_embedder(path, step, pooling, trust_remote_code)
            predictor.model, predictor.tokenizer = predictor.embedder[0].model, predictor.embedder.tokenizer
            length = predictor.embedder.max_seq_length
        else:
            found = read_pooling(path, model, pooling)
            length = found.pop("max_length", predictor.max_length)
            predictor = replace(predictor, **found)
        predictor.max_length = min(longest, length or longest)
    predictor.threshold = record.get("no_answer_threshold")
    settings = {name: value for name, value in settings.items() if value is not None}
    if not 1 <= settings.get("max_length", 1) <= longest:
        raise InputError(f"max_length {settings['max_length']}: {path} takes 1 to {longest} tokens")
    predictor = replace(predictor, **settings)
    if predictor.embedder is not None:
        predictor.embedder.max_seq_length = predictor.max_length
    predictor.stride = min(record.get("stride", 64), predictor.max_length // 4)
    return predictor


def _open_embedder(path: str, step: str, pooling: str | None, trust_remote_code: bool) -> Any:
    try:
        from ..tasks.embeddings import open_embedder
    except ImportError as error:
        hint = "which only sentence-transformers does: pip install 'hf-tfm[embed]'"
        raise InputError(f"{path}: {step}, {hint} ({error})") from error
    return open_embedder(path, "lasttoken" if pooling == "last" else pooling, trust_remote_code)


def predict_file(
    predictor: Predictor, source: str | list[str], target: str | None = None, options: ReadingOptions | None = None
) -> int:
    """
    Write the rows of files with their predictions; returns their number.

    Args:
        source: files of any form of the model's job.
        target: .jsonl or .csv, also with .gz, which appears once it is complete; by default lines of JSON on standard
            output. In CSV, lists and mappings are written as JSON.
        options: what the user says about the files.

    Raises:
        InputError: a record does not fit the model, or a file cannot be read or written.
    """
    count, reader = 0, RecordReader(source, predictor.reading(options))
    with _writer(target) as write, tqdm(unit=" records", disable=None) as bar:
        read = iter(reader)
        while chunk := list(itertools.islice(read, CHUNK)):
            records = collect(reader, chunk)
            for row, place, output in zip(records.rows, records.places, predictor(records), strict=True):
                write(row | output, place)
            count += len(records)
            bar.update(len(records))
    # Standard output may be the predictions.
    for report in reader.reports:
        print("\n".join(report.lines()), file=sys.stdout if target else sys.stderr)
    return count


@contextlib.contextmanager
def _writer(target: str | None) -> Iterator[Callable[[dict[str, Any], str], None]]:
    """A function that writes a record; it also takes the record's place, for messages."""
    if target is None:
        yield functools.partial(_write_line, sys.stdout)
        return
    path = Path(target)
    packed = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if packed else path.suffix
    if kind not in (".jsonl", ".csv"):
        raise InputError(f"{target}: the name must end in .jsonl or .csv, or one of these and .gz")
    opened = gzip.open if packed else open
    with explain(target, cannot_write("give another file"), OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial, opened(partial, "wt", encoding="utf-8", newline="") as file:
            yield functools.partial(_write_line, file) if kind == ".jsonl" else _csv_writer(file)


def _write_line(file: TextIO, record: dict[str, Any], place: str) -> None:
    file.write(_as_json(record, place) + "\n")


def _as_json(value: Any, place: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{place}: a number is not finite, in the record or in its prediction") from error


def _csv_writer(file: TextIO) -> Callable[[dict[str, Any], str], None]:
    rows: list[csv.DictWriter[str]] = []

    def write(record: dict[str, Any], place: str) -> None:
        if not rows:
            rows.append(csv.DictWriter(file, list(record)))
            rows[0].writeheader()
        if other := record.keys() - set(rows[0].fieldnames):
            raise InputError(f"{place}: has a field {min(other)!r} that the first record has not: write .jsonl instead")
        cells = {k: _as_json(value, place) if isinstance(value, list | dict) else value for k, value in record.items()}
        rows[0].writerow(cells)

    return write
