"""Messages of conversations, in the shape that chat templates read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.errors import InputError


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


def read_prompt(record: Mapping[str, Any], place: str) -> list[Message]:
    """Returns the prompt: `prompt` (text or messages), `question`, `instruction` with `input`, or `messages`."""
    if "messages" in record:
        return up_to_answer(read_messages(record["messages"], f"{place}: messages"))
    name = next((name for name in ("prompt", "instruction", "question") if name in record), None)
    if name is None:
        names = ", ".join(map(str, record)) or "nothing"
        raise InputError(f"{place}: fields are {names}; give prompt, instruction, question or messages")
    if isinstance(record[name], (list, tuple)):
        return read_messages(record[name], f"{place}: {name}")
    text = text_of(record[name], f"{place}: field {name!r}")
    if name == "instruction" and not _is_missing(record.get("input")):
        text += "\n\n" + text_of(record["input"], f"{place}: field 'input'")
    return [{"role": "user", "content": text}]


def read_messages(value: Any, place: str) -> list[Message]:
    """Returns checked messages with role and content. Raises `InputError` naming `place` and the message."""
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{place}: must be a list of messages with role and content, not {value!r:.60}")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(f"{place}: message {number} is {message!r:.60}, it needs role and content")
        if message["role"] not in ROLES:
            raise InputError(f"{place}: message {number} has role {message['role']!r}, not one of {', '.join(ROLES)}")
        content = text_of(message["content"], f"{place}: message {number}: content")
        messages.append({"role": message["role"], "content": content})
    return messages


def text_of(value: Any, place: str) -> str:
    """Returns a text that is not blank. Raises `InputError` naming `place` for any other value."""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{value!r:.40}, not text"
        raise InputError(f"{place} is {kind}; mend or drop this record")
    if not value.strip():
        raise InputError(f"{place} is blank; mend or drop this record")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{place} has half of a surrogate pair; mend or drop this record")
    return value


def _is_missing(value: Any) -> bool:
    """Whether an optional field is missing, null (NaN in tables) or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
