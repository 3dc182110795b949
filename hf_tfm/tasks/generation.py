"""Generating text with a causal LM: sampling options, text streamed piece by piece, and replies to many prompts."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)

from .. import cpu
from ..core.errors import InputError
from ..core.inference import evaluation_mode, unwrap_adapter
from ..core.limits import longest_input, refuse_unknown_tokens


def sampling_options(
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    beams: int | None = None,
) -> dict[str, Any]:
    """
    Return the arguments of `generate` for these settings; None leaves the model's own setting.

    Temperature 0 (or below a millionth) is greedy search whatever else is set; any other temperature, top-k, top-p or
    min-p samples. Several beams search without sampling unless one of these is set.
    """
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    options: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if temperature is not None and temperature < 1e-6:  # logits divided by less are infinite
        options = {"do_sample": False}
    elif options:
        options["do_sample"] = True
    elif beams is not None and beams > 1:
        options["do_sample"] = False
    if repetition_penalty is not None:
        options["repetition_penalty"] = repetition_penalty
    if beams is not None:
        options["num_beams"] = beams
    return options


def encode_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[torch.Tensor, int]:
    """
    Return the token ids `(1, length)` of a text to continue, and how many tokens may follow.

    Raises:
        InputError: the prompt has no tokens, leaves no room, or has tokens that the model does not know.
    """
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    if ids.numel() == 0:
        raise InputError("the prompt is empty and this tokenizer begins texts with nothing; give a word")
    refuse_unknown_tokens(model, ids)
    max_length = longest_input(model.config)
    if ids.shape[1] >= max_length:
        raise InputError(f"the prompt leaves no room: it has {ids.shape[1]} tokens and the model reads {max_length}")
    return ids.to(model.device), max_length - ids.shape[1]


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    skip_prompt: bool = True,
    **options: Any,
) -> Iterator[str]:
    """
    Yield text while `generate` produces it; a beam search, which decides at its end, yields a single piece.

    The model runs in a thread of its own. Closing or interrupting the iterator stops the model after the current token.

    Args:
        input_ids: the prompt, `(1, length)`.
        skip_prompt: leave the prompt out of the text.
        options: arguments of `generate`.
    """
    options |= {"attention_mask": torch.ones_like(input_ids), "pad_token_id": tokenizer.pad_token_id}
    beams = options.get("num_beams") or model.generation_config.num_beams or 1
    if beams > 1:
        [ids] = cpu.generate(model, input_ids, **options)
        yield tokenizer.decode(ids[input_ids.shape[1] if skip_prompt else 0 :], skip_special_tokens=True)
        return
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
    stop = _StopOnRequest()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            cpu.generate(model, input_ids, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop]), **options)
        except BaseException as error:  # raised again in the reader's thread
            failures.append(error)
        finally:
            streamer.text_queue.put(streamer.stop_signal)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        stop.requested.set()
        thread.join()
    if failures:
        raise failures[0]


class _StopOnRequest(StoppingCriteria):
    """Ends generation once `requested` is set."""

    def __init__(self) -> None:
        self.requested = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.requested.is_set(), dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def neutral_generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> Iterator[PreTrainedModel]:
    """
    Replace the model's generation settings, such as penalties and minimum lengths, by `options` inside the block.

    Only the special tokens of the model's own settings remain. Yields the model without its adapter's wrapper.
    """
    model = unwrap_adapter(model)
    original = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=original.bos_token_id,
        eos_token_id=original.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,  # Trainer switches it off in the model's configuration
        **options,
    )
    try:
        yield model
    finally:
        model.generation_config = original


class Reply(NamedTuple):
    """A model's reply to a prompt; `finished` if the model ended it before it was cut at the maximum length."""

    text: str
    finished: bool


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    batch_size: int = 16,
) -> list[Reply]:
    """
    Return the greedy continuation of each prompt, in the order of the prompts.

    Args:
        prompts: token ids; a prompt that fills the model gets an empty reply.
        max_new_tokens: length at which a reply is cut.
        batch_size: prompts per batch, those of similar length together; replies do not depend on it.
    """
    replies = [Reply("", False)] * len(prompts)
    queue = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    max_length = longest_input(model.config)
    with evaluation_mode(model), neutral_generation_config(model, tokenizer, do_sample=False) as generator:
        eos = generator.generation_config.eos_token_id
        eos_ids = eos if isinstance(eos, list) else [eos]
        while queue:
            length = len(prompts[queue[0]])
            room = min(max_new_tokens, max_length - length)
            # Prompts that the model's positions cut short go one by one, so that none is cut because of another.
            batch = queue[: batch_size if room == max_new_tokens else 1]
            del queue[: len(batch)]
            if room < 1:
                continue
            generator.generation_config.max_new_tokens = room
            lengths = torch.tensor([len(prompts[number]) for number in batch], device=model.device)
            rows = [[tokenizer.pad_token_id] * (length - len(prompts[n])) + list(prompts[n]) for n in batch]
            generated = cpu.generate(
                generator,
                torch.tensor(rows, device=model.device),
                attention_mask=(torch.arange(length, device=model.device) >= length - lengths[:, None]).long(),
            )[:, length:]
            for number, ids in zip(batch, generated.tolist()):
                end = next((place for place, token in enumerate(ids) if token in eos_ids), None)
                text = tokenizer.decode(ids[:end], skip_special_tokens=True)
                replies[number] = Reply(text.strip(), end is not None)
    return replies


def sample_continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, seed: int) -> str:
    """Return the prompt with 80 sampled tokens, or as many as the model has positions for."""
    set_seed(seed)
    try:
        ids, max_new_tokens = encode_prompt(model, tokenizer, prompt)
    except InputError:  # the prompt fills all positions
        return prompt
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": min(80, max_new_tokens)}
    return tokenizer.decode(cpu.generate(model, ids, **options)[0], skip_special_tokens=True)
