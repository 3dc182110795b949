"""
Classification by a causal LM that was not trained for it: which label's words does it expect behind a prompt?

    Review: a masterpiece        ┐ k examples drawn from the training records (few-shot; none for zero-shot)
    Sentiment: positive          ┘
    Review: two hours too long   ┐ the record
    Sentiment:                   ┘ negative? positive?

What prompts have in common is computed once: the examples for all records, a record for all labels.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..core.errors import InputError
from ..data.records import Records
from ..data.tokenizer import encode_text
from ..models.modeling_tfm import CACHE_NAME
from ..tasks.classification import Task
from .language_model import LanguageModel, only_at


# What stands in place of a record to learn which labels a prompt favours by itself (Zhao et al. 2021).
_CONTENT_FREE = ("N/A", "[MASK]", "")
# Keys and values that exist at one time, in bytes.
_MOST_CACHE = 1 << 28


@dataclass(frozen=True)
class Prompt:
    """
    How a record is written for a causal LM.

    Attributes:
        template: the record's fields in braces, and at the end `{label}`: `Review: {text}\\nSentiment: {label}`.
        words: the labels' words, in the order of their ids.
        instruction: stands in front of everything.
        separator: stands in front of each example and of the record.
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
        """The template without the label, and without blanks in front of it: they go with the label's first token."""
        return self.template[: -len("{label}")].rstrip(" ")

    @property
    def answers(self) -> list[str]:
        """The labels with the blanks that stand in front of them."""
        blanks = self.template[len(self.question) : -len("{label}")]
        return [blanks + word for word in self.words]

    def ask(self, fields: dict[str, Any], place: str) -> str:
        """A record as text, up to the label. Raises `InputError` if the record lacks one of the template's fields."""
        try:
            return self.separator + self.question.format_map(fields)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            there = ", ".join(map(str, fields))
            raise InputError(
                f"{place}: template {self.template!r} does not go with this record, which has {there} ({error!r})"
            ) from None

    def fields(self) -> list[str]:
        """Names of the record's fields that the template has."""
        from string import Formatter

        return [name for _, name, _, _ in Formatter().parse(self.question) if name]


def draw_examples(records: Records, k: int, seed: int) -> list[int]:
    """Numbers of `k` records, drawn with the seed. Raises `InputError` if there are fewer."""
    if k > len(records):
        raise InputError(f"{records.path}: has {len(records)} records, fewer than {k} examples to draw")
    return random.Random(seed).sample(range(len(records)), k)


def prompted_scores(
    lm: LanguageModel, prompt: Prompt, records: Records, examples: Sequence[tuple[dict[str, Any], int]] = ()
) -> dict[str, np.ndarray]:
    """
    How well each label fits each record, for every way to decide.

    Args:
        examples: records with the ids of their labels, in the order in which they stand in the prompt.

    Returns: arrays `(records, labels)`; the label with the highest number is chosen. `length_normalised` has the mean
        log-probability of the label's bytes, `sum` that of all its tokens together, `calibrated` the sum's softmax
        divided by what the prompt gives a label whose record says nothing (Zhao et al. 2021,
        https://huggingface.co/papers/2102.09690).

    Raises:
        InputError: the model is a masked one, the template does not fit the records, or the examples fill the model.
    """
    if not lm.causal:
        raise InputError("labels are chosen by prompt with a causal LM; this is a masked one")
    shown = "".join(
        prompt.ask(record, f"example {number}") + prompt.answers[label]
        for number, (record, label) in enumerate(examples, 1)
    )
    prefix = [*lm.begin, *encode_text(lm.tokenizer, [prompt.instruction + shown])[0]]
    questions = [prompt.ask(record, place) for record, place in zip(records, records.places, strict=True)]
    empty = [prompt.ask(dict.fromkeys(prompt.fields(), nothing), "") for nothing in _CONTENT_FREE]
    answers = encode_text(lm.tokenizer, prompt.answers)
    room = lm.longest - len(prefix) - max(map(len, answers))
    contexts = encode_text(lm.tokenizer, [*questions, *empty])
    if room < min(map(len, contexts)):
        raise InputError(f"the examples leave no room in the model's {lm.longest} tokens: take fewer or shorter ones")
    # What a question asks for stands at its end.
    sums = label_log_probabilities(lm, prefix, [context[-room:] for context in contexts], answers)
    sums, nothing = sums[: len(records)], sums[len(records) :]
    sizes = np.array([len(answer.encode()) for answer in prompt.answers])
    favoured = np.log(np.exp(_log_softmax(nothing)).mean(0))
    return {"length_normalised": sums / sizes, "sum": sums, "calibrated": _log_softmax(sums) - favoured}


def label_words(task: Task, given: Sequence[str]) -> list[str]:
    """
    Words of the labels in the order of their ids: as given by `name=words`, else the names, blanks for underscores.

    Raises:
        InputError: what is given names no label.
    """
    words = {name: name.replace("_", " ") for name in task.names}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or name not in words:
            raise InputError(f"label_words {pair!r}: write LABEL=WORDS with a label out of {', '.join(words)}")
        words[name] = text
    return list(words.values())


def prompted_estimates(task: Task, scores: dict[str, np.ndarray], labels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Figures with their intervals for every way to decide."""
    return {decision: task.estimates(values.argmax(-1), labels) for decision, values in scores.items()}


@torch.inference_mode()
def label_log_probabilities(
    lm: LanguageModel, prefix: Sequence[int], contexts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> np.ndarray:
    """
    Log-probabilities in nats of each label's tokens behind each context behind the one prefix, `(contexts, labels)`.
    """
    device = lm.plain.device
    model = _Cached(lm)
    shared, _ = model.read(None, [prefix])
    bytes_a_token = model.cache_bytes(shared) / len(prefix)

    by_length: dict[int, list[int]] = defaultdict(list)
    for number, context in enumerate(contexts):
        by_length[len(context)].append(number)
    longest_label = max(map(len, labels))
    result = np.zeros((len(contexts), len(labels)))
    firsts = torch.tensor([label[0] for label in labels], device=device)
    several = [number for number, label in enumerate(labels) if len(label) > 1]
    for length, numbers in sorted(by_length.items()):
        bytes_a_row = bytes_a_token * (len(prefix) + length + longest_label)
        most_rows = max(1, int(_MOST_CACHE // bytes_a_row))
        size = max(1, min(lm.batch_tokens // length, most_rows))
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            cache, logits = model.read(shared, [contexts[number] for number in batch])
            result[batch] = F.log_softmax(logits, -1)[:, firsts].double().cpu().numpy()
            together = max(1, min(most_rows, lm.batch_tokens // longest_label) // len(batch))
            for first in range(0, len(several), together):
                chosen = several[first : first + together]
                result[np.ix_(batch, chosen)] += model.continue_with(
                    cache, len(batch), [labels[number] for number in chosen]
                )
    return result


class _Cached:
    """A causal LM read part by part, with keys and values kept."""

    def __init__(self, lm: LanguageModel):
        self.lm = lm

    def forward(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The cache with `ids` `(rows, length)` behind it, and logits at flat positions, `(positions, vocabulary)`."""
        lm = self.lm
        with only_at(lm.body, positions), torch.autocast(ids.device.type, torch.bfloat16, enabled=lm.bf16):
            output = lm.model(input_ids=ids, use_cache=True, **{CACHE_NAME: cache})
        return output[CACHE_NAME], output.logits[0].float()

    def read(self, cache: Any, rows: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor]:
        """Rows of one length behind a cache of one row, which stays as it is: the new cache and the last logits."""
        ids = torch.tensor([list(row) for row in rows], device=self.lm.plain.device)
        last = torch.arange(1, len(rows) + 1, device=ids.device) * ids.shape[1] - 1
        return self.forward(None if cache is None else _repeated(cache, len(rows)), ids, last)

    def continue_with(self, cache: Any, rows: int, labels: list[Sequence[int]]) -> np.ndarray:
        """What the tokens of each label but its first add to its log-probability, `(rows, labels)`."""
        longest, device = max(map(len, labels)) - 1, self.lm.plain.device
        ids = torch.zeros(len(labels), longest, dtype=torch.long, device=device)
        targets = torch.full_like(ids, -100)
        for number, label in enumerate(labels):
            ids[number, : len(label) - 1] = torch.tensor(label[:-1])
            targets[number, : len(label) - 1] = torch.tensor(label[1:])
        ids, targets = ids.repeat(rows, 1), targets.repeat(rows, 1).flatten()
        wanted = (targets != -100).nonzero().flatten()
        _, logits = self.forward(_repeated(cache, len(labels)), ids, wanted)
        sums = torch.zeros(len(ids), dtype=torch.double, device=device)
        losses = F.cross_entropy(logits, targets[wanted], reduction="none").double()
        sums.index_add_(0, wanted // longest, losses)
        return -sums.view(rows, len(labels)).cpu().numpy()

    @staticmethod
    def cache_bytes(cache: Any) -> int:
        return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def _repeated(cache: Any, times: int) -> Any:
    """A copy of a cache with every row `times` in a row."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(times)
    return cache


def _log_softmax(values: np.ndarray) -> np.ndarray:
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))
