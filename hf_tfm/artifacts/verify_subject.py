"""The model that `verify_checks.py` verifies, with random inputs and labels for it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .packing_support import sentence_label


# Relative to the size of the outputs. Sums in another order differ by a hundredth of it.
TOLERANCE = 1e-4


class Broken(Exception):
    """The model breaks a promise; the message says by how much."""


class NotApplicable(Exception):
    """The promise does not concern the model; the message says why."""


@dataclass
class Subject:
    """A model to verify, in fp32 and in evaluation mode, with the path it was opened from."""

    path: str
    auto_class: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool

    @property
    def head(self) -> str:
        """The name of the head as in class names: `CausalLM`; empty without a head."""
        return self.auto_class.removeprefix("AutoModel").removeprefix("For")

    @property
    def has_token_outputs(self) -> bool:
        """Whether the model has an output for each token rather than for each row."""
        return self.head in ("", "CausalLM", "MaskedLM", "PreTraining", "TokenClassification", "QuestionAnswering")

    def copy(self) -> PreTrainedModel:
        """Return a copy of the model."""
        return copy.deepcopy(self.model)

    def ids(self, rows: int, length: int, seed: int = 0) -> torch.Tensor:
        """Return random ordinary tokens `(rows, length)`; `(rows, 2, length)` for multiple choice."""
        config = self.model.config.get_text_config()
        special = {i for i in self.tokenizer.all_special_ids if i is not None} | {config.pad_token_id}
        ordinary = torch.tensor([i for i in range(config.vocab_size) if i not in special])
        shape = (rows, 2, length) if self.head == "MultipleChoice" else (rows, length)
        drawn = torch.randint(len(ordinary), shape, generator=torch.Generator().manual_seed(seed))
        return ordinary[drawn]

    def inputs(self, ids: torch.Tensor, **more: Any) -> dict[str, Any]:
        """Return the model's inputs; a decoder behind an encoder gets `ids` too."""
        decoder = {"decoder_input_ids": ids} if self.model.config.is_encoder_decoder else {}
        return {"input_ids": ids, **decoder, **more}

    def labels(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return labels for `ids`; labels of tokens are of a different number in each row."""
        rows, length = ids.shape[0], ids.shape[-1]
        draw = torch.Generator().manual_seed(5)
        if self.head in ("CausalLM", "MaskedLM", "PreTraining", "TokenClassification", "Seq2SeqLM"):
            classes = self.model.config.num_labels if self.head == "TokenClassification" else None
            labels = ids if classes is None else torch.randint(classes, ids.shape, generator=draw)
            columns = torch.arange(length).expand(rows, -1)
            labels = labels.masked_fill(columns > length - 1 - torch.arange(rows)[:, None] * 2, -100)
            extra = {}
            if self.head == "PreTraining":
                extra[sentence_label(self.model) or "next_sentence_label"] = torch.randint(2, (rows,), generator=draw)
            return {"labels": labels, **extra}
        if self.head == "QuestionAnswering":
            starts = torch.randint(length, (rows,), generator=draw)
            return {"start_positions": starts, "end_positions": torch.full((rows,), length - 1)}
        if self.head in ("SequenceClassification", "NextSentencePrediction", "MultipleChoice"):
            config = self.model.config
            if self.head == "SequenceClassification" and config.num_labels == 1:
                return {"labels": torch.randn(rows, generator=draw)}
            if getattr(config, "problem_type", None) == "multi_label_classification":
                return {"labels": torch.randint(2, (rows, config.num_labels), generator=draw).float()}
            classes = {"NextSentencePrediction": 2, "MultipleChoice": 2}.get(self.head, config.num_labels)
            return {"labels": torch.randint(classes, (rows,), generator=draw)}
        raise NotApplicable("a model without a head has no loss")


def largest_difference(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], situation: str) -> float:
    """
    Return the largest difference between outputs of two runs.

    Args:
        situation: end of a sentence for the error message, such as "with padding on the left".

    Raises:
        Broken: the difference is larger than rounding errors or not a number, or an output is missing.
    """
    if not expected or expected.keys() - actual.keys():
        missing = " and no ".join(expected.keys() - actual.keys()) or "output"
        raise Broken(f"there is no {missing} to compare {situation}")
    largest = 0.0
    for name, reference in expected.items():
        difference = (actual[name].float() - reference.float()).abs().max().item()
        size = max(1.0, reference.abs().max().item())
        if not difference <= TOLERANCE * size:
            raise Broken(f"{name} differ by {difference:.1e} {situation}")
        largest = max(largest, difference)
    return largest
