"""Figures of a model with a head on a file of labelled records, by the task that the head is for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.limits import longest_input, refuse_unknown_tokens
from ..core.statistics import Estimate
from ..cpu.encoding import enable_unpadded_encoding
from ..data.batches import RightPadding, length_of
from ..data.records import Records
from ..tasks.classification import Classification
from ..tasks.multiple_choice import MultipleChoice
from ..tasks.question_answering import QuestionAnswering
from ..tasks.tagging import Tagging
from ..tasks.task import Split, Task


LABEL_TASKS: dict[str, type[Task[Any]]] = {
    task.model_class.__name__: task for task in (Classification, Tagging, QuestionAnswering, MultipleChoice)
}


def open_task(auto_class: str, settings: Mapping[str, Any]) -> Task[Any]:
    """
    Return the task that a model's head is for, with the settings that it has.

    Raises:
        InputError: there is no such task.
    """
    if auto_class not in LABEL_TASKS:
        raise InputError(
            f"a model for {auto_class.removeprefix('AutoModel') or 'no task'} cannot be measured on labels"
        )
    return LABEL_TASKS[auto_class].configure(settings)


def measure_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task[Any],
    records: Records,
    max_length: int | None = None,
    **batching: Any,
) -> dict[str, Estimate]:
    """
    Measure a model by its head.

    Args:
        task: the task of the head, as [`open_task`] returns it.
        records: records that were read for the task.
        max_length: tokens of a row; by default as many as the model takes, up to 512.
        batching: `batch_tokens` and `bf16` of [`predict_rows`].

    Raises:
        InputError: the records do not fit the model.
    """
    longest = min(tokenizer.model_max_length, longest_input(model.config, 512))
    if longest < 8:
        raise InputError(f"this model takes {longest} tokens: too few for texts")
    max_length = min(longest, max_length or 512)
    if isinstance(task, QuestionAnswering) and task.stride is None:
        task.stride = min(128, max_length // 4)
    task.adopt_labels(model.config, records)
    split = task.read(records)
    outputs = task_outputs(task, split, model, tokenizer, max_length, **batching)
    return task.estimates(task.decide(outputs, split), split)


def task_outputs(
    task: Task[Any],
    split: Split[Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    **batching: Any,
) -> list[np.ndarray]:
    """Encode a split and return what the task selects of a model's outputs, an array for each row."""
    task.encode(split, model, tokenizer, max_length)
    return predict_rows(
        model, tokenizer, split.rows, lambda outputs: task.select(outputs.to_tuple()), task.per_token, **batching
    )


@torch.inference_mode()
def predict_rows(
    model: PreTrainedModel | torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Sequence[Any]]],
    select: Callable[[Any], torch.Tensor],
    per_token: bool = False,
    batch_tokens: int = 2048,
    bf16: bool = False,
) -> list[np.ndarray]:
    """
    Return outputs for rows of different lengths, in their order; rows of similar length are computed together.

    Args:
        rows: columns of token ids, `(length,)` or `(options, length)` for each row.
        select: what is kept of a batch's outputs, `(batch, …)`.
        per_token: whether this is `(batch, length, …)`; outputs of padding are then cut off.
        batch_tokens: tokens, padding included, that are computed together.
    """
    enable_unpadded_encoding(model)
    results: list[np.ndarray] = [np.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: length_of(rows[number]))
    device, collate, start = next(model.parameters()).device, RightPadding(tokenizer), 0
    while start < len(order):
        end, options = start, 1
        while end < len(order):
            ids = rows[order[end]]["input_ids"]
            options = max(options, len(ids) if isinstance(ids[0], list) else 1)
            if end > start and (end + 1 - start) * options * length_of(rows[order[end]]) > batch_tokens:
                break
            end += 1
        batch = order[start:end]
        start = end
        inputs = {name: column.to(device) for name, column in collate([rows[number] for number in batch]).items()}
        refuse_unknown_tokens(model, inputs["input_ids"])
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            selected = select(model(**inputs))
        arrays = (selected.float() if selected.is_floating_point() else selected).cpu().numpy()
        for number, output in zip(batch, arrays, strict=True):
            results[number] = output[: len(rows[number]["input_ids"])] if per_token else output
    return results
