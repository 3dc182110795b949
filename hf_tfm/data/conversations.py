"""Conversations out of records: the forms that chat and instruction data have, as lists of messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import InputError
from .records import Records


Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")
# Names of fields, by shape of the record: prompt, what is added to it, answer.
_SHAPES = (
    ("instruction", "input", "output"),
    ("prompt", None, "response"),
    ("prompt", None, "completion"),
    ("prompt", None, "output"),
)


def read_conversations(records: Records) -> list[list[Message]]:
    """
    The messages of records with `messages`, `prompt` and `response`, or `instruction`, `input` and `output`.

    Raises:
        InputError: a field is missing or blank, or a turn is malformed; the message names the record.
    """
    conversations = []
    for record, place in zip(records, records.places):
        if "messages" in record:
            conversations.append(read_messages(record["messages"], f"{place}: messages"))
            if not any(message["role"] == "assistant" for message in conversations[-1]):
                raise InputError(f"{place}: no message of the assistant, so nothing to train on; mend or drop it")
            continue
        shape = next((shape for shape in _SHAPES if shape[0] in record and shape[2] in record), None)
        if shape is None:
            there = ", ".join(map(str, record)) or "nothing"
            raise InputError(
                f"{place}: fields are {there}; give messages, or prompt and response, or instruction, input and output"
            )
        answer = {"role": "assistant", "content": text_of(record[shape[2]], f"{place}: field {shape[2]!r}")}
        conversations.append([*read_prompt(record, place), answer])
    return conversations


def read_prompt(record: Mapping[str, Any], place: str) -> list[Message]:
    """What an answer follows on: `prompt` (text or messages), `question`, `instruction` with `input`, or `messages`."""
    if "messages" in record:
        return up_to_answer(read_messages(record["messages"], f"{place}: messages"))
    name = next((name for name in ("prompt", "instruction", "question") if name in record), None)
    if name is None:
        there = ", ".join(map(str, record)) or "nothing"
        raise InputError(f"{place}: fields are {there}; give prompt, instruction, question or messages")
    if isinstance(record[name], (list, tuple)):
        return read_messages(record[name], f"{place}: {name}")
    text = text_of(record[name], f"{place}: field {name!r}")
    if name == "instruction" and not _is_nothing(record.get("input")):
        text += "\n\n" + text_of(record["input"], f"{place}: field 'input'")
    return [{"role": "user", "content": text}]


def up_to_answer(messages: Sequence[Message]) -> list[Message]:
    """A conversation without the assistant's last turn, if it ends with that."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" and len(messages) > 1 else messages)


def read_messages(value: Any, where: str) -> list[Message]:
    """Checked messages: role and content of each. Raises `InputError` naming `where` and the message."""
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: must be a list of messages with role and content, not {value!r:.60}")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError(f"{where}: message {number} is {message!r:.60}, it needs role and content")
        if message["role"] not in ROLES:
            raise InputError(f"{where}: message {number} has role {message['role']!r}, not one of {', '.join(ROLES)}")
        content = text_of(message["content"], f"{where}: message {number}: content")
        messages.append({"role": message["role"], "content": content})
    return messages


def text_of(value: Any, where: str) -> str:
    """A text that says something. Raises `InputError` naming `where` if it is none."""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{value!r:.40}, not text"
        raise InputError(f"{where} is {kind}; mend or drop this record")
    if not value.strip():
        raise InputError(f"{where} is blank; mend or drop this record")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where} has half of a surrogate pair; mend or drop this record")
    return value


def _is_nothing(value: Any) -> bool:
    """An `input` left open: missing, null (NaN from a table), or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
