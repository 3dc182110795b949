"""The model of a pretraining run: a preset, any architecture's configuration, or a folder to continue from."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..core.errors import InputError, explain, reason_of
from ..core.inference import is_bidirectional
from ..core.model_files import refuse_adapter
from ..models.configuration_tfm import SIZES, TfmConfig
from .dropout import dropout_fields
from .initialization import zero_init_output_projections
from .pretrain_recipe import PretrainingRecipe
from .recipe import read_mapping
from .report import print_line


_SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask")


def model_config(
    config_class: type[TfmConfig], tokenizer: PreTrainedTokenizerBase, recipe: PretrainingRecipe
) -> PreTrainedConfig:
    """
    Return the configuration of the model to train, without the dropout of the run.

    Args:
        config_class: the configuration that has the presets.
        tokenizer: decides vocabulary size and special tokens of a new model.
        recipe: `model` (a preset, `architecture/size`, a `config.json` of any architecture, or a model folder),
            `model_overrides`, `window` and `block_length` (the longest row).

    Raises:
        InputError: the model is unknown, or its configuration lacks a field that the recipe sets.
    """
    path = Path(recipe.model)
    refuse_adapter(path)
    overrides = read_mapping(recipe.model_overrides, "model_overrides")
    if recipe.window and path.exists():
        raise InputError(f"--window shapes new models of this package; {path} is none: give --window 0")
    if recipe.window and (duplicates := overrides.keys() & {"sliding_window", "layer_types"}):
        raise InputError(f"--window and {min(duplicates)} of --model_overrides say the same: leave one out")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL_TOKENS}
    fields = {"vocab_size": len(tokenizer), **{name: value for name, value in ids.items() if value is not None}}
    with _explain_model(recipe):
        if not path.exists():
            config = _preset_config(config_class, recipe, fields, overrides)
        elif _has_weights(path):
            config = AutoConfig.from_pretrained(path, **overrides)
        else:
            config = _config_of_any_architecture(path, fields, overrides)
    if recipe.dropout is not None and (duplicates := overrides.keys() & dropout_fields(config)):
        raise InputError(f"--dropout and {min(duplicates)} of --model_overrides say the same: leave one out")
    return config


def build_meta_model(auto_class: Any, config: PreTrainedConfig, recipe: PretrainingRecipe) -> PreTrainedModel:
    """Return a model of a configuration without memory for its weights, to count them before it is made."""
    with _explain_model(recipe), torch.device("meta"):
        return auto_class.from_config(copy.deepcopy(config))


def build_model(
    auto_class: Any,
    config_class: type[TfmConfig],
    tokenizer: PreTrainedTokenizerBase,
    recipe: PretrainingRecipe,
) -> tuple[PreTrainedModel, bool]:
    """
    Return the model to train, and whether it is new (with random weights).

    Args:
        auto_class: the Auto class of the head, such as `AutoModelForCausalLM`.
        config_class, tokenizer: see `model_config`.
        recipe: see `model_config`; and `dropout` and `zero_init`.

    Raises:
        InputError: the model is unknown or not causal where it should be, the tokenizer has more tokens than the model,
            or rows are longer than the model's positions.
    """
    path = Path(recipe.model)
    config = model_config(config_class, tokenizer, recipe)
    dropout = {} if recipe.dropout is None else dict.fromkeys(dropout_fields(config), recipe.dropout)
    has_weights = _has_weights(path)
    with _explain_model(recipe):
        if has_weights:
            overrides = read_mapping(recipe.model_overrides, "model_overrides")
            model = _load_model(auto_class, recipe.model, overrides | dropout)
        else:
            for name, value in dropout.items():
                setattr(config, name, value)
            model = _new_model(auto_class, config)
    check_fit(model, tokenizer, recipe.block_length)
    if auto_class is AutoModelForCausalLM and _depends_on_later_tokens(model):
        raise InputError(
            f"model {recipe.model}: {type(model).__name__} is not causal: its output depends on later tokens"
        )
    if not has_weights and recipe.zero_init:
        zero_init_output_projections(model)
    return model, not has_weights


def _has_weights(path: Path) -> bool:
    return path.is_dir() and (any(path.glob("*.safetensors*")) or any(path.glob("pytorch_model*.bin*")))


def _explain_model(recipe: PretrainingRecipe) -> contextlib.AbstractContextManager[None]:
    """Return a context in which transformers' errors about a model become an `InputError`."""

    def hint(error: Exception) -> str:  # without the some hundred model types at the end of a message of transformers
        return reason_of(error).split(" Model type should be one of")[0]

    return explain(f"model {recipe.model}", hint, ValueError, OSError, KeyError, TypeError)


def _load_model(auto_class: Any, folder: str, overrides: dict[str, Any]) -> PreTrainedModel:
    model, loading = auto_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **overrides)
    if missing := sorted(loading["missing_keys"]):
        print_line("new", f"{', '.join(missing)}: {folder} has no such weights")
    if _needs_decoder_switch(auto_class, model):
        model = auto_class.from_pretrained(folder, dtype=torch.float32, **overrides, is_decoder=True)
    return model


def _config_of_any_architecture(path: Path, fields: dict[str, Any], overrides: dict[str, Any]) -> PreTrainedConfig:
    config, unused = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **{**fields, **overrides})
    if unknown := [name for name in overrides if name in unused]:
        raise ValueError(f"{type(config).__name__} has no field {unknown[0]!r} to override")
    return config


def _new_model(auto_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    model = auto_class.from_config(config, dtype=torch.float32)
    if _needs_decoder_switch(auto_class, model):
        config.is_decoder = True
        model = auto_class.from_config(config, dtype=torch.float32)
    return model


def _preset_config(
    config_class: type[TfmConfig], recipe: PretrainingRecipe, fields: dict[str, Any], overrides: dict[str, Any]
) -> TfmConfig:
    name, _, size = recipe.model.partition("/")
    known_fields = {field: value for field, value in fields.items() if hasattr(config_class, field)}
    defaults = {"max_position_embeddings": max(recipe.block_length, 1024)} if name in SIZES else {}
    shape = {**defaults, **known_fields, **overrides}
    config = config_class.preset(name, size or None, **shape)
    if recipe.window:
        layer_types = ["sliding_attention"] * (config.num_hidden_layers - 1) + ["full_attention"]
        windows = {"sliding_window": recipe.window, "layer_types": layer_types}
        config = config_class.preset(name, size or None, **{**shape, **windows})
    return config


def _needs_decoder_switch(auto_class: Any, model: PreTrainedModel) -> bool:
    """Return whether a causal LM was asked for, and the model (BERT or its kind) is one only with `is_decoder`."""
    return (
        auto_class is AutoModelForCausalLM and hasattr(model.config, "is_decoder") and _depends_on_later_tokens(model)
    )


def _depends_on_later_tokens(model: PreTrainedModel) -> bool:
    # Models of this package are causal by construction; a new one may have layers that do nothing yet.
    return not isinstance(model.config, TfmConfig) and is_bidirectional(model)


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Raise `InputError` if the tokenizer or the length of a row does not fit the model."""
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {embeddings} embeddings: it is another model's; use "
            "the tokenizer from the model's own folder"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise InputError(
            f"rows of {length} tokens are longer than the model's {positions} positions: lower the length or raise "
            "max_position_embeddings"
        )
