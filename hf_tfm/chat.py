"""A conversation with a causal LM on the terminal, its answers shown as they are made."""

from collections.abc import Callable
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, set_seed

from .errors import InputError


HELP = "/new begins a new conversation, /quit (or Ctrl-D) ends; Ctrl-C stops an answer"


class Chat:
    """
    A conversation.

    Args:
        model, tokenizer: of a causal LM; the tokenizer has a chat template.
        system: what stands in front of the conversation.
        max_new_tokens: of an answer.
        sampling: as `generate` takes it; what is not given is the model's own.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        max_new_tokens: int = 256,
        **sampling: Any,
    ):
        if not tokenizer.chat_template:
            raise InputError("this tokenizer has no chat template, so the model was not made for conversations")
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = []

    def ask(self, text: str) -> str:
        """
        The answer, printed as it is made. Interrupted, what there is of it stays in the conversation.

        Raises:
            InputError: the message alone is too long for the model, or the template refuses the conversation.
        """
        before = list(self.turns)
        self.turns.append({"role": "user", "content": text})
        try:
            prompt, room = self._prompt()
        except InputError:
            self.turns = before
            raise
        streamer = _Printer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        try:
            with torch.inference_mode():
                self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    streamer=streamer,
                    max_new_tokens=min(self.max_new_tokens, room),
                    pad_token_id=self.tokenizer.pad_token_id,
                    **self.sampling,
                )
        except KeyboardInterrupt:
            print(flush=True)
        answer = "".join(streamer.pieces).strip()
        self.turns.append({"role": "assistant", "content": answer})
        return answer

    def _prompt(self) -> tuple[torch.Tensor, int]:
        """The conversation's ids and how many tokens are left; the oldest turns are forgotten where it is too long."""
        longest = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20
        while True:
            try:
                ids = self.tokenizer.apply_chat_template(
                    [*self.system, *self.turns], add_generation_prompt=True, return_dict=True, return_tensors="pt"
                )["input_ids"]
            except TemplateError as error:
                raise InputError(f"the chat template refuses this conversation: {error}") from None
            room = longest - ids.shape[1]
            if room >= min(self.max_new_tokens, longest // 4):
                return ids.to(self.model.device), room
            if len(self.turns) == 1:
                if room > 0:
                    return ids.to(self.model.device), room
                raise InputError(f"this message has {ids.shape[1]} tokens; the model reads {longest}")
            del self.turns[:2]


class _Printer(TextStreamer):
    """Shows text as it comes, and keeps it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        super().on_finalized_text(text, stream_end)


def talk(chat: Chat, seed: int = 0, read: Callable[[str], str] = input) -> None:
    """Read messages and answer them until the reader ends."""
    set_seed(seed)
    print(HELP)
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/quit":
            return
        if text == "/new":
            chat.turns.clear()
        elif text.startswith("/"):
            print(HELP)
        elif text:
            try:
                chat.ask(text)
            except InputError as error:
                print(f"error: {error}")
