"""Messages of conversations, in the shape that chat templates read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


# role (one of `ROLES`) and content (text); perhaps tool_calls with arguments as a mapping, tool_call_id, name,
# reasoning_content, and weight 0 if the message is not trained.
Message = dict[str, Any]
# Tools in the shape {"type": "function", "function": {"name": …, "parameters": …}}.
Tools = Sequence[Mapping[str, Any]] | None
ROLES = ("system", "user", "assistant", "tool")


def up_to_answer(messages: Sequence[Message]) -> list[Message]:
    """Returns a conversation without its last turn if that is the assistant's."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" and len(messages) > 1 else messages)


def texts_in(value: Any) -> Iterator[str]:
    """Yields all texts in a value: in mappings (their keys, too) and lists at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from texts_in(name)
            yield from texts_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts_in(part)


def conversation_key(messages: Sequence[Message]) -> str:
    """Returns what people and tools say in a conversation, as one text without case and spacing."""
    prompts = (message["content"] for message in messages if message["role"] != "assistant")
    return " ".join("\n".join(prompts).casefold().split())
