"""What a causal LM says and how likely it finds what others say: answers with their ends, losses by record."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import cpu
from ..core.limits import longest_input, refuse_diverged
from ..core.statistics import Estimate, bootstrap
from ..data.chat import IGNORED
from ..tasks.generation import plain_settings
from ..train.finetune import FinetuningTrainer
from .language_model import LanguageModel, Row


class Answer(NamedTuple):
    """What a model said; `stopped` if it ended by itself before the tokens ran out."""

    text: str
    stopped: bool


@contextlib.contextmanager
def _at_rest(model: torch.nn.Module) -> Iterator[None]:
    """In evaluation mode, and without gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    batch_size: int = 16,
) -> list[Answer]:
    """
    The likeliest continuation of each prompt, token by token, as far as the model can take it.

    Args:
        prompts: token ids.
        max_new_tokens: where an answer that does not end is cut.
        batch_size: prompts at once, those of similar length together.

    Returns: answers in the order of the prompts.
    """
    answers: list[Any] = [Answer("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    most = longest_input(model.config) or 1 << 20
    with _at_rest(model), plain_settings(model, tokenizer, do_sample=False) as plain:
        ends = plain.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        while order:
            longest = len(prompts[order[0]])
            room = min(max_new_tokens, most - longest)
            # What the model has no place for is left out, of each prompt by itself, whatever stands beside it.
            numbers = order[: batch_size if room == max_new_tokens else 1]
            del order[: len(numbers)]
            if room < 1:
                continue
            plain.generation_config.max_new_tokens = room
            lengths = torch.tensor([len(prompts[number]) for number in numbers], device=model.device)
            ids = [[tokenizer.pad_token_id] * (longest - len(prompts[n])) + list(prompts[n]) for n in numbers]
            said = cpu.generate(
                plain,
                torch.tensor(ids, device=model.device),
                attention_mask=(torch.arange(longest, device=model.device) >= longest - lengths[:, None]).long(),
            )[:, longest:]
            for number, row in zip(numbers, said.tolist()):
                length = next((place for place, token in enumerate(row) if token in ends), None)
                text = tokenizer.decode(row[:length], skip_special_tokens=True)
                answers[number] = Answer(text.strip(), length is not None)
    return answers


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
