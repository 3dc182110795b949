"""What a causal LM says and how likely it finds what others say: answers with their ends, losses by record."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.limits import refuse_diverged
from ..core.statistics import Estimate, bootstrap
from ..data.chat import IGNORED
from ..tasks.generation import _at_rest
from ..train.finetune import FinetuningTrainer
from .language_model import LanguageModel, Row


def nats_and_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, list[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """
    The negative log-likelihood of each row's labels, and how many there are.

    Args:
        rows: `input_ids` and `labels`, not packed.

    Returns: nats `(rows,)` float64, tokens `(rows,)`.

    Raises:
        InputError: the outputs are not finite.
    """
    places = [[place for place, label in enumerate(row["labels"]) if place and label != IGNORED] for row in rows]
    asked = (
        Row(number, row["input_ids"], [p - 1 for p in places[number]], [row["input_ids"][p] for p in places[number]])
        for number, row in enumerate(rows)
    )
    nats = np.zeros(len(rows))
    with _at_rest(model):
        for number, log_probabilities in LanguageModel(model, tokenizer, causal=True).score(asked):
            nats[number] = -log_probabilities.sum()
    refuse_diverged(nats)
    return nats, np.array([len(several) for several in places])


def loss_estimate(nats: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Nats per predicted token over all records, with a bootstrapped interval."""
    return bootstrap(lambda n, t: {"loss": float(n.sum() / t.sum())}, nats, tokens)["loss"]


def dialogues(
    prompts: Sequence[Sequence[Mapping[str, str]]], said: Mapping[str, Sequence[str]], most: int = 3
) -> list[str]:
    """The first prompts with what was said to them by each who said something, to be read side by side."""
    several = []
    for number, messages in enumerate(prompts[:most]):
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        lines += [f"{who} → {texts[number]}" for who, texts in said.items() if texts]
        several.append("\n".join(lines))
    return several


class LossTrainer(FinetuningTrainer):
    """Evaluates by the mean over all predicted tokens; the stock Trainer takes the mean of the batches' means."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        started, rows = time.time(), self.eval_dataset if eval_dataset is None else eval_dataset
        nats, tokens = nats_and_tokens(self.model, self.processing_class, rows)
        metrics = {
            f"{metric_key_prefix}_loss": float(nats.sum() / tokens.sum()),
            f"{metric_key_prefix}_runtime": round(time.time() - started, 2),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
