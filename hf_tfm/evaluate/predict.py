"""
What a saved model says of the records of a file: labels, tags, answers, choices, likelihoods or embeddings.

Files are read, predicted and written in chunks, so that their length does not matter; within a chunk, what is of
similar length is computed together. What comes out does not depend on either.
"""

import contextlib
import csv
import functools
import gzip
import itertools
import json
import re
import sys
import unicodedata
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
from ..core.errors import InputError, cannot_write, explain
from ..core.files import atomic_file
from ..core.inference import is_bidirectional
from ..core.limits import longest_input
from ..core.statistics import to_bits_per_byte
from ..data.records import Records, iter_records
from ..data.tokenizer import encode_text
from ..tasks import multiple_choice, question_answering, tagging
from ..tasks.likelihood import LanguageModel
from ..train.finetune import encode_texts
from .labelled import predict_rows
from .language_model import document_rows


CHUNK = 1024  # records that are in memory at one time
POOLINGS = ("mean", "max", "cls", "last")
# Of sentence-transformers, by their names there; `pooling_mode_` stood in front of some.
_POOLINGS_THERE = {"mean_tokens": "mean", "max_tokens": "max", "cls_token": "cls", "lasttoken": "last"}
_WORDS_AND_MARKS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_JOINERS = "\u200c\u200d"  # Persian and Indic words have them inside
Outputs = list[dict[str, Any]]


@dataclass
class Predictor:
    """
    A model and how it is asked.

    Attributes:
        kind: name of the Auto class that it was opened with.
        fields: where the records have what: `text_field`, `text_pair_field`, `words_field`, `question_field`,
            `context_field`, `options_fields`.
        max_length: tokens that texts are cut to.
        stride: tokens that two windows of a long context share.
        threshold: "no answer" is said where it is better than the best span by more than this; None: never.
        top: how many labels or spans are listed with their scores.
        pooling: how tokens' states become an embedding, one of `POOLINGS`.
        normalize: whether embeddings get the length 1.
        batching: for [`predict_rows`]: `batch_tokens`, `bf16`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    max_length: int = 512
    stride: int = 64
    threshold: float | None = None
    top: int = 3
    pooling: str = "mean"
    normalize: bool = False
    batching: dict[str, Any] = field(default_factory=dict)

    def __call__(self, records: Records) -> Outputs:
        """What the model says of each record, in their order. Raises `InputError` for what it cannot be asked."""
        return _HEADS[self.kind](self, records)

    def texts(self, records: Records) -> list[list[str]]:
        """One column of texts, or two."""
        columns = [records.texts(self.fields.get("text_field", "text"), "text-field")]
        if self.fields.get("text_pair_field"):
            columns.append(records.texts(self.fields["text_pair_field"], "text-pair-field"))
        return columns

    def rows(self, rows: list[dict[str, Any]], take: Callable[[Any], torch.Tensor], per_token: bool = False) -> list:
        return predict_rows(self.model, self.tokenizer, rows, take, per_token, **self.batching)

    @property
    def names(self) -> list[str]:
        config = self.model.config
        return [config.id2label[number] for number in range(config.num_labels)]


def open_predictor(
    path: str,
    base: str | None = None,
    trust_remote_code: bool = False,
    fields: dict[str, Any] | None = None,
    **settings: Any,
) -> Predictor:
    """
    A predictor from a model's or an adapter's folder, or a name on the Hub.

    What is not given is taken from the folder's run record: where records have what, the length, the threshold.

    Raises:
        InputError: there is no such model, or its head has nothing to predict from texts.
    """
    kind = auto_class_of(path, trust_remote_code)
    if kind not in _HEADS:
        raise InputError(f"{path}: is a model for {kind}, which predicts nothing from records")
    model, tokenizer = open_model(path, kind, base=base, trust_remote_code=trust_remote_code)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    told = read_record(Path(path)) if (Path(path) / RECORD_FILE).is_file() else {}
    pooling = _pooling_of(path, model, settings.get("pooling")) if kind == "AutoModel" else {}
    predictor = Predictor(model, tokenizer, kind, {**told.get("fields", {}), **(fields or {})}, **pooling)
    longest = min(tokenizer.model_max_length, longest_input(model.config, 512))
    predictor.max_length = min(longest, told.get("max_length") or 512)
    predictor.threshold = told.get("no_answer_threshold")
    given = {name: value for name, value in settings.items() if value is not None}
    if not 1 <= given.get("max_length", 1) <= longest:
        raise InputError(f"max_length {given['max_length']}: {path} takes 1 to {longest} tokens")
    predictor = replace(predictor, **given)
    predictor.stride = min(told.get("stride", 64), predictor.max_length // 4)
    return predictor


def predict_file(predictor: Predictor, source: str, target: str | None = None) -> int:
    """
    Write the records of a file with what the model says of them; returns how many.

    Args:
        source: .jsonl, .json, .csv, .tsv or .parquet, also compressed.
        target: .jsonl or .csv, also with .gz, which appears when it is whole; by default lines of JSON on standard
            output. In CSV, lists and tables are written as JSON.

    Raises:
        InputError: a record lacks what the model is asked about, or a file cannot be read or written.
    """
    count = 0
    with _writer(target) as write, tqdm(unit=" records", disable=None) as bar:
        for records in _chunks(source):
            for record, place, output in zip(records, records.places, predictor(records), strict=True):
                write(record | output, place)
            count += len(records)
            bar.update(len(records))
    return count


def _chunks(source: str) -> Iterator[Records]:
    numbered = iter_records(source)
    first = True
    while chunk := list(itertools.islice(numbered, CHUNK)):
        first = False
        yield Records([record for _, record in chunk], [place for place, _ in chunk], source)
    if first:
        raise InputError(f"{source}: holds no records")


@contextlib.contextmanager
def _writer(target: str | None) -> Iterator[Callable[[dict[str, Any], str], None]]:
    """A function that writes a record, out of one that takes its place for messages."""
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
        raise InputError(f"{place}: a number is not finite, in the record or in what the model says") from error


def _csv_writer(file: TextIO) -> Callable[[dict[str, Any], str], None]:
    rows: list[csv.DictWriter] = []

    def write(record: dict[str, Any], place: str) -> None:
        if not rows:
            rows.append(csv.DictWriter(file, list(record)))
            rows[0].writeheader()
        if other := record.keys() - set(rows[0].fieldnames):
            raise InputError(f"{place}: has a field {min(other)!r} that the first record has not: write .jsonl instead")
        cells = {k: _as_json(value, place) if isinstance(value, list | dict) else value for k, value in record.items()}
        rows[0].writerow(cells)

    return write


def _classify(predictor: Predictor, records: Records) -> Outputs:
    rows = encode_texts(predictor.tokenizer, predictor.max_length, *predictor.texts(records))
    names, problem_type = predictor.names, predictor.model.config.problem_type
    if problem_type == "regression" or (problem_type is None and len(names) == 1):
        return [{"predicted_number": float(row[0])} for row in predictor.rows(rows, lambda out: out.logits)]
    several = problem_type == "multi_label_classification"
    share = (lambda out: out.logits.float().sigmoid()) if several else (lambda out: out.logits.float().softmax(-1))
    outputs: Outputs = []
    for row in predictor.rows(rows, share):
        best = [int(number) for number in np.argsort(-row, kind="stable")]
        chosen = [number for number in best if row[number] > 0.5] if several else best[:1]
        listed = {names[number]: float(row[number]) for number in best[: max(predictor.top, len(chosen))]}
        if several:
            outputs.append({"predicted_labels": [names[number] for number in chosen], "predicted_scores": listed})
        else:
            outputs.append(
                {"predicted_label": names[best[0]], "predicted_score": float(row[best[0]]), "predicted_scores": listed}
            )
    return outputs


def _follows(predictor: Predictor, records: Records) -> Outputs:
    columns = predictor.texts(records)
    if len(columns) < 2:
        raise InputError("a model for next sentences needs two: name the second text with --text-pair-field")
    rows = encode_texts(predictor.tokenizer, predictor.max_length, *columns)
    shares = predictor.rows(rows, lambda out: out.logits.float().softmax(-1))
    return [{"predicted_follows": bool(row[0] > 0.5), "predicted_score": float(row[0])} for row in shares]


def words_and_marks(text: str) -> list[str]:
    """Words, and punctuation marks one by one; accents, vowel signs and joiners are of the word that they stand in."""
    words: list[str] = []
    end, goes_on = -1, False
    for found in _WORDS_AND_MARKS.finditer(text):
        sign = unicodedata.category(found[0][0]).startswith("M") or found[0] in _JOINERS
        if words and found.start() == end and (sign or (goes_on and found[0][0].isalnum())):
            words[-1] += found[0]
        else:
            words.append(found[0])
        end, goes_on = found.end(), sign and words[-1][0].isalnum()
    return words


def _tag(predictor: Predictor, records: Records) -> Outputs:
    fields = predictor.fields
    if "text_field" in fields:
        texts = records.texts(fields["text_field"], "text-field")
        sentences = [words_and_marks(text) or [text] for text in texts]
    else:
        name = fields.get("words_field", "tokens")
        records.values(name, "words-field")  # or scripts' options would be named
        sentences = tagging.read_words(records, name)
    rows, windows = tagging.encode_words(predictor.tokenizer, predictor.max_length, sentences)

    def take(outputs: Any) -> torch.Tensor:
        shares, best = outputs.logits.float().softmax(-1).max(-1)
        return torch.stack([best.float(), shares], -1)

    names = predictor.names
    task = tagging.TagTask(names, "", {}, names.index("O") if "O" in names else 0)
    said = tagging.tags_of_words(predictor.rows(rows, take, per_token=True), windows, sentences, (task.default, 0.0))
    outputs = []
    for words, tags in zip(sentences, said):
        output: dict[str, Any] = {"tokens": words} if "text_field" in fields else {}
        output["predicted_tags"] = [names[int(tag)] for tag, _ in tags]
        output["predicted_scores"] = [round(float(score), 6) for _, score in tags]
        if task.entities:
            found = sorted(tagging.find_entities(output["predicted_tags"]), key=lambda entity: entity[1:])
            output["predicted_entities"] = [
                {"type": kind, "text": " ".join(words[first : last + 1]), "first_word": first, "last_word": last}
                for kind, first, last in found
            ]
        outputs.append(output)
    return outputs


def _answer(predictor: Predictor, records: Records) -> Outputs:
    asked = records.texts(predictor.fields.get("question_field", "question"), "question-field")
    contexts = records.texts(predictor.fields.get("context_field", "context"), "context-field")
    questions = [question_answering.Question(*pair) for pair in zip(asked, contexts)]
    model, tokenizer = predictor.model, predictor.tokenizer
    rows, windows = question_answering.encode_questions(
        tokenizer, model, questions, predictor.max_length, predictor.stride
    )
    ends = predictor.rows(rows, lambda out: torch.stack([out.start_logits, out.end_logits], -1), per_token=True)
    outputs = []
    for answer in question_answering.find_answers(ends, windows, contexts, max(predictor.top, 20)):
        shares = answer.probabilities()
        listed = [
            {"text": span.text, "start": span.start, "end": span.end, "score": share}
            for span, share in zip(answer.spans[: predictor.top], shares)
        ]
        text = answer.text(predictor.threshold)
        score = shares[0] if text else 1.0 - sum(shares)
        outputs.append({"predicted_answer": text, "predicted_score": score, "predicted_answers": listed})
    return outputs


def _choose(predictor: Predictor, records: Records) -> Outputs:
    fields = predictor.fields
    question, options = fields.get("question_field", "question"), fields.get("options_fields", ["options"])
    for name, option in ((question, "question-field"), *((name, "options-fields") for name in options)):
        records.values(name, option)  # or scripts' options would be named
    choices = multiple_choice.read_choices(records, question, options, None, fields.get("context_field"))
    encoded = multiple_choice.encode_choices(predictor.tokenizer, choices, predictor.max_length)
    scores = predictor.rows(multiple_choice.option_rows(encoded), lambda out: out.logits)
    outputs = []
    for choice, logits in zip(choices, multiple_choice.logits_of(scores, choices)):
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = int(shares.argmax())
        outputs.append(
            {"predicted_option": best, "predicted_text": choice.options[best], "predicted_scores": shares.tolist()}
        )
    return outputs


def _likelihood(predictor: Predictor, records: Records) -> Outputs:
    """A causal LM's log-likelihood of each text; a masked LM's pseudo-log-likelihood (Salazar et al. 2020)."""
    [texts] = predictor.texts(records)[:1]
    causal = predictor.kind == "AutoModelForCausalLM"
    lm = LanguageModel(predictor.model, predictor.tokenizer, causal, **predictor.batching)
    window = lm.default_window
    tokens = [np.array(ids, np.int64) for ids in encode_text(predictor.tokenizer, texts)]
    nats = [0.0] * len(texts)
    rows = (
        row for number, ids in enumerate(tokens) for row in document_rows(lm, number, ids, window, max(1, window // 2))
    )
    for number, log_probabilities in lm.score(rows):
        nats[number] += float(log_probabilities.sum())
    return [
        {"log_likelihood": value, "tokens": len(ids), "bits_per_byte": to_bits_per_byte(-value, len(text.encode()))}
        for value, ids, text in zip(nats, tokens, texts)
    ]


class _Embedder(torch.nn.Module):
    """A model whose output is one vector for each row `(batch, hidden)`."""

    def __init__(self, model: PreTrainedModel, pooling: str):
        super().__init__()
        self.model, self.pooling = model, pooling

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        states = self.model(attention_mask=attention_mask, **inputs).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":  # rows are padded on the right
            return states[torch.arange(len(states), device=states.device), attention_mask.sum(-1) - 1]
        if self.pooling == "max":
            return states.masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(1)
        real = attention_mask[..., None].to(states.dtype)
        return (states * real).sum(1) / real.sum(1)


def _embed(predictor: Predictor, records: Records) -> Outputs:
    [texts] = predictor.texts(records)[:1]
    rows = encode_texts(predictor.tokenizer, predictor.max_length, texts)
    embedder = _Embedder(predictor.model, predictor.pooling)
    vectors = predict_rows(embedder, predictor.tokenizer, rows, lambda pooled: pooled, **predictor.batching)
    if predictor.normalize:
        vectors = [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in vectors]
    return [{"embedding": [round(float(number), 7) for number in vector]} for vector in vectors]


def _pooling_of(path: str, model: PreTrainedModel, given: str | None) -> dict[str, Any]:
    """
    How sentence-transformers' files in the folder say that embeddings are made; without them the last token of decoders
    and the mean of others. Raises `InputError` where that is done otherwise than here, and not `given`.
    """
    folder = Path(path)
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"pooling": "mean" if is_bidirectional(model) else "last"}
    steps = [module["type"].rpartition(".")[2] for module in modules]
    if others := [step for step in steps if step not in ("Transformer", "Pooling", "Normalize")]:
        raise InputError(f"{path}: its embeddings go through {others[0]}, which only sentence-transformers computes")
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    if "message" in (told.get("modality_config") or {}):
        raise InputError(f"{path}: texts go through its chat template, which only sentence-transformers does")
    named = pooling.get("pooling_mode") or [n for n, on in pooling.items() if n.startswith("pooling_mode_") and on]
    how = "+".join([named] if isinstance(named, str) else named).replace("pooling_mode_", "")
    chosen = given or _POOLINGS_THERE.get(how, how)
    if chosen not in POOLINGS:
        raise InputError(f"{path}: is pooled by {how!r}, known here are {', '.join(POOLINGS)}: choose one as --pooling")
    return {"pooling": chosen, "normalize": "Normalize" in steps}


_HEADS: dict[str, Callable[[Predictor, Records], Outputs]] = {
    "AutoModelForSequenceClassification": _classify,
    "AutoModelForNextSentencePrediction": _follows,
    "AutoModelForTokenClassification": _tag,
    "AutoModelForQuestionAnswering": _answer,
    "AutoModelForMultipleChoice": _choose,
    "AutoModelForCausalLM": _likelihood,
    "AutoModelForMaskedLM": _likelihood,
    "AutoModelForPreTraining": _likelihood,
    "AutoModel": _embed,
}
