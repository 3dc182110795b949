"""Generation by a masked LM: fill mask tokens in steps and mask the least probable ones again."""

import inspect
from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Settings of other models' `generate` that change nothing here, with these values (an empty tuple: with any value).
_NEUTRAL_SETTINGS: dict[str, tuple] = {
    "do_sample": (False, None),
    "num_beams": (1, None),
    **dict.fromkeys(("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"), ()),
}


class WithMaskToken:
    """
    Descriptor of a method that exists only if the model's config has a `mask_token_id`.

    Libraries take a model with a `generate` method for one that generates. An instance attribute may replace it.
    """

    def __init__(self, method: Callable[..., torch.Tensor]):
        self.method = method
        update_wrapper(self, method)

    def __get__(self, model: nn.Module | None, owner: type) -> Callable[..., torch.Tensor]:
        if model is None:
            return self.method
        if model.config.mask_token_id is None:
            raise AttributeError("the model's config has no mask_token_id, so there is nothing to fill")
        return MethodType(self.method, model)


class TfmInfilling:
    """
    Mixin with the `generate` method of a masked LM: fill several masks together or continue a text.

    A single forward pass predicts each mask as if the others stayed unknown. Filling a few masks, predicting again and
    masking the least probable again makes them agree (Mask-Predict, Ghazvininejad et al. 2019,
    https://huggingface.co/papers/1904.09324). Models trained with masking rates over the whole range are masked
    diffusion models and generate best this way (Nie et al. 2025, https://huggingface.co/papers/2502.09992).
    """

    @WithMaskToken
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int = 0,
        **settings: Any,
    ) -> torch.Tensor:
        """
        Args:
            input_ids: `(batch, length)`; its mask tokens are filled.
            attention_mask: `(batch, length)`, 0 at padding.
            max_new_tokens: number of masks to append to each row's text, before a final separator, and to fill too.
            settings: as in [`fill_masks_together`].

        Returns: `(batch, length + max_new_tokens)` without masks; padding is on the right if masks were appended.

        Raises:
            ValueError: `input_ids` are missing, or a setting is unknown or has no effect, such as `num_beams=4`.
        """
        if input_ids is None and (input_ids := settings.pop("inputs", None)) is None:
            raise ValueError("a masked LM fills the mask tokens of a text: input_ids are missing")
        for name, values in _NEUTRAL_SETTINGS.items():
            if not values or settings.get(name) in values:
                settings.pop(name, None)
        settings = {name: value for name, value in settings.items() if value is not None}
        known = {*inspect.signature(fill_masks_together).parameters, *inspect.signature(self.forward).parameters}
        known -= {"labels", "masked_positions", "inputs_embeds", "next_sentence_label"}
        if max_new_tokens and "position_ids" in settings:
            raise ValueError("max_new_tokens counts positions itself: leave position_ids out, or append the masks")
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"a masked LM's generate does not know {', '.join(unknown)}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be 0 or above, not {max_new_tokens}")
        if max_new_tokens:
            input_ids, attention_mask, settings = add_masks(
                self.config, input_ids, attention_mask, max_new_tokens, settings
            )
        if input_ids.shape[1] > (limit := self.config.max_position_embeddings):
            logger.warning(f"The text is {input_ids.shape[1]} tokens long; the model is meant for {limit} at most.")
        return fill_masks_together(self, input_ids, attention_mask, **settings)


@torch.no_grad()
def fill_masks_together(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    steps: int | None = None,
    remask: bool = True,
    temperature: float = 0.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """
    Fill the mask tokens of each row; without sampling, rows do not influence one another.

    Args:
        model: any masked LM whose config has a `mask_token_id`, in training or evaluation mode; called `steps` times.
        input_ids: `(batch, length)`.
        attention_mask: `(batch, length)`, 0 at padding.
        steps: number of steps, which fill equal shares; at most (and by default) a row's number of masks.
        remask: after a step mask the least probable of all filled tokens again, not only of those just filled.
        temperature: 0 takes the most probable tokens; above 0 tokens, and those to keep, are sampled.
        top_k: sample from this many of the most probable tokens; 0 from all.
        inputs: further inputs of the model, such as `token_type_ids`.

    Returns:
        `(batch, length)` without mask tokens.

    Raises:
        ValueError: the model's config has no mask token, or a setting is out of range.
    """
    mask_token_id = _mask_token_id(model.config)
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    temperature, top_k = temperature or 0.0, top_k or 0
    if not (0 <= temperature < float("inf")) or top_k < 0:
        raise ValueError(f"temperature {temperature} and top_k {top_k}: must be 0 or above")
    ids = input_ids.clone()
    fillable = ids == mask_token_id
    if attention_mask is not None:
        fillable &= attention_mask.bool()
        inputs["attention_mask"] = attention_mask
    masks = fillable.sum(1)
    row_steps = masks if steps is None else masks.clamp(max=steps)
    special_ids = [value for name, value in vars(model.config).items() if _is_special(name, value)]
    confidence = torch.zeros(ids.shape, device=ids.device)
    for step in range(1, int(row_steps.max()) + 1 if len(ids) else 1):
        masked = fillable & (ids == mask_token_id)
        logits = _logits_at(model, ids, masked, inputs)
        logits[:, special_ids] = -torch.inf
        ids[masked], confidence[masked] = _choose(logits, temperature, top_k, generator)

        # The number of masks after this step decreases evenly, to none in the last step of a row.
        remaining = (masks * (row_steps - step)).clamp(min=0) // row_steps.clamp(min=1)
        doubt = -confidence
        if temperature > 0:  # order of sampling without replacement (Gumbel-top-k), with a decreasing temperature
            noise = -torch.empty_like(confidence).exponential_(generator=generator).log()
            scale = temperature * (1 - step / row_steps.clamp(min=1)).clamp(min=0)
            doubt = -confidence.clamp(min=1e-9).log() - scale[:, None] * noise
        doubt = doubt.masked_fill(~(fillable if remask else masked), -torch.inf)
        rank = doubt.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        ids = torch.where(rank < remaining[:, None], mask_token_id, ids)
    return ids


def add_masks(
    config: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, count: int, inputs: dict
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Append `count` masks to each row's text, before a final separator, and move padding to the right."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    batch_size, length = input_ids.shape
    final_tokens = {config.sep_token_id, config.eos_token_id} - {None}
    ids = input_ids.new_full((batch_size, length + count), config.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    token_type_ids = inputs.get("token_type_ids")
    new_token_type_ids = torch.zeros_like(ids)
    for row in range(batch_size):
        is_token = attention_mask[row].bool()
        text = input_ids[row][is_token]
        end = len(text) - int(len(text) > 0 and text[-1].item() in final_tokens)
        masks = text.new_full((count,), _mask_token_id(config))
        ids[row, : len(text) + count] = torch.cat([text[:end], masks, text[end:]])
        mask[row, : len(text) + count] = 1
        if token_type_ids is not None:
            types = token_type_ids[row][is_token]
            last = types[-1:] if len(types) else new_token_type_ids[row, :1]
            new_token_type_ids[row, : len(text) + count] = torch.cat([types, last.expand(count)])
    return ids, mask, inputs if token_type_ids is None else {**inputs, "token_type_ids": new_token_type_ids}


def _mask_token_id(config: Any) -> int:
    if getattr(config, "mask_token_id", None) is None:
        raise ValueError("the model's config has no mask_token_id, so there is nothing to fill")
    return config.mask_token_id


def _is_special(field: str, value: Any) -> bool:
    return field.endswith("_token_id") and isinstance(value, int)


def _logits_at(model: nn.Module, ids: torch.Tensor, masked: torch.Tensor, inputs: dict) -> torch.Tensor:
    """Return fp32 logits `(masked tokens, vocab_size)`; models with `masked_positions` compute no others."""
    if "masked_positions" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids, masked_positions=masked.flatten().nonzero().flatten(), **inputs).logits.float()
    return model(input_ids=ids, **inputs).logits[masked].float()


def _choose(
    logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token for each row of logits, and its probability under the model."""
    probabilities = logits.softmax(-1)
    if temperature > 1e-6:  # logits divided by less are infinite
        if top_k:
            threshold = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < threshold, -torch.inf)
        tokens = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
    else:
        tokens = probabilities.argmax(-1, keepdim=True)
    return tokens[:, 0], probabilities.gather(1, tokens)[:, 0]
