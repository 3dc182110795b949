"""Compatibility: names of the cache, arguments of a forward, tables of class names in transformers and PEFT."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import modeling_auto
from transformers.utils import TransformersKwargs, is_peft_available
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from .configuration_tfm import TfmConfig


# The name of the key/value cache in transformers' functions and outputs: `cache` since 5.24, `past_key_values` before.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

# Keyword arguments that a forward passes on to the loss and to the attention function: transformers' list, shifted
# labels, the arguments of continuous batching (`generate_batch`), and the tokenizer that `generate` passes along when
# `stop_strings` are set.
FORWARDED_ARGUMENTS = frozenset(TransformersKwargs.__annotations__) | {
    "shift_labels",
    "block_table",
    "logits_indices",
    "logits_processor_args",
    "read_index",
    "tokenizer",
    "write_index",
}

# Ends of class names, and transformers' tables of the classes with such a head.
_CLASS_TABLES = {
    "ForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "ForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "ForNextSentencePrediction": modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "ForPreTraining": modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    "ForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "ForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}


def accepts_both_cache_names(forward: Callable) -> Callable:
    """
    Decorator for a method with a parameter `cache`: callers may also name it `past_key_values`.

    `past_key_values` is the name before transformers 5.24. With 5.24 or later a `FutureWarning` is issued, as in
    transformers' own models. Raises `ValueError` if both names are given.
    """

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            if kwargs.get("cache") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: pass one of them")
            if CACHE_NAME == "cache" and not is_tracing():
                message = f"`past_key_values` is deprecated for `{type(self).__name__}`. Use `cache` instead."
                warnings.warn(message, FutureWarning, stacklevel=2)
            kwargs["cache"] = past_key_values
        return forward(self, *args, **kwargs)

    # PEFT looks for the old name in the signature.
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    old_name = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD), old_name)
    wrapper.__signature__ = signature.replace(parameters=parameters)
    return wrapper


class BothCacheNames:
    """Mixin for outputs with a cache: `cache` and `past_key_values` exist with each transformers version."""

    if CACHE_NAME == "past_key_values":  # since 5.24 transformers' own outputs have both

        @property
        def cache(self) -> Cache | None:
            return self.past_key_values

        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__("past_key_values" if key == "cache" else key)

        def __contains__(self, key: object) -> bool:
            return super().__contains__("past_key_values" if key == "cache" else key)

        def get(self, key: str, default: Any = None) -> Any:
            return super().get("past_key_values" if key == "cache" else key, default)


def is_updated_by_attention(cache: Any) -> bool:
    """Return whether attention updates the cache: the paged cache of `generate_batch` before 5.24."""
    return cache is not None and CACHE_NAME == "past_key_values" and not isinstance(cache, Cache)


def refuse_unknown_arguments(config: TfmConfig, arguments: dict[str, Any], has_positions: bool = True) -> None:
    """
    Raise an error for arguments that `**kwargs` of a forward would swallow.

    A misspelt mask, or a cache under a name of a later version, would otherwise change the result silently.

    Args:
        arguments: keyword arguments beyond the forward's parameters; those that are None or False are ignored.
        has_positions: whether `position_ids` are given, which separate packed documents.

    Raises:
        TypeError: an argument is unknown to this model, to transformers and to the attention function in use.
        ValueError: `cu_seq_lens_q` alone separates packed documents, and the attention function does not read it.
    """
    if arguments.get("cu_seq_lens_q") is not None and not has_positions and not is_flash_attention_requested(config):
        raise ValueError("cu_seq_lens_q is read by flash attention only: pass position_ids, from 0 in each document")
    unknown = [name for name in arguments if name not in FORWARDED_ARGUMENTS]
    unknown = [name for name in unknown if arguments[name] is not None and arguments[name] is not False]
    if unknown:
        # Engines such as vLLM register an attention function with arguments of its own.
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, None)
        known = () if attention is None else inspect.signature(attention).parameters
        unknown = [name for name in unknown if name not in known]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")


def register_class_name(model_type: str, name: str) -> None:
    """
    Enter a model class into transformers' table of the classes with its head.

    `AutoModelFor….register` does not. By the table `Trainer` decides whether the labels of `label_smoothing_factor` are
    shifted (without this a causal LM would learn to copy its input), pipelines which classes they support, and
    `transformers serve` what it loads.
    """
    for suffix, table in _CLASS_TABLES.items():
        if name.endswith(suffix):
            table.setdefault(model_type, name)


@functools.cache
def register_with_peft() -> None:
    """
    Register default target modules for this package's model types with PEFT (LoRA, IA3, …).

    Modules here have the names of Qwen3's, so Qwen3's defaults apply. PEFT has no interface for this: the tables in
    `peft.utils.constants` are the only place it looks in if a user passes no `target_modules`. Called when the first
    model is built, because importing PEFT is slow.
    """
    if not is_peft_available():
        return
    from peft.utils import constants

    tables = [table for name, table in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")]
    for table in tables:
        for model_type in ("tfm_decoder", "tfm_encoder", "tfm_encoder_decoder"):
            if "qwen3" in table:
                table.setdefault(model_type, table["qwen3"])
