"""Figures of a model with a head on a file of labelled records: classifiers, taggers, answers, choices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.limits import longest_input, refuse_unknown_tokens
from ..core.statistics import Estimate
from ..cpu.encoding import use_unpadded_encoding
from ..data.batches import RightPadding, length_of
from ..data.records import Records
from ..tasks import multiple_choice, question_answering, tagging
from ..tasks.classification import Task, label_ids, written_labels
from ..train.finetune import encode_texts


def task_of_model(model: PreTrainedModel, field: str, records: Records) -> Task:
    """The classification task that a model was trained for; the records may name labels or give their numbers."""
    config = model.config
    names = [config.id2label[number] for number in range(config.num_labels)]
    problem_type = config.problem_type or ("regression" if len(names) == 1 else "single_label_classification")
    if problem_type == "regression":
        return Task(problem_type, [field], field, {})
    ids = label_ids(names, written_labels(records.values(field, "label_field"), problem_type))
    return Task(problem_type, names, field, ids)


def measure_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    text_fields: Sequence[str],
    label_field: str,
    max_length: int | None = None,
    **batching: Any,
) -> dict[str, Estimate]:
    """Figures of a model for sequence classification; `batching` is for [`predict_rows`]."""
    task = task_of_model(model, label_field, records)
    labels = task.encode(records)
    columns = [records.texts(field, "text_field") for field in text_fields]
    rows = encode_texts(tokenizer, _most_tokens(model, tokenizer, max_length), *columns)
    logits = predict_rows(model, tokenizer, rows, lambda outputs: outputs.logits, **batching)
    return task.estimates(task.decide(np.stack(logits)), labels)


def measure_tagger(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    words_field: str,
    tags_field: str,
    max_length: int | None = None,
    **batching: Any,
) -> dict[str, Estimate]:
    """Figures of a model for token classification."""
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    default = names.index("O") if "O" in names else 0
    task = tagging.TagTask(names, tags_field, tagging.tag_ids(names, records, tags_field), default)
    words = tagging.read_words(records, words_field)
    tags = task.encode(records, words)
    rows, windows = tagging.encode_words(tokenizer, _most_tokens(model, tokenizer, max_length), words)
    best = predict_rows(model, tokenizer, rows, lambda outputs: outputs.logits.argmax(-1), True, **batching)
    return task.estimates(tagging.tags_of_words(best, windows, words, task.default), tags)


def measure_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    fields: tuple[str, str, str],
    threshold: float | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    **batching: Any,
) -> dict[str, Estimate]:
    """
    Figures of a model for extractive question answering; a context too long for it is read through windows.

    Args:
        threshold: "no answer" is said where it is better than the best span by more than this, never by default.
    """
    records, questions = question_answering.read_questions(question_answering.unfold(records), fields)
    longest = _most_tokens(model, tokenizer, max_length)
    stride = min(128, longest // 4) if stride is None else stride
    rows, windows = question_answering.encode_questions(tokenizer, model, questions, longest, stride)
    ends = predict_rows(
        *(model, tokenizer, rows),
        lambda outputs: torch.stack([outputs.start_logits, outputs.end_logits], -1),
        per_token=True,
        **batching,
    )
    contexts = [question.context for question in questions]
    answers = question_answering.find_answers(ends, windows, contexts)
    return question_answering.estimates([answer.text(threshold) for answer in answers], questions)


def measure_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    question_field: str,
    context_field: str | None,
    answer_field: str,
    max_length: int | None = None,
    **batching: Any,
) -> dict[str, Estimate]:
    """Figures of a model for multiple choice; the options stand in the field `options`."""
    choices = multiple_choice.read_choices(records, question_field, ("options",), answer_field, context_field)
    rows = multiple_choice.encode_choices(tokenizer, choices, _most_tokens(model, tokenizer, max_length))
    scores = predict_rows(
        model, tokenizer, multiple_choice.option_rows(rows), lambda outputs: outputs.logits, **batching
    )
    logits = multiple_choice.logits_of(scores, choices)
    return multiple_choice.estimates(multiple_choice.decide(logits, choices), choices)


def measure_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    auto_class: str,
    records: Records,
    text_fields: Sequence[str] = ("text",),
    label_field: str | None = None,
    threshold: float | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    **batching: Any,
) -> dict[str, Estimate]:
    """
    Figures of a model by its head. Texts, words or question and context stand in `text_fields`, what is right in
    `label_field`, by default `label`, `tags`, `answers` or `answer`.

    Args:
        max_length: tokens that texts are cut to, or of a window; as many as the model takes by default, up to 512.
        stride: tokens that two windows of a long context share.

    Raises:
        InputError: the model has no such head, or the records do not go with it.
    """
    batching["max_length"] = max_length
    if auto_class == "AutoModelForSequenceClassification":
        return measure_classifier(model, tokenizer, records, text_fields, label_field or "label", **batching)
    if auto_class == "AutoModelForTokenClassification":
        return measure_tagger(model, tokenizer, records, text_fields[0], label_field or "tags", **batching)
    if auto_class == "AutoModelForQuestionAnswering":
        question, context = text_fields if len(text_fields) == 2 else ("question", "context")
        fields = (question, context, label_field or "answers")
        return measure_answers(model, tokenizer, records, fields, threshold, stride=stride, **batching)
    if auto_class == "AutoModelForMultipleChoice":
        question = "question" if text_fields[0] == "text" else text_fields[0]
        context = text_fields[1] if len(text_fields) == 2 else None
        return measure_choices(model, tokenizer, records, question, context, label_field or "answer", **batching)
    raise InputError(f"a model for {auto_class.removeprefix('AutoModel') or 'no task'} cannot be measured on labels")


@torch.inference_mode()
def predict_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Sequence[int]]],
    take: Callable[[Any], torch.Tensor],
    per_token: bool = False,
    batch_tokens: int = 2048,
    bf16: bool = False,
) -> list[np.ndarray]:
    """
    Outputs for rows of different lengths, in their order; rows of similar length are computed together.

    Args:
        take: what is wanted of a model's outputs, `(batch, …)`.
        per_token: it is `(batch, length, …)`; what stands at padding is cut off.
    """
    use_unpadded_encoding(model)
    results: list[np.ndarray] = [np.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: length_of(rows[number]))
    device, collate, start = next(model.parameters()).device, RightPadding(tokenizer), 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * length_of(rows[order[end]]) <= batch_tokens:
            end += 1
        batch = order[start:end]
        start = end
        inputs = {name: column.to(device) for name, column in collate([rows[number] for number in batch]).items()}
        refuse_unknown_tokens(model, inputs["input_ids"])
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            taken = take(model(**inputs))
        taken = (taken.float() if taken.is_floating_point() else taken).cpu().numpy()
        for number, output in zip(batch, taken, strict=True):
            results[number] = output[: len(rows[number]["input_ids"])] if per_token else output
    return results


def _most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    most = min(tokenizer.model_max_length, longest_input(model.config, 512))
    if most < 8:
        raise InputError(f"this model takes {most} tokens: too few for texts")
    return min(most, asked or 512)
