"""Adapters (LoRA and its variants): added with PEFT, merged back into the weights."""

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
# Heads that PEFT itself trains and saves, by task.
_PEFT_HEADS = {"SEQ_CLS": _HEADS[:2], "TOKEN_CLS": _HEADS[:2], "QUESTION_ANS": _HEADS[2:]}


def add_adapter(
    model: PreTrainedModel,
    recipe: "FinetuningRecipe",
    task_type: str | None,
    new_names: Sequence[str] = (),
    inside: bool = False,
    new_tokens: Sequence[int] = (),
) -> "PeftModel | PreTrainedModel":
    """
    Add LoRA (Hu et al. 2021), DoRA (Liu et al. 2024) or rsLoRA (Kalajdzievski 2023) to a model; freeze the rest.

    Args:
        task_type: PEFT's name of the task, such as `SEQ_CLS`, or None if it has none. The head is always trained in
            full and saved with the adapter.
        new_names: names of new weights; their modules are trained in full and saved with the adapter.
        inside: add the adapter inside the model's modules and keep the model's class, for sentence-transformers.
        new_tokens: ids whose embeddings, input and output, are trained and saved with the adapter.

    Raises:
        InputError: the model has no module with one of the names.
    """
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    # "all-linear" excludes the head of SEQ_CLS, but not the heads of other tasks.
    heads = {name for name in _HEADS if hasattr(model, name)} if task_type != "CAUSAL_LM" else set()
    full_modules = {name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] for name in new_names} | heads
    full_modules -= set(_PEFT_HEADS.get(task_type or "", ()))
    config = LoraConfig(
        task_type=task_type,
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules or "all-linear",
        exclude_modules=sorted(heads) or None,
        modules_to_save=sorted(full_modules) or None,
        trainable_token_indices=_embedding_indices(model, new_tokens) if new_tokens else None,
        use_dora=recipe.lora_variant == "dora",
        use_rslora=recipe.lora_variant == "rslora",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not inside:
                return get_peft_model(model, config)
            # Not `model.add_adapter`: transformers 5.24 requires a version of PEFT that is not released yet.
            return inject_adapter_in_model(config, model)
    except ValueError as error:
        linear = {name.split(".")[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        raise InputError(
            f"lora_target_modules {recipe.lora_target_modules}: {str(error).split('.')[0]}; the model's linear modules "
            f"are {', '.join(sorted(linear))}"
        ) from error


def merge_adapter(model: "PeftModel", untie: bool = False) -> PreTrainedModel:
    """
    Merge an adapter into the weights; return a model without PEFT that computes the same.

    Args:
        model: the base with its adapter, in fp32; it is consumed.
        untie: give the output layer its own matrix if the adapter changes one of two tied matrices.

    Raises:
        InputError: the adapter changes a tied matrix, so that merging would change the other one too.
        RuntimeError: the outputs before and after differ.
    """
    base = model.get_base_model().eval()
    ends = [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]
    plain = [_plain_layer(end) for end in ends]
    tied = len(plain) == 2 and plain[0].weight is plain[1].weight
    # PEFT changes tied matrices alike only for embeddings of single tokens.
    tokens = sorted({token for end in ends if hasattr(end, "token_adapter") for token in _token_indices(end)})
    changes_tied = tied and any(end is not layer for end, layer in zip(ends, plain)) and not tokens
    if changes_tied:
        if not untie:
            raise InputError(
                "the adapter changes the embedding or the output layer, which share one matrix: merged, it would "
                "change both; merge with untie (the output layer gets its own), or adapt other modules"
            )
        plain[1].weight = torch.nn.Parameter(plain[1].weight.detach().clone())
    rows = plain[0].num_embeddings
    ids = torch.tensor([[*(7 * place % rows for place in range(1, 17)), *tokens]], device=plain[0].weight.device)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = compared_outputs(base, example)
        merged = model.merge_and_unload(safe_merge=True)
        actual = compared_outputs(merged, example)
    if changes_tied:
        merged.config.tie_word_embeddings = False
    difference = (expected - actual).abs().max().item()
    if not difference <= 1e-4 * max(1.0, expected.abs().max().item()):
        raise RuntimeError(f"the merged model's outputs differ from the adapter's by up to {difference:.2g}")
    return merged


def merge_inside(model: PreTrainedModel) -> None:
    """Merge an adapter inside a model into its weights, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            model.set_submodule(name, layer.get_base_layer())
    model.requires_grad_(True)
    del model.peft_config


def save_inside(model: PreTrainedModel, folder: str | Path) -> None:
    """Save the weights of an adapter inside a model."""
    from peft import get_peft_model_state_dict

    save_file(get_peft_model_state_dict(model), Path(folder) / ADAPTER_WEIGHTS)


def load_inside(model: PreTrainedModel, folder: str | Path) -> None:
    """Load the weights of an adapter inside a model, as `save_inside` wrote them."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(Path(folder) / ADAPTER_WEIGHTS))


def compared_outputs(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of any head, of a question-answering model both; inputs are (batch, length)."""
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {name: tensor[:, None] if tensor.ndim == 2 else tensor for name, tensor in inputs.items()}
    outputs = model(**inputs)
    return outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits])


def _embedding_indices(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, list[int]]:
    """Return the ids by name of the embedding, and of an untied output layer."""
    ends = [model.get_input_embeddings()]
    if (output := model.get_output_embeddings()) is not None and output.weight is not ends[0].weight:
        ends.append(output)
    return {
        name.split(".")[-1]: list(tokens) for name, part in model.named_modules() if any(part is end for end in ends)
    }


def _token_indices(wrapper: Any) -> list[int]:
    return [token for several in wrapper.token_adapter.token_indices.values() for token in several]


def _plain_layer(layer: Any) -> Any:
    """Return the layer inside PEFT's wrapper."""
    if hasattr(layer, "base_layer"):
        return layer.base_layer
    return layer.original_module if hasattr(layer, "original_module") else layer
