"""Converts configurations between this package and the native families of `families.py`."""

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from ..core.errors import InputError, explain
from ..models.configuration_tfm import TfmConfig
from .native_families import Family


# The switches in words, for messages.
_NOUNS = {
    "qk_norm": "QK-norm",
    "attention_gate": "gate on its heads",
    "value_residual": "embeddings in its values",
    "norm_bias": "biases in its norms",
    "attention_bias": "biases in its attention",
    "mlp_bias": "biases in its feed-forward layers",
    "embedding_norm": "norm after the embedding",
    "gated_mlp": "gate in its feed-forward layers",
    "scale_embeddings": "scaling of embeddings",
    "add_cross_attention": "cross-attention",
    "use_pooler": "pooler",
    "head_bias": "bias in its prediction head",
    "decoder_bias": "bias in its output projection",
    "final_logit_softcapping": "softcap on its logits",
    "type_vocab_size": "segment embeddings",
}


def our_config(native: PreTrainedConfig, family: Family, head: str) -> TfmConfig:
    """
    Return this package's configuration for a native one.

    Raises:
        InputError: the block does not support a value of the native configuration.
    """
    for field, only in family.only.items():
        if (value := getattr(native, field, only)) != only:
            raise InputError(f"{field}={value!r} of this {family.title}: the Tfm block supports only {only!r}")
    if head == "QuestionAnswering" and family.side == "encoder" and native.num_labels != 2:
        raise InputError(f"num_labels={native.num_labels}: a question answering head needs 2 (start and end)")
    values = {field: value for field, value in family.always.items() if not callable(value)}
    values |= {ours: getattr(native, theirs, None) for theirs, ours in family.fields}
    values |= family.to_ours(native)
    if family.side == "decoder":
        dropout = getattr(native, "classifier_dropout", None)
        values["classifier_dropout"] = _decoder_classifier_dropout(head) if dropout is None else dropout
    with explain(family.title):
        # Our defaults are None where None has a meaning, so a field without a value keeps its default.
        config: TfmConfig = family.our_class(head).config_class(
            **{field: value for field, value in values.items() if value is not None}
        )
        return config


def native_config(config: TfmConfig, family: Family, head: str) -> PreTrainedConfig:
    """
    Return the native configuration for one of this package.

    Raises:
        InputError: the family does not support a value of the configuration.
    """
    for field, required in family.always.items():
        if field == "use_pooler" and required and head in ("Model", "MaskedLM"):
            continue  # these BERT classes also exist without pooler
        required = required(config) if callable(required) else required
        if (value := getattr(config, field)) != required:
            raise InputError(_obstacle(family, field, value, required))
    config_class = family.config_class()
    declared = {field.name for field in dataclasses.fields(config_class)}
    values: dict[str, Any] = {}
    for theirs, ours in family.fields:
        value = getattr(config, ours)
        if values.setdefault(theirs, value) != value:
            raise InputError(f"{ours}={value!r}: {family.title} has one {theirs} for all, here {values[theirs]!r}")
    values |= family.to_theirs(config)
    dropout = config.classifier_dropout
    if family.side == "decoder" and dropout != _decoder_classifier_dropout(head):
        values["classifier_dropout"] = dropout
    if head == "QuestionAnswering" and config.num_labels != 2:
        values["id2label"] = values["label2id"] = None
    with explain(family.title):
        return config_class(**{name: value for name, value in values.items() if value is not None or name in declared})


def _decoder_classifier_dropout(head: str) -> float:
    """Return the dropout of native decoders whose configuration has no `classifier_dropout`."""
    return 0.1 if head == "TokenClassification" else 0.0


def _obstacle(family: Family, field: str, value: Any, required: Any) -> str:
    if field in _NOUNS:
        has = "always has" if required else "has no"
        return f"{field}={value!r}: {family.title} {has} {_NOUNS[field]}"
    hint = (
        "; it matters in training only: set it to this value in config.json to export"
        if field.endswith("dropout")
        else ""
    )
    return f"{field}={value!r}: {family.title} has {field}={required!r}{hint}"
