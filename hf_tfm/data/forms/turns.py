"""Turns of conversations in any shape, as messages: roles and their aliases, contents, calls of tools, weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..conversations import ROLES, Message
from ..records import read_list
from ..tables import BadRow
from .form import FormRow, NoRecord, Record, Sample, check_text, is_missing


# Other names of roles, in small letters. A call of a tool is the assistant's.
_ROLES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter", "input"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "agent", "bing", "bard", "claude", "output"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "tool_result", "ipython"), "tool"),
    "developer": "system",
}
_CALLS = ("function_call", "tool_call", "tool_calls")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_WEIGHT_KEYS = ("weight", "train", "trainable", "training", "loss")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_REASONING = "reasoning_content"
# Fields that change what is trained in a way that is not known here.
_REFUSED_KEYS = ("train_detail", "training_detail", "loss_scale", "images", "image", "audio", "audios", "videos")
_TEXT_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
UNPAIRED = "unpaired preferences (KTO, an answer with a label each), which no script here reads; TRL's KTOTrainer does"
_NO_ANSWER = "no message of the assistant, so nothing to train on"
_BLANK_INPUTS = ("<noinput>", "noinput", "<no input>")


def parse(value: Any, what: str) -> Any:
    """Returns a value, or what a text holds in the syntax of JSON or Python. Raises `BadRow` if it holds neither."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        if (entries := read_list(value)) is not None:
            return entries
    raise BadRow(f"{what} are text that is no JSON", f"{value!r:.60}")


def is_turns(value: Any, key: str | None = None) -> bool:
    """Whether a value has the shape of turns, or the text of a cell does; `key` must be a field of each."""
    if isinstance(value, str):
        value = read_list(value) if value.lstrip().startswith("[") else None
    turns = as_turns(value)
    keys = _ROLE_KEYS if key is None else (key,)
    return bool(turns) and all(isinstance(turn, Mapping) and any(key in turn for key in keys) for turn in turns)


def as_turns(value: Any) -> list[Any]:
    """Returns a list of turns: a single one, or lists by field, as some Parquet files have them, become a list."""
    if isinstance(value, Mapping):
        if any(isinstance(part, (list, tuple)) for part in (value.get(key) for key in _ROLE_KEYS)):
            return [dict(zip(value, parts)) for parts in zip(*value.values())]
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else []


def read_turns(value: Any, row: FormRow) -> list[Message]:
    """
    Returns turns as messages.

    Raises:
        BadRow: A turn has no role, or one that is not known, or no content, or something that cannot be read.
    """
    turns = as_turns(parse(value, "the messages") if isinstance(value, str) else value)
    if not turns:
        raise BadRow("there are no messages", f"{value!r:.40}")
    messages = []
    for number, turn in enumerate(turns, 1):
        try:
            message = _read_turn(turn, row.sample)
        except BadRow as error:
            detail = "" if error.detail == error.kind else f": {error.detail}"
            raise BadRow(error.kind, f"message {number}{detail}") from None
        if message is not None:
            messages.append(message)
    return messages


def _read_turn(turn: Any, sample: Sample) -> Message | None:
    """Returns a turn as a message, None if nothing remains of it."""
    if not isinstance(turn, Mapping):
        raise BadRow("a message has no role and content", f"{turn!r:.60}")
    ignored = sample.reading.options.ignore_fields
    fields = {name: value for name, value in turn.items() if not is_missing(value) and name not in ignored}
    name = next((fields.pop(key) for key in _ROLE_KEYS if key in fields), None)
    if name is None:
        raise BadRow("a message has no role and content", f"{turn!r:.60}")
    alias = str(name).strip().casefold()
    role = _ROLES.get(alias)
    if role is None:
        raise BadRow(f"a message has role {name!r:.40}, not one of {', '.join(ROLES)}")
    if alias != role:
        _note_role(sample, str(name), role)
    content = next((fields.pop(key) for key in _CONTENT_KEYS if key in fields), None)
    reasoning = [str(fields.pop(key)) for key in _REASONING_KEYS if key in fields]
    content, thoughts = read_parts(content, role)
    calls: list[dict[str, Any]] = []
    if alias in _CALLS:
        if "tool_calls" not in ignored:
            calls = read_calls(content, sample)
        content = ""
    for key in _CALLS:
        if key in fields:
            calls += read_calls(fields.pop(key) or [], sample)
    if "tool_calls" in ignored and (role == "tool" or (role == "assistant" and not content)):
        return None
    message: Message = {"role": role, "content": "" if content is None else content}
    thoughts = "\n".join(filter(str.strip, (*reasoning, thoughts)))
    if role == "assistant" and thoughts:
        message[_REASONING] = thoughts
    if calls and role != "assistant":
        raise BadRow(f"a message of the {role} calls tools")
    if calls:
        message["tool_calls"] = calls
    elif content is None:
        raise BadRow("a message has no content")
    elif not content.strip() and role == "system":
        sample.count("empty system prompt left out")
        return None
    elif role != "tool":
        check_text(content, "the content of a message")
    _copy_names(message, fields)
    if not _read_weight(fields, role, sample):
        message["weight"] = 0
    if "tools" in fields:
        message["tools"] = fields.pop("tools")
    for key in fields:
        if key in _REFUSED_KEYS and fields[key] not in ([], ""):
            raise BadRow(f"a message has {key!r}, which cannot be read; leave it out with --ignore_fields {key}")
        sample.count(f"field {key!r} of a message is not used")
    return message


def _note_role(sample: Sample, alias: str, role: str) -> None:
    """Say all roles that are read as others in one line."""
    before = next((note for note in sample.notes if note.startswith("roles: ")), None)
    if before is None:
        sample.note(f"roles: {alias} → {role}")
    elif f" {alias} →" not in before:
        sample.notes[sample.notes.index(before)] = f"{before}, {alias} → {role}"


def _copy_names(message: Message, fields: dict[str, Any]) -> None:
    """Move what relates calls and results of tools from a turn's fields to the message."""
    for key in ("name", "tool_call_id") if message["role"] == "tool" else ():
        if key in fields:
            message[key] = str(fields.pop(key))


def _read_weight(fields: dict[str, Any], role: str, sample: Sample) -> bool:
    """Takes a turn's weight from its fields, and returns whether it is trained. Other weights than 0 and 1 are bad."""
    is_trained = True
    for key in _WEIGHT_KEYS:
        if key not in fields:
            continue
        value = fields.pop(key)
        number = {"true": 1.0, "false": 0.0}.get(str(value).strip().casefold())
        if number is None:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = -1.0
        if number not in (0.0, 1.0):
            raise BadRow(f"a message has a {key} other than 0 and 1, which cannot be honoured", f"{value!r:.30}")
        if role == "assistant":
            is_trained = is_trained and bool(number)
            if not number:
                sample.count(f"message with {key} 0 is not trained")
        elif number:
            sample.count(f"{key} 1 of the role {role} has no effect: the assistant is trained (--train_on)")
    return is_trained


def read_parts(content: Any, role: str) -> tuple[str | None, str]:
    """Returns a content, a text or parts with texts, as one text, and the reasoning among its parts."""
    if role == "tool" and (content is None or isinstance(content, Mapping)):
        return "" if content is None else json.dumps(content, ensure_ascii=False), ""
    if isinstance(content, Mapping):
        content = [content]
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, (list, tuple)):
        if isinstance(content, (int, float)):
            return str(content), ""
        raise BadRow("the content of a message is neither text nor parts of text", f"{content!r:.40}")
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("thinking", "reasoning") and isinstance(part.get(kind, part.get("text")), str):
            thoughts.append(part.get(kind, part.get("text")))
        elif role == "tool":
            return json.dumps(content, ensure_ascii=False), ""
        else:
            raise BadRow(f"the content of a message has a part of type {kind!r}; only text can be read")
    return "".join(texts), "\n".join(thoughts)


def read_calls(value: Any, sample: Sample) -> list[dict[str, Any]]:
    """Returns calls of tools in OpenAI's shape, with their arguments as mappings. Raises `BadRow`."""
    calls = []
    for call in as_turns(parse(value, "calls of tools")):
        call = parse(call, "calls of tools")
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, str):
            function = {**call, "name": function}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow("a call of a tool has no name", f"{call!r:.60}")
        given = function.get("arguments", function.get("parameters"))
        arguments = parse(given, "arguments of a call") if given not in (None, "") else {}
        if not isinstance(arguments, Mapping):
            raise BadRow("arguments of a call are no mapping", f"{given!r:.60}")
        identity = {"id": str(call["id"])} if call.get("id") else {}
        calls.append({"type": "function", **identity, "function": {"name": function["name"], "arguments": arguments}})
    return _without_nulls(calls, sample)


def read_tools(value: Any, sample: Sample) -> list[dict[str, Any]]:
    """Returns tools in OpenAI's shape. Raises `BadRow` where they are something else."""
    tools = []
    for tool in as_turns(parse(value, "tools")) if value not in (None, "") else []:
        tool = parse(tool, "tools")
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow("a tool has no name", f"{tool!r:.60}")
        tools.append({"type": "function", "function": dict(function)})
    return _without_nulls(tools, sample)


def _without_nulls(value: Any, sample: Sample) -> Any:
    """Returns mappings at any depth without null fields, if the file gives each mapping the fields of all others."""
    if not value or sample.file.suffixes[0] in _TEXT_TABLES:
        return value
    if isinstance(value, Mapping):
        if any(part is None for part in value.values()):
            sample.note("null fields in tools and their calls are left out, as they come from the file's columns")
        return {name: _without_nulls(part, sample) for name, part in value.items() if part is not None}
    return [_without_nulls(part, sample) for part in value] if isinstance(value, list) else value


def read_prompt(row: FormRow) -> list[Message]:
    """Returns the prompt: messages, or a text with the texts of `input` and `context` behind it."""
    value = row["prompt"]
    if is_turns(value):
        return read_turns(value, row)
    texts = [row.text("prompt")]
    for name in ("input", "context"):
        text = row.raw(name) if name not in row.names.values() else None
        if is_missing(text) or (isinstance(text, str) and not text.strip()):
            continue
        if isinstance(text, str) and text.strip().casefold() in _BLANK_INPUTS:
            row.sample.count(f"{text.strip()!r} in field {name!r} is read as no input")
        else:
            texts.append(check_text(text, f"field {name!r}"))
    return [*read_history(row), {"role": "user", "content": "\n\n".join(texts)}]


def read_history(row: FormRow) -> list[Message]:
    """Returns earlier turns from `history`: pairs of a question and its answer, or messages."""
    history = row.raw("history") if "history" not in row.names.values() else None
    history = parse(history, "earlier turns") if history else None
    if not history:
        return []
    if is_turns(history):
        return read_turns(history, row)
    messages = []
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(
                "field 'history' holds something else than pairs of a question and its answer", f"{pair!r:.40}"
            )
        for role, text in zip(("user", "assistant"), pair):
            messages.append({"role": role, "content": check_text(text, "a text in field 'history'")})
    return messages


def with_system(messages: list[Message], row: FormRow) -> list[Message]:
    """Returns messages behind the system prompt that the row has in a field of its own."""
    text = row.get("system")
    if text is None or (isinstance(text, str) and not text.strip()):
        return messages
    name = row.names["system"]
    check_text(text, f"field {name!r}")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].split() != text.split():
            raise BadRow(
                f"field {name!r} and the first message are different system prompts; "
                f"leave the field out with {row.sample.reading.option('ignore_fields')} {name}"
            )
        return messages
    return [{"role": "system", "content": text}, *messages]


def conversation(messages: Sequence[Message], row: FormRow) -> Record:
    """Returns the record of a conversation, with the row's system prompt and tools. Raises `BadRow` without answers."""
    messages = with_system(list(messages), row)
    tools = read_tools(row.get("tools"), row.sample)
    for message in messages:
        own = read_tools(message.pop("tools", None), row.sample)
        tools = tools or own
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRow(_NO_ANSWER)
    if all(message.get("weight") == 0 for message in answers):
        raise NoRecord("no message of the assistant has a weight above 0")
    return {"messages": messages, **({"tools": tools} if tools else {})}
