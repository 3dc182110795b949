"""Chatting with a causal LM in the terminal; answers are printed as they are generated."""

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
    A conversation with a causal LM.

    Args:
        model, tokenizer: a causal LM and its tokenizer, which must have a chat template.
        system: system message.
        max_new_tokens: maximum number of tokens of an answer.
        sampling: options of `generate`; by default the model's own.

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
            raise InputError("this tokenizer has no chat template, so the model was not trained for conversations")
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = []

    def ask(self, text: str) -> str:
        """
        Print the answer as it is generated, and return it.

        An answer that is interrupted by Ctrl-C stays in the conversation as far as it was generated.

        Raises:
            InputError: the message alone is too long for the model, the model lacks embeddings for its tokens, or the
                template refuses the conversation.
        """
        try:
            for piece in self.stream(text):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        print(flush=True)
        return self.turns[-1]["content"]

    def stream(self, text: str) -> Iterator[str]:
        """Yield the answer in pieces; it joins the conversation when the iterator ends or is closed."""
        earlier_turns = list(self.turns)
        self.turns.append({"role": "user", "content": text})
        try:
            prompt, room = self._prompt()
        except InputError:
            self.turns = earlier_turns
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
        """Return the ids of the conversation, without its oldest turns if it is too long, and the tokens left."""
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
    """Read messages and answer them until the input ends. Raises `InputError` for bytes that are not text."""
    set_seed(seed)
    print(HELP)
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            raise InputError(f"the input contains bytes that are not text in {error.encoding}") from None
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
