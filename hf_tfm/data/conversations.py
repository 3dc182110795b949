"""Reads conversations from records: the forms of chat and instruction data as lists of messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import InputError
from .records import Records


Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")
# Fields of each form of record: prompt, addition to the prompt, answer.
_FORMS = (
    ("instruction", "input", "output"),
    ("prompt", None, "response"),
    ("prompt", None, "completion"),
    ("prompt", None, "output"),
)


def read_conversations(records: Records) -> list[list[Message]]:
    """
    Returns the messages of records with `messages`, `prompt` and `response`, or `instruction`, `input` and `output`.

    Raises:
        InputError: A field is missing or blank, or a turn is malformed; the message names the record.
    """
    conversations = []
    for record, place in zip(records, records.places):
        if "messages" in record:
            conversations.append(read_messages(record["messages"], f"{place}: messages"))
            if not any(message["role"] == "assistant" for message in conversations[-1]):
                raise InputError(f"{place}: no message of the assistant, so nothing to train on; mend or drop it")
            continue
        form = next((form for form in _FORMS if form[0] in record and form[2] in record), None)
        if form is None:
            names = ", ".join(map(str, record)) or "nothing"
            raise InputError(
                f"{place}: fields are {names}; give messages, or prompt and response, or instruction, input and output"
            )
        answer = {"role": "assistant", "content": text_of(record[form[2]], f"{place}: field {form[2]!r}")}
        conversations.append([*read_prompt(record, place), answer])
    return conversations


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


def up_to_answer(messages: Sequence[Message]) -> list[Message]:
    """Returns a conversation without its last turn if that is the assistant's."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" and len(messages) > 1 else messages)


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
