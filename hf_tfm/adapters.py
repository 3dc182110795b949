"""Adapters: small trained matrices beside frozen weights, put on with PEFT and merged back."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from .errors import InputError


if TYPE_CHECKING:
    from peft import PeftModel

    from .finetuning import FinetuningRecipe

LORA_VARIANTS = ("lora", "dora", "rslora")


def add_adapter(
    model: PreTrainedModel, recipe: "FinetuningRecipe", task_type: str, new: Sequence[str] = ()
) -> "PeftModel":
    """
    Wrap a model with LoRA (Hu et al. 2021), DoRA (Liu et al. 2024) or rsLoRA (Kalajdzievski 2023); the rest is frozen.

    Args:
        task_type: PEFT's name of the task, `SEQ_CLS` for instance; PEFT knows which heads to train with it.
        new: names of new weights; the modules that hold them are trained as a whole and saved with the adapter.

    Raises:
        InputError: the model has no module of the names given.
    """
    from peft import LoraConfig, get_peft_model

    within = {name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] for name in new}
    config = LoraConfig(
        task_type=task_type,
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules or "all-linear",
        modules_to_save=sorted(within - {"classifier", "score", "qa_outputs"}) or None,  # these PEFT adds by itself
        use_dora=recipe.lora_variant == "dora",
        use_rslora=recipe.lora_variant == "rslora",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(model, config)
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
    changes_tied = tied and any(end is not layer for end, layer in zip(ends, plain))
    if changes_tied:
        if not untie:
            raise InputError(
                "the adapter changes the embedding or the output layer, which share one matrix: merged, it would "
                "change both; merge with untie (the output layer gets its own), or adapt other modules"
            )
        plain[1].weight = torch.nn.Parameter(plain[1].weight.detach().clone())
    if example is None:
        rows = plain[0].num_embeddings
        ids = torch.arange(1, 17, device=plain[0].weight.device)[None] * 7 % rows
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = base(**example).logits
        merged = model.merge_and_unload(safe_merge=True)
        after = merged(**example).logits
    if changes_tied:
        merged.config.tie_word_embeddings = False
    difference = (before - after).abs().max().item()
    if not difference <= 1e-4 * max(1.0, before.abs().max().item()):
        raise RuntimeError(f"the merged model's outputs differ from the adapter's by up to {difference:.2g}")
    return merged


def _plain_layer(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer itself, out of what PEFT has wrapped around it."""
    if hasattr(layer, "base_layer"):
        return layer.base_layer
    return layer.original_module if hasattr(layer, "original_module") else layer
