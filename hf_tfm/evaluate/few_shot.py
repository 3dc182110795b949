"""
Zero- and few-shot classification: the label whose words a causal LM finds likeliest behind a prompt.

    Review: a masterpiece        ┐ k examples from the training records (none: zero-shot)
    Sentiment: positive          ┘
    Review: two hours too long   ┐ the record
    Sentiment:                   ┘ negative? positive?

The common parts of the prompts are computed once: the examples for all records, a record for all labels.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.statistics import Estimate
from ..data.batches import IGNORED
from ..data.records import Records
from ..data.tokenizer import encode_text
from ..models.modeling_tfm_compat import CACHE_NAME
from ..tasks.labels import Labels
from ..tasks.likelihood import LanguageModel, logits_only_at


# Texts in place of a record, by which a prompt shows which labels it favours on its own (Zhao et al. 2021).
_CONTENT_FREE = ("N/A", "[MASK]", "")
# Bytes of keys and values that exist at one time.
_MAX_CACHE_BYTES = 1 << 28


@dataclass(frozen=True)
class Prompt:
    """
    The text that a record becomes for a causal LM.

    Attributes:
        template: the record's fields in braces, and `{label}` at the end: `Review: {text}\\nSentiment: {label}`.
        words: the labels' words, in the order of the label ids.
        instruction: text in front of everything.
        separator: text in front of each example and of the record.
    """

    template: str
    words: Sequence[str]
    instruction: str = ""
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        if self.template.count("{label}") != 1 or not self.template.endswith("{label}"):
            raise InputError(f"template {self.template!r} must end with {{label}}, and have it nowhere else")
        if len(set(self.words)) != len(self.words):
            raise InputError("two labels have the same words; give each its own")
        if not all(word.strip() for word in self.words):
            raise InputError("a label has no words, so nothing tells how likely it is; give it some")

    @property
    def question(self) -> str:
        """The template without the label and the blanks in front of it, which belong to the label's first token."""
        return self.template[: -len("{label}")].rstrip(" ")

    @property
    def answers(self) -> list[str]:
        """The labels' words with the template's blanks in front of them."""
        blanks = self.template[len(self.question) : -len("{label}")]
        return [blanks + word for word in self.words]

    def render(self, record: Mapping[str, Any], place: str) -> str:
        """Return a record as text, up to the label. Raises `InputError` if it lacks a field of the template."""
        try:
            return self.separator + self.question.format_map(record)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            fields = ", ".join(map(str, record))
            raise InputError(
                f"{place}: template {self.template!r} does not go with this record, which has {fields} ({error!r})"
            ) from None


class _SameText(dict[str, str]):
    """A record whose fields all have the same text."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def __missing__(self, field: str) -> str:
        return self.text


def draw_examples(records: Records, k: int, seed: int) -> list[int]:
    """Return the numbers of `k` random records. Raises `InputError` if there are fewer."""
    if k > len(records):
        raise InputError(f"{records.path}: has {len(records)} records, fewer than {k} examples to draw")
    return random.Random(seed).sample(range(len(records)), k)


def label_words(labels: Labels, overrides: Sequence[str]) -> list[str]:
    """
    Return the words of the labels in the order of their ids: their names, with blanks for underscores.

    Args:
        overrides: other words for some labels, `LABEL=WORDS` each.

    Raises:
        InputError: an override names no label.
    """
    words = {name: name.replace("_", " ") for name in labels.names}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name not in words:
            raise InputError(f"label_words {override!r}: write LABEL=WORDS with a label out of {', '.join(words)}")
        words[name] = text
    return list(words.values())


def score_labels(
    lm: LanguageModel, prompt: Prompt, records: Records, examples: Sequence[tuple[Mapping[str, Any], int]] = ()
) -> dict[str, np.ndarray]:
    """
    Return scores of each label for each record, by three decision rules; the highest score is the prediction.

    Args:
        examples: records with their label ids, in the order of the prompt.

    Returns: arrays `(records, labels)`. `sum` is the log-probability of all tokens of the label, `length_normalised`
        that sum per byte of the label, `calibrated` the softmax of the sums divided by that of content-free records
        (Zhao et al. 2021, https://huggingface.co/papers/2102.09690).

    Raises:
        InputError: the model is a masked LM, the template does not fit the records, or the examples fill the model.
    """
    if not lm.causal:
        raise InputError("labels are chosen by prompt with a causal LM; this is a masked one")
    shots = "".join(
        prompt.render(record, f"example {number}") + prompt.answers[label]
        for number, (record, label) in enumerate(examples, 1)
    )
    prefix = [*lm.prefix_ids, *encode_text(lm.tokenizer, [prompt.instruction + shots])[0]]
    if not prefix:
        raise InputError("this tokenizer begins texts with nothing: give an --instruction or examples")
    # A template may name fields of the job or of the file.
    rows = [record | row for record, row in zip(records, records.rows, strict=True)]
    questions = [prompt.render(row, place) for row, place in zip(rows, records.places, strict=True)]
    content_free = [prompt.render(_SameText(text), "nothing") for text in _CONTENT_FREE]
    labels = encode_text(lm.tokenizer, prompt.answers)
    room = lm.max_length - len(prefix) - max(map(len, labels))
    contexts = encode_text(lm.tokenizer, [*questions, *content_free])
    if room < min(map(len, contexts)):
        raise InputError(
            f"the examples leave no room in the model's {lm.max_length} tokens: take fewer or shorter ones"
        )
    # A long record loses its beginning: the question to answer stands at its end.
    sums = label_log_probabilities(lm, prefix, [context[-room:] for context in contexts], labels)
    sums, content_free_sums = sums[: len(records)], sums[len(records) :]
    label_bytes = np.array([len(answer.encode()) for answer in prompt.answers])
    prior = np.log(np.exp(_log_softmax(content_free_sums)).mean(0))
    return {"length_normalised": sums / label_bytes, "sum": sums, "calibrated": _log_softmax(sums) - prior}


def estimate_by_rule(
    labels: Labels, scores: Mapping[str, np.ndarray], actual: Sequence[int]
) -> dict[str, dict[str, Estimate]]:
    """Return the figures with intervals for each decision rule of [`score_labels`]."""
    return {rule: labels.estimates(values.argmax(-1), actual) for rule, values in scores.items()}


@torch.inference_mode()
def label_log_probabilities(
    lm: LanguageModel, prefix: Sequence[int], contexts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> np.ndarray:
    """
    Return the log-probability in nats of each label behind the prefix and each context, `(contexts, labels)`.

    Args:
        prefix: token ids, at least one.
        contexts: token ids of the records.
        labels: token ids of the labels' words.
    """
    device = lm.base_model.device
    reader = _CachedReader(lm)
    prefix_cache, _ = reader.read(None, [prefix])
    bytes_per_token = reader.cache_bytes(prefix_cache) / len(prefix)

    by_length: dict[int, list[int]] = defaultdict(list)
    for number, context in enumerate(contexts):
        by_length[len(context)].append(number)
    longest_label = max(map(len, labels))
    result = np.zeros((len(contexts), len(labels)))
    first_tokens = torch.tensor([label[0] for label in labels], device=device)
    multi_token = [number for number, label in enumerate(labels) if len(label) > 1]
    for length, numbers in sorted(by_length.items()):
        bytes_per_row = bytes_per_token * (len(prefix) + length + longest_label)
        max_rows = max(1, int(_MAX_CACHE_BYTES // bytes_per_row))
        size = max(1, min(lm.batch_tokens // length, max_rows))
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            cache, logits = reader.read(prefix_cache, [contexts[number] for number in batch])
            result[batch] = F.log_softmax(logits, -1)[:, first_tokens].double().cpu().numpy()
            labels_at_once = max(1, min(max_rows, lm.batch_tokens // longest_label) // len(batch))
            for first in range(0, len(multi_token), labels_at_once):
                chosen = multi_token[first : first + labels_at_once]
                rest = reader.score_continuations(cache, len(batch), [labels[number] for number in chosen])
                result[np.ix_(batch, chosen)] += rest
    return result


class _CachedReader:
    """A causal LM that reads text in parts and keeps the keys and values of what it has read."""

    def __init__(self, lm: LanguageModel):
        self.lm = lm

    def forward(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return the cache behind `ids` `(rows, length)`, and logits `(positions, vocabulary)` at flat positions."""
        lm = self.lm
        with logits_only_at(lm.backbone, positions), torch.autocast(ids.device.type, torch.bfloat16, enabled=lm.bf16):
            output = lm.model(input_ids=ids, use_cache=True, **{CACHE_NAME: cache})
        return output[CACHE_NAME], output.logits[0].float()

    def read(self, cache: Any, rows: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor]:
        """Return the cache behind rows of one length, and their last logits; a cache of one row is left unchanged."""
        ids = torch.tensor([list(row) for row in rows], device=self.lm.base_model.device)
        last = torch.arange(1, len(rows) + 1, device=ids.device) * ids.shape[1] - 1
        return self.forward(None if cache is None else _repeat_rows(cache, len(rows)), ids, last)

    def score_continuations(self, cache: Any, rows: int, labels: list[Sequence[int]]) -> np.ndarray:
        """Return the log-probability of each label's tokens behind its first one, `(rows, labels)`."""
        length, device = max(map(len, labels)) - 1, self.lm.base_model.device
        ids = torch.zeros(len(labels), length, dtype=torch.long, device=device)
        targets = torch.full_like(ids, IGNORED)
        for number, label in enumerate(labels):
            ids[number, : len(label) - 1] = torch.tensor(label[:-1])
            targets[number, : len(label) - 1] = torch.tensor(label[1:])
        ids, flat_targets = ids.repeat(rows, 1), targets.repeat(rows, 1).flatten()
        predicted = (flat_targets != IGNORED).nonzero().flatten()
        _, logits = self.forward(_repeat_rows(cache, len(labels)), ids, predicted)
        sums = torch.zeros(len(ids), dtype=torch.double, device=device)
        losses = F.cross_entropy(logits, flat_targets[predicted], reduction="none").double()
        sums.index_add_(0, predicted // length, losses)
        return -sums.view(rows, len(labels)).cpu().numpy()

    @staticmethod
    def cache_bytes(cache: Any) -> int:
        """Return the size of all keys and values."""
        return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def _repeat_rows(cache: Any, times: int) -> Any:
    """Return a copy of a cache in which every row stands `times` times, one copy behind the other."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(times)
    return cache


def _log_softmax(values: np.ndarray) -> np.ndarray:
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))
