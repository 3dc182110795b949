"""How a masked LM writes: it fills mask tokens step by step, the surest first, and takes back the least sure."""

import inspect
from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Settings of other models' `generate` that ask for what happens here, with these values or with any.
_AS_IT_IS: dict[str, tuple] = {
    "do_sample": (False, None),
    "num_beams": (1, None),
    **dict.fromkeys(("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"), ()),
}


class WithMaskToken:
    """
    A method that is not there if the model's config names no mask token: what has a `generate` is expected to write.
    Another may be put in its place, as programs do that wrap models.
    """

    def __init__(self, method: Callable[..., torch.Tensor]):
        self.method = method
        update_wrapper(self, method)

    def __get__(self, model: nn.Module | None, owner: type) -> Callable[..., torch.Tensor]:
        if model is None:
            return self.method
        if model.config.mask_token_id is None:
            raise AttributeError("the model's config names no mask_token_id, so there is nothing to fill")
        return MethodType(self.method, model)


class TfmInfilling:
    """
    Gives a masked LM a `generate` that fills several masks together, or writes at the end of a text.

    One pass over a text with several masks guesses each as if the others stayed unknown. Filling a few, looking again
    and masking the least sure anew lets them agree with one another (Mask-Predict, Ghazvininejad et al. 2019,
    https://huggingface.co/papers/1904.09324). Models whose masking rate in training was drawn over the whole range are
    masked-diffusion models and write best this way (Nie et al. 2025, https://huggingface.co/papers/2502.09992).
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
            max_new_tokens: masks to set behind each row's text, in front of a closing separator, and to fill as well.
            settings: as in [`fill_masks_together`]. Raises `ValueError` for others that would change nothing, such as
                `num_beams=4`.

        Returns: `(batch, length + max_new_tokens)` without masks; padding is on the right if masks were added.
        """
        if input_ids is None and (input_ids := settings.pop("inputs", None)) is None:
            raise ValueError("a masked LM fills the mask tokens of a text: input_ids are missing")
        for name, values in _AS_IT_IS.items():
            if not values or settings.get(name) in values:
                settings.pop(name, None)
        settings = {name: value for name, value in settings.items() if value is not None}
        known = {*inspect.signature(fill_masks_together).parameters, *inspect.signature(self.forward).parameters}
        known -= {"labels", "masked_positions", "inputs_embeds", "next_sentence_label"}
        if max_new_tokens and "position_ids" in settings:
            raise ValueError("positions of added masks are counted: leave position_ids out, or put the masks in")
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
    Fill the mask tokens of each row. What a row becomes does not depend on the rows beside it, unless it is drawn.

    Args:
        model: any masked LM whose config names its `mask_token_id`, in whatever mode; it is called `steps` times.
        input_ids: `(batch, length)`.
        attention_mask: `(batch, length)`, 0 at padding.
        steps: in which a row is filled, evenly; no more than its masks, which is also the default: one more a step.
        remask: after a step the least sure of all fillings become masks again, not only those just made.
        temperature: above 0 tokens are drawn, and what is kept is drawn by its sureness too; 0 takes the likeliest.
        top_k: draw from so many of the likeliest tokens; 0 from all.
        inputs: more of the model's inputs, as `token_type_ids`.

    Raises:
        ValueError: the model's config names no mask token, or a setting has a value that means nothing.
    """
    mask_token_id = _mask_token_id(model.config)
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    temperature, top_k = temperature or 0.0, top_k or 0
    if not (0 <= temperature < float("inf")) or top_k < 0:
        raise ValueError(f"temperature {temperature} and top_k {top_k}: must be 0 or above")
    ids = input_ids.clone()
    wanted = ids == mask_token_id
    if attention_mask is not None:
        wanted &= attention_mask.bool()
        inputs["attention_mask"] = attention_mask
    masks = wanted.sum(1)
    row_steps = masks if steps is None else masks.clamp(max=steps)
    never = [number for name, number in vars(model.config).items() if _is_special(name, number)]
    sureness = torch.zeros(ids.shape, device=ids.device)
    for step in range(1, int(row_steps.max()) + 1 if len(ids) else 1):
        open_places = wanted & (ids == mask_token_id)
        logits = _logits_at(model, ids, open_places, inputs)
        logits[:, never] = -torch.inf
        ids[open_places], sureness[open_places] = _choose(logits, temperature, top_k, generator)

        # What is still open after this step: masks fall evenly to none at the row's last one.
        left = (masks * (row_steps - step)).clamp(min=0) // row_steps.clamp(min=1)
        doubt = -sureness
        if temperature > 0:  # the perturbed order of a draw without replacement (Gumbel-top-k), cooling down
            noise = -torch.empty_like(sureness).exponential_(generator=generator).log()
            heat = temperature * (1 - step / row_steps.clamp(min=1)).clamp(min=0)
            doubt = -sureness.clamp(min=1e-9).log() - heat[:, None] * noise
        doubt = doubt.masked_fill(~(wanted if remask else open_places), -torch.inf)
        rank = doubt.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        ids = torch.where(rank < left[:, None], mask_token_id, ids)
    return ids


def add_masks(
    config: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, count: int, inputs: dict
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """`count` masks behind each row's text, in front of a closing separator; padding goes to the right."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    batch_size, length = input_ids.shape
    closing = {config.sep_token_id, config.eos_token_id} - {None}
    ids = input_ids.new_full((batch_size, length + count), config.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    segments = inputs.get("token_type_ids")
    new_segments = torch.zeros_like(ids)
    for row in range(batch_size):
        real = attention_mask[row].bool()
        text = input_ids[row][real]
        end = len(text) - int(len(text) > 0 and text[-1].item() in closing)
        added = text.new_full((count,), _mask_token_id(config))
        ids[row, : len(text) + count] = torch.cat([text[:end], added, text[end:]])
        mask[row, : len(text) + count] = 1
        if segments is not None:
            kind = segments[row][real]
            last = kind[-1:] if len(kind) else new_segments[row, :1]
            new_segments[row, : len(text) + count] = torch.cat([kind, last.expand(count)])
    return ids, mask, inputs if segments is None else {**inputs, "token_type_ids": new_segments}


def _mask_token_id(config: Any) -> int:
    if getattr(config, "mask_token_id", None) is None:
        raise ValueError("the model's config names no mask_token_id, so there is nothing to fill")
    return config.mask_token_id


def _is_special(name: str, number: Any) -> bool:
    return name.endswith("_token_id") and isinstance(number, int)


def _logits_at(model: nn.Module, ids: torch.Tensor, places: torch.Tensor, inputs: dict) -> torch.Tensor:
    """fp32 logits `(places, vocab_size)`; models that take `masked_positions` compute no others."""
    if "masked_positions" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids, masked_positions=places.flatten().nonzero().flatten(), **inputs).logits.float()
    return model(input_ids=ids, **inputs).logits[places].float()


def _choose(
    logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row of logits, and its probability under the model."""
    probabilities = logits.softmax(-1)
    if temperature > 1e-6:  # logits divided by less are infinite
        if top_k:
            least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        tokens = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
    else:
        tokens = probabilities.argmax(-1, keepdim=True)
    return tokens[:, 0], probabilities.gather(1, tokens)[:, 0]
