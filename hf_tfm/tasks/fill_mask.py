"""The tokens that a masked LM predicts for the masks of a text."""

import contextlib
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.limits import longest_input, refuse_unknown_tokens


def fill_masks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, top: int = 5
) -> list[list[tuple[str, float]]]:
    """
    Return the `top` likeliest tokens for each mask with their probabilities, the likeliest first.

    Raises:
        InputError: the tokenizer has no mask token, the text has none or is too long, or the model does not know one of
            its tokens.
    """
    if tokenizer.mask_token is None:
        raise InputError("this model's tokenizer has no mask token, so it was not made for masks")
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    refuse_unknown_tokens(model, inputs["input_ids"])
    max_length = longest_input(model.config)
    if (length := inputs["input_ids"].shape[1]) > max_length:
        raise InputError(f"the text is too long: it has {length} tokens and the model reads {max_length}")
    masked = inputs["input_ids"][0] == tokenizer.mask_token_id
    if not masked.any():
        raise InputError(f"the text has no mask; write {tokenizer.mask_token} where a token is to be found")
    with torch.inference_mode():
        outputs = model(**inputs)
    # BERT's pretraining class returns the logits of tokens and of the next sentence under names of their own.
    logits = outputs["prediction_logits" if "prediction_logits" in outputs else "logits"]
    probabilities, ids = logits[0, masked].float().softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        [(tokenizer.decode([token]), probability) for token, probability in zip(*candidates)]
        for candidates in zip(ids.tolist(), probabilities.tolist())
    ]


def describe_masks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[str]:
    """Return a line for each sentence with `{}` for its mask: the sentence, and the three likeliest tokens."""
    lines = []
    for masked in (sentence.format(tokenizer.mask_token) for sentence in sentences):
        with contextlib.suppress(InputError):  # too long for a model of few positions
            [candidates] = fill_masks(model.eval(), tokenizer, masked, 3)
            tokens = ", ".join(f"{token.strip()} ({share:.0%})" for token, share in candidates)
            lines.append(f"{masked}  →  {tokens}")
    return lines
