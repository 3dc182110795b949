"""A conversation with a causal LM on the terminal, its answers shown as they are made."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..core.errors import InputError
from ..core.limits import longest_input, refuse_unknown_tokens
from ..tasks.generation import stream_text


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
            InputError: the message alone is too long for the model or has tokens that it does not know, or the template
                refuses the conversation.
        """
        try:
            for piece in self.stream(text):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        print(flush=True)
        return self.turns[-1]["content"]

    def stream(self, text: str) -> Iterator[str]:
        """The answer in pieces, as [`ask`] prints it; the turn is kept when the iterator ends or is closed."""
        before = list(self.turns)
        self.turns.append({"role": "user", "content": text})
        try:
            prompt, room = self._prompt()
        except InputError:
            self.turns = before
            raise
        pieces: list[str] = []
        try:
            for piece in stream_text(
                self.model, self.tokenizer, prompt, max_new_tokens=min(self.max_new_tokens, room), **self.sampling
            ):
                pieces.append(piece)
                yield piece
        finally:
            self.turns.append({"role": "assistant", "content": "".join(pieces).strip()})

    def _prompt(self) -> tuple[torch.Tensor, int]:
        """The conversation's ids and how many tokens are left; the oldest turns are forgotten where it is too long."""
        longest = longest_input(self.model.config)
        while True:
            try:
                ids = self.tokenizer.apply_chat_template(
                    [*self.system, *self.turns], add_generation_prompt=True, return_dict=True, return_tensors="pt"
                )["input_ids"]
                refuse_unknown_tokens(self.model, ids)
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


def talk(chat: Chat, seed: int = 0, read: Callable[[str], str] = input) -> None:
    """Read messages and answer them until the reader ends. Raises `InputError` where it reads what is no text."""
    set_seed(seed)
    print(HELP)
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            raise InputError(f"what is read holds bytes that are no text in {error.encoding}") from None
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
