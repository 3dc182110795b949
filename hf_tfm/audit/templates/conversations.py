"""Conversations of a run or of a file, and a chat template that writes them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


SAMPLED_CONVERSATIONS = 200


@dataclass(frozen=True)
class Conversation:
    """
    A conversation of the data.

    Attributes:
        messages: Its messages, as the template reads them.
        tools: Tools that it may call, or None.
        where: Its place, such as "record 3".
        options: Further variables for the template.
        is_prompt: Whether an answer is generated for it, so that it has none.
    """

    messages: list[dict[str, Any]]
    tools: Any = None
    where: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    is_prompt: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template that a run uses: the tokenizer's, or another one given by `text`."""

    tokenizer: Any
    text: str | None = None

    @property
    def source(self) -> str:
        """The template as text; the default one if the tokenizer has several; empty if there is none."""
        template = self.text or getattr(self.tokenizer, "chat_template", None) or ""
        return template.get("default", "") if isinstance(template, dict) else template

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **options: Any) -> str:
        """Returns a conversation as text. Raises whatever the template raises."""
        if self.text is not None:
            options["chat_template"] = self.text
        return str(self.tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **options))

    def try_render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **options: Any) -> str | None:
        """Returns a conversation as text; None if the template refuses it."""
        try:
            return self.render(messages, tools, **options)
        except Exception:  # a template may raise anything
            return None

    def write(self, conversation: Conversation, messages: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Returns a conversation as text, perhaps with other messages. Raises whatever the template raises."""
        return self.render(
            conversation.messages if messages is None else messages,
            conversation.tools,
            add_generation_prompt=conversation.is_prompt,
            **conversation.options,
        )

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a rendered text."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages with roles."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def read_conversations(records: Iterable[Mapping[str, Any]], place: str = "record") -> list[Conversation]:
    """
    Returns the conversations of records.

    A record has `messages`, or `prompt` with `completion`, or `chosen` and `rejected` with or without `prompt`, or
    `prompt` alone, which is answered in training.
    """
    conversations = []
    for number, record in enumerate(records, 1):
        tools = record.get("tools") or None
        options = record.get("chat_template_kwargs") or {}
        tools = json.loads(tools) if isinstance(tools, str) else tools
        where = str(record.get("where") or f"{place} {number}")
        prompt = record.get("prompt")
        start = list(prompt or ()) if is_messages(prompt) else []
        answered = [
            start + list(answer)
            for answer in map(record.get, ("completion", "chosen", "rejected"))
            if answer is not None and is_messages(answer)
        ]
        if is_messages(record.get("messages")):
            conversations.append(Conversation(list(record["messages"]), tools, where, options))
        elif answered:
            conversations += [Conversation(messages, tools, where, options) for messages in answered]
        elif start:
            is_prompt = start[-1]["role"] in ("user", "tool")
            conversations.append(Conversation(start, tools, where, options, is_prompt))
    return conversations
