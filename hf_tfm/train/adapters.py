"""Adapters: small trained matrices beside frozen weights, put on with PEFT and merged back."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..core.errors import InputError


if TYPE_CHECKING:
    from peft import PeftModel

    from .recipe import FinetuningRecipe

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_HEADS = ("classifier", "score", "qa_outputs")
# Those that PEFT trains and saves by itself, by task.
_PEFT_HEADS = {"SEQ_CLS": _HEADS[:2], "TOKEN_CLS": _HEADS[:2], "QUESTION_ANS": _HEADS[2:]}


def add_adapter(
    model: PreTrainedModel,
    recipe: "FinetuningRecipe",
    task_type: str | None,
    new: Sequence[str] = (),
    inside: bool = False,
    new_tokens: Sequence[int] = (),
) -> "PeftModel | PreTrainedModel":
    """
    Wrap a model with LoRA (Hu et al. 2021), DoRA (Liu et al. 2024) or rsLoRA (Kalajdzievski 2023); the rest is frozen.

    Args:
        task_type: PEFT's name of the task, `SEQ_CLS` for instance, or None if it has none. The head is always trained
            as a whole and saved with the adapter.
        new: names of new weights; the modules that hold them are trained as a whole and saved with the adapter.
        inside: put the adapter into the model's modules and leave its class, as sentence-transformers wants it.
        new_tokens: ids whose embeddings, at both ends of the model, are trained and saved with the adapter.

    Raises:
        InputError: the model has no module of the names given.
    """
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    # All of "all-linear" but these: PEFT leaves the head of SEQ_CLS out by itself, those of other tasks it would wrap.
    heads = {name for name in _HEADS if hasattr(model, name)} if task_type != "CAUSAL_LM" else set()
    whole = {name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] for name in new} | heads
    whole -= set(_PEFT_HEADS.get(task_type or "", ()))
    config = LoraConfig(
        task_type=task_type,
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules or "all-linear",
        exclude_modules=sorted(heads) or None,
        modules_to_save=sorted(whole) or None,
        trainable_token_indices=_ends_of(model, new_tokens) if new_tokens else None,
        use_dora=recipe.lora_variant == "dora",
        use_rslora=recipe.lora_variant == "rslora",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not inside:
                return get_peft_model(model, config)
            # Not `model.add_adapter`: transformers 5.24 asks for a version of PEFT that is not out yet.
            return inject_adapter_in_model(config, model)
    except ValueError as error:
        linear = {name.split(".")[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        raise InputError(
            f"lora_target_modules {recipe.lora_target_modules}: {str(error).split('.')[0]}; the model's linear modules "
            f"are {', '.join(sorted(linear))}"
        ) from error


def merge_adapter(
    model: "PeftModel", example: Mapping[str, torch.Tensor] | None = None, untie: bool = False
) -> PreTrainedModel:
    """
    Fold an adapter into the weights. What comes out is a model without PEFT, and gives what the wrapped one gave.

    Args:
        model: the base with its adapter, in fp32; it is used up.
        example: inputs to compare outputs on before and after; by default one row of some token ids.
        untie: give the output layer a matrix of its own if the adapter changes one of two tied ones.

    Raises:
        InputError: the adapter changes a tied matrix, so that merging would change the other end too.
        RuntimeError: outputs before and after differ.
    """
    base = model.get_base_model().eval()
    ends = [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]
    plain = [_plain_layer(end) for end in ends]
    tied = len(plain) == 2 and plain[0].weight is plain[1].weight
    # Embeddings of single tokens are the one thing that PEFT changes at both ends alike.
    tokens = sorted({token for end in ends if hasattr(end, "token_adapter") for token in _token_indices(end)})
    changes_tied = tied and any(end is not layer for end, layer in zip(ends, plain)) and not tokens
    if changes_tied:
        if not untie:
            raise InputError(
                "the adapter changes the embedding or the output layer, which share one matrix: merged, it would "
                "change both; merge with untie (the output layer gets its own), or adapt other modules"
            )
        plain[1].weight = torch.nn.Parameter(plain[1].weight.detach().clone())
    if example is None:
        rows = plain[0].num_embeddings
        ids = torch.tensor([[*(7 * place % rows for place in range(1, 17)), *tokens]], device=plain[0].weight.device)
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = _outputs(base, example)
        merged = model.merge_and_unload(safe_merge=True)
        after = _outputs(merged, example)
    if changes_tied:
        merged.config.tie_word_embeddings = False
    difference = (before - after).abs().max().item()
    if not difference <= 1e-4 * max(1.0, before.abs().max().item()):
        raise RuntimeError(f"the merged model's outputs differ from the adapter's by up to {difference:.2g}")
    return merged


def merge_inside(model: PreTrainedModel) -> None:
    """Fold an adapter that was put inside a model into its weights; what is left is the plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            model.set_submodule(name, layer.get_base_layer())
    model.requires_grad_(True)
    del model.peft_config


def save_inside(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the weights of an adapter inside a model, for `load_inside`."""
    from peft import get_peft_model_state_dict

    save_file(get_peft_model_state_dict(model), Path(folder) / ADAPTER_WEIGHTS)


def load_inside(model: PreTrainedModel, folder: str | Path) -> None:
    """Set the weights of the adapter inside a model to those that `save_inside` wrote."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(Path(folder) / ADAPTER_WEIGHTS))


def _outputs(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {name: tensor[:, None] if tensor.ndim == 2 else tensor for name, tensor in inputs.items()}
    outputs = model(**inputs)
    return outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits])


def _ends_of(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, list[int]]:
    """The ids by name of the embedding, and of the output layer where that has a matrix of its own."""
    ends = [model.get_input_embeddings()]
    if (output := model.get_output_embeddings()) is not None and output.weight is not ends[0].weight:
        ends.append(output)
    return {
        name.split(".")[-1]: list(tokens) for name, part in model.named_modules() if any(part is end for end in ends)
    }


def _token_indices(wrapper: Any) -> list[int]:
    return [token for several in wrapper.token_adapter.token_indices.values() for token in several]


def _plain_layer(layer: Any) -> Any:
    """The layer itself, out of what PEFT has wrapped around it."""
    if hasattr(layer, "base_layer"):
        return layer.base_layer
    return layer.original_module if hasattr(layer, "original_module") else layer
