"""The model that a fine-tuning run starts from: loaded with a new head and with checks, its tokenizer prepared."""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import processors
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.tokenizer_files import load_tokenizer
from ..core.errors import InputError, explain, reason_of, unreadable
from ..core.model_files import refuse_adapter
from ..core.quiet import quiet
from .head_rows import carry_head_rows, head_parameters, label_names
from .kept_layers import choose_layers, keep_layers
from .recipe import FinetuningRecipe


# Names that configurations have for dropout on attention weights, with which attention leaves its fast kernels.
_ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop")
# Tokens made for padding, or at least never in a text; one with "pad" in its name is preferred.
_PAD_TOKENS = re.compile(
    r"<\|?pad(ding)?\|?>|\[PAD\]|<\|finetune_right_pad_id\|>|<\|endoftext\|>|"
    r"<\|?(reserved|spare|unused)[^>]*>|\[unused\d+\]"
)


def load_base_tokenizer(recipe: FinetuningRecipe) -> PreTrainedTokenizerBase:
    """Return the recipe's tokenizer, by default the model's. Raises `InputError` if there is none, or an adapter."""
    refuse_adapter(recipe.model)
    return load_tokenizer(recipe.tokenizer or recipe.model, recipe.trust_remote_code)


def load_base_model(
    auto_class: Any, recipe: FinetuningRecipe, tokenizer: PreTrainedTokenizerBase, **config_fields: Any
) -> tuple[PreTrainedModel, list[str]]:
    """
    Load a model with the head of `auto_class`, in fp32, with its tokenizer's pad token.

    Args:
        config_fields: fields of the configuration, such as `num_labels`.

    Returns: the model, and the names of new weights, which the folder does not have.

    Raises:
        InputError: there is no such model, it lacks weights other than the head's, or the tokenizer is another model's.
    """
    options = {"trust_remote_code": recipe.trust_remote_code}
    if recipe.lora_int8:
        options["quantization_config"] = int8_weights()
    with quiet(), _explain_load_errors(recipe.model):
        config = AutoConfig.from_pretrained(recipe.model, trust_remote_code=recipe.trust_remote_code, **config_fields)
        for name in config_fields:
            if not hasattr(config, name):
                raise InputError(f"{recipe.model}: its {type(config).__name__} has no switch {name}; leave that out")
        layers = choose_layers(config, recipe.keep_layers) if recipe.keep_layers else None
        if "classifier_pooling" in config_fields and getattr(config, "use_pooler", False):
            config.use_pooler = False  # a pooler always reads the first token
        for name in _ATTENTION_DROPOUT:
            if hasattr(config, name):
                setattr(config, name, recipe.attention_dropout)
        key_mapping = _key_mapping(auto_class, config)
        if key_mapping and recipe.lora:
            raise InputError(
                f"{recipe.model}: transformers does not find its weights under this head, so nobody could load an "
                "adapter on it: train without --lora, or bring the model into this package with `hf-tfm convert`"
            )
        try:
            model, info = auto_class.from_pretrained(
                recipe.model,
                config=config,
                key_mapping=key_mapping,
                # A checkpoint in bf16 would be trained in bf16, in which small steps are lost.
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise InputError(
                f"{recipe.model}: is a {config.model_type}, and {auto_class.__name__} has no class for that: take a "
                "model of a kind that it knows, such as an encoder"
            ) from error
    if layers:
        model = keep_layers(auto_class, model, layers, recipe.trust_remote_code)
    if key_mapping:
        model._weight_conversions = []  # else saving would restore the old names, which are not found again
    new_names = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    missing = [name for name in new_names if name.startswith(body) and "pooler" not in name]
    if missing:
        raise InputError(
            f"{recipe.model}: lacks {len(missing)} weights of {type(model).__name__} or has them in another shape, "
            f"first {missing[0]}: they would be random; is config.json of this model?"
        )
    if "num_labels" in config_fields:
        new_names = _carry_head_rows(auto_class, recipe, model, new_names, info["missing_keys"])
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise InputError(
            f"{recipe.tokenizer or recipe.model}: the tokenizer has ids up to {highest}, the model {rows} embeddings: "
            "they do not belong together"
        )
    ensure_pad_token(tokenizer, model)
    return model, new_names


def _carry_head_rows(
    auto_class: Any, recipe: FinetuningRecipe, model: PreTrainedModel, new_names: list[str], missing: Collection[str]
) -> list[str]:
    """
    Let the rows of the head follow the names of their labels.

    Args:
        new_names: names of new weights.
        missing: those of them that the folder lacks; the others have another shape there.

    Returns: the names of weights that are still new; with an adapter also of moved ones, which its folder must hold.
    """
    trust = recipe.trust_remote_code
    names = head_parameters(auto_class, model, trust)
    if not names or set(names) & set(missing):
        return new_names
    with quiet():
        if label_names(AutoConfig.from_pretrained(recipe.model, trust_remote_code=trust)) == label_names(model.config):
            return new_names
        saved = auto_class.from_pretrained(recipe.model, trust_remote_code=trust, dtype="auto")
    changed_names = names if carry_head_rows(model, saved, names) or recipe.lora else []
    return sorted({*new_names, *changed_names} if changed_names else set(new_names) - set(names))


def int8_weights() -> Any:
    """Return the setting with which transformers loads linear layers with weights of 8 bits, and computes in fp32."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig
    except ImportError as error:
        raise InputError(f"lora_int8 needs torchao ({error}): pip install torchao") from error
    return TorchAoConfig(quant_type=Int8WeightOnlyConfig(version=2))


def _key_mapping(auto_class: type, config: PreTrainedConfig) -> dict[str, str] | None:
    """
    Return the `key_mapping` of `from_pretrained` where a head's class has another name for its backbone than the saved
    class, as transformers' `LlamaForQuestionAnswering` has `transformer` for `model`: else all weights would be random.
    """
    target = getattr(auto_class, "_model_mapping", {}).get(type(config), None)
    source = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if (
        target is None
        or source is None
        or isinstance(target, tuple)
        or target.base_model_prefix == source.base_model_prefix
    ):
        return None
    return {rf"^{re.escape(source.base_model_prefix)}\.": f"{target.base_model_prefix}."}


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """
    Give tokenizer and model the same pad token, other than the end-of-text token.

    A vocabulary without such a token gets one for an unused embedding; the end-of-text token is the last resort. The
    weights keep their shapes, so that adapters fit.
    """
    used_ids = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in used_ids:
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        free = [token for token, number in vocabulary if number not in used_ids and _PAD_TOKENS.fullmatch(token)]
        if free:
            tokenizer.pad_token = min(free, key=lambda token: "pad" not in token.lower())
        elif tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in used_ids:
            tokenizer.pad_token = tokenizer.unk_token
        elif vocabulary[-1][1] + 1 < model.get_input_embeddings().num_embeddings:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        elif tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or vocabulary[0][0]
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def separate_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Make the tokenizer put the end-of-text token between the two texts of a pair if it puts nothing there.

    Many decoders' tokenizers do not. The saved tokenizer has the token too, so that pipelines and servers separate
    pairs as in training.
    """
    separator = tokenizer.sep_token or tokenizer.eos_token
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add() or not separator:
        return
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(
        single="$A", pair=f"$A {separator} $B", special_tokens=[(separator, tokenizer.convert_tokens_to_ids(separator))]
    )
    steps = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = processors.Sequence([*steps, template])


def _explain_load_errors(folder: str) -> contextlib.AbstractContextManager[None]:
    """Turn the errors of a damaged or missing model folder into an `InputError`."""

    def hint(error: Exception) -> str:
        if "contains custom code" in str(error):
            return "carries code of its own: look at it and add --trust_remote_code"
        missing = "" if Path(folder).exists() else "there is no such folder, and "
        return f"{missing}no model can be loaded from it ({reason_of(error)})"

    return explain(folder, hint, *unreadable(), TypeError, AttributeError)
