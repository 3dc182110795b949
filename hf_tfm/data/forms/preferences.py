"""Forms of preferences: a prompt with a better and a worse answer, as texts or as messages."""

import re
from collections.abc import Sequence
from typing import Any

from ..conversations import Message
from ..tables import BadRow
from .form import FormRow, NoRecord, Record, Sample, check_text, explains, rows
from .turns import UNPAIRED, is_turns, read_prompt, read_tools, read_turns, with_system


SIDES = ("chosen", "rejected")
_FIELDS = {
    "chosen": ("chosen", "chosen_messages", "chosen_response", "chosen_answer"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "rejected_answer"),
}
_OPTIONAL = {
    "prompt": ("prompt", "question", "instruction", "query", "problem", "input", "messages", "conversations"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_EXAMPLE = {
    "prompt": [{"role": "user", "content": "Why?"}],
    "chosen": [{"role": "assistant", "content": "So."}],
    "rejected": [{"role": "assistant", "content": "No idea."}],
}


def is_dialogue(value: Any) -> bool:
    """Whether a text has turns that begin with Human: and Assistant:."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def read_dialogue(text: str, row: FormRow) -> list[Message]:
    """Returns the turns of a text; an empty one at its end is left out, as in prompts that end with `Assistant:`."""
    parts = _TURN.split(text.strip())
    turns = [{"role": role.casefold(), "content": content.strip()} for role, content in zip(parts[1::2], parts[2::2])]
    if turns and not turns[-1]["content"]:
        turns.pop()
    return read_turns(turns, row)


# Decorators are applied from the bottom up, which is the order in which these forms are tried.
@rows(
    "preferences",
    "pairs",
    "`chosen` and `rejected`, answers or whole conversations, texts or messages; `prompt`, text or messages",
    _FIELDS,
    optional=_OPTIONAL,
    shape=lambda values: all(isinstance(values[side], str) or is_turns(values[side]) for side in SIDES),
    example={"train.jsonl": '{"prompt": "Why?", "chosen": "So.", "rejected": "No idea.", "chosen_score": 9}\n'},
    gives=[_EXAMPLE],
)
@rows(
    "preferences",
    "dialogues",
    "HH-RLHF's whole dialogues as texts with turns that begin with `Human:` and `Assistant:`",
    _FIELDS,
    optional=_OPTIONAL,
    shape=lambda values: (
        is_dialogue(values.get("prompt")) or (is_dialogue(values["chosen"]) and is_dialogue(values["rejected"]))
    ),
    example={
        "train.jsonl": '{"chosen": "\\n\\nHuman: Why?\\n\\nAssistant: So.", '
        '"rejected": "\\n\\nHuman: Why?\\n\\nAssistant: No idea."}\n'
    },
    gives=[_EXAMPLE],
)
def read_pair(row: FormRow) -> Record:
    chosen, rejected = (read_side(row, side) for side in SIDES)
    if not _equal(chosen[:-1], rejected[:-1]):
        raise BadRow("both answers have other turns before them; they must differ in their last message only")
    if _equal(chosen, rejected):
        raise NoRecord("both answers are the same")
    prompt = with_system(merge(_prompt(row), chosen[:-1]), row)
    tools = read_tools(row.get("tools"), row.sample)
    for message in (*prompt, chosen[-1], rejected[-1]):
        message.pop("weight", None)
        tools = read_tools(message.pop("tools", None), row.sample) or tools
    if all(message["role"] == "system" for message in prompt):
        raise BadRow("nothing is asked: there is neither a prompt nor a conversation before the answers")
    if prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with an answer")
    record = {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}
    return record | ({"tools": tools} if tools else {})


def _prompt(row: FormRow) -> list[Message]:
    value = row.get("prompt")
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return read_dialogue(value, row) if is_dialogue(value) else read_prompt(row)


def read_side(row: FormRow, side: str) -> list[Message]:
    """Returns the messages that end with an answer; a text is an answer without messages before it."""
    value = row[side]
    if isinstance(value, str) and is_dialogue(value):
        messages = read_dialogue(value, row)
    elif is_turns(value):
        messages = read_turns(value, row)
    else:
        text = check_text(value, f"field {row.names[side]!r}")
        # Behind a text that ends with `Assistant:`, a blank separates.
        return [{"role": "assistant", "content": text.strip() if is_dialogue(row.get("prompt")) else text}]
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"field {row.names[side]!r} ends with the {messages[-1]['role']}, not with an answer")
    return messages


def merge(prompt: list[Message], context: list[Message]) -> list[Message]:
    """
    Returns the conversation before the answers, of which the prompt is a part, or which is a part of the prompt.

    Raises:
        BadRow: They do not overlap, and the one cannot follow the other.
    """
    (system, asked), (other, before) = _split_system(prompt), _split_system(context)
    if system and other and not _equal(system, other):
        raise BadRow("the prompt and the conversation before the answers have different system prompts")
    system = system or other
    if asked and asked[-1]["role"] == "assistant" and _equal(asked[:-1], before):
        return [*system, *before]
    longer, shorter = (before, asked) if len(before) >= len(asked) else (asked, before)
    size = len(shorter)
    if _equal(longer[:size], shorter) or _equal(longer[len(longer) - size :], shorter):
        return [*system, *longer]
    if asked[-1]["role"] == "assistant" and before[0]["role"] == "user":
        return [*system, *asked, *before]
    raise BadRow("the prompt is no part of the conversation before the answers, and cannot stand before it")


def _split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    count = int(bool(messages) and messages[0]["role"] == "system")
    return messages[:count], messages[count:]


def _equal(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether messages say the same, whatever their blanks."""
    return [_plain(message) for message in one] == [_plain(message) for message in other]


def _plain(message: Message) -> dict[str, Any]:
    fields = {name: value for name, value in message.items() if name not in ("weight", "tools")}
    return {**fields, "content": message["content"].split()}


@explains("preferences")
def explain_unpaired(sample: Sample) -> str | None:
    """KTO's records: one answer with a label."""
    has_answer = any(name in sample.columns for name in ("completion", "response", "answer", "messages"))
    labels = [row["label"] for row in sample.rows if row.get("label") is not None]
    is_label = bool(labels) and all(str(label).casefold() in ("true", "false", "0", "1") for label in labels)
    return f"these are {UNPAIRED}" if has_answer and is_label else None
