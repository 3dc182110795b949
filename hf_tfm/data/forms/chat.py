"""Forms of conversations and instructions: lists of messages, or a prompt and its answer."""

import json
import re
from typing import Any

from ..tables import BadRow
from .form import FormRow, Record, Sample, explains, is_missing, rows
from .turns import UNPAIRED, conversation, is_turns, parse, read_calls, read_prompt, read_turns


# Marks of chat templates, and names of speakers, inside a text.
_FORMATTED = re.compile(
    r"<\|im_start\|>|<\|user\|>|\[INST\]|<start_of_turn>|### ?Response:|\b(USER|Human):.*\b(ASSISTANT|Assistant):",
    re.DOTALL,
)
_SYSTEM = {"system": ("system", "system_prompt"), "tools": ("tools", "functions")}
_MESSAGES = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns", "data")
_USER, _ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


@rows(
    "chat",
    "messages",
    "messages with `role` and `content` (text, or parts with text), perhaps `tool_calls`, reasoning and `weight`",
    {"messages": _MESSAGES},
    optional=_SYSTEM,
    shape=lambda values: is_turns(values["messages"], "role"),
    example={
        "chats.jsonl": json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Is it warm in Rome?"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"type": "function", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}
                        ],
                    },
                    {"role": "tool", "content": "31"},
                    {"role": "assistant", "content": "Yes."},
                ],
                "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
            }
        )
    },
    gives=[
        {
            "messages": [
                {"role": "user", "content": "Is it warm in Rome?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}],
                },
                {"role": "tool", "content": "31"},
                {"role": "assistant", "content": "Yes."},
            ],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        }
    ],
)
def read_messages(row: FormRow) -> Record:
    return conversation(read_turns(row["messages"], row), row)


@rows(
    "chat",
    "sharegpt",
    "ShareGPT's turns with `from` (human, gpt, system, function_call, observation) and `value`",
    {"messages": ("conversations", "conversation", *_MESSAGES)},
    optional=_SYSTEM,
    shape=lambda values: is_turns(values["messages"], "from"),
    example={
        "chats.jsonl": '{"system": "Be kind.", "conversations": [{"from": "human", "value": "Why?"}, '
        '{"from": "gpt", "value": "So."}]}\n'
    },
    gives=[{"messages": [{"role": "system", "content": "Be kind."}, _USER, _ANSWER]}],
)
def read_sharegpt(row: FormRow) -> Record:
    return read_messages(row)


@rows(
    "chat",
    "input-output-turns",
    "turns with `input` and `output`",
    {"messages": ("conversation", *_MESSAGES)},
    optional=_SYSTEM,
    shape=lambda values: all({"input", "output"} <= set(turn) for turn in values["messages"]),
    example={"chats.jsonl": '{"conversation": [{"input": "Why?", "output": "So."}]}\n'},
    gives=[{"messages": [_USER, _ANSWER]}],
)
def read_input_output_turns(row: FormRow) -> Record:
    turns = [{"role": role, "content": turn.get(role)} for turn in row["messages"] for role in ("input", "output")]
    return conversation(read_turns(turns, row), row)


@rows(
    "chat",
    "alternating-texts",
    "texts of the user and the assistant in turns",
    {"messages": ("data", *_MESSAGES)},
    optional=_SYSTEM,
    shape=lambda values: (
        isinstance(values["messages"], list)
        and len(values["messages"]) > 1
        and all(isinstance(text, str) for text in values["messages"])
    ),
    example={"chats.jsonl": '{"id": "1", "data": ["Why?", "So."]}\n'},
    gives=[{"messages": [_USER, _ANSWER]}],
)
def read_alternating_texts(row: FormRow) -> Record:
    texts = row["messages"]
    if not isinstance(texts, list):
        raise BadRow(f"field {row.names['messages']!r} is no list of texts", f"{texts!r:.40}")
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    row.sample.note("texts are of the user and the assistant in turns, the user's first")
    return conversation(read_turns(turns, row), row)


@rows(
    "chat",
    "calls",
    "a query, and the calls of tools that answer it as a list of `name` and `arguments`",
    {"prompt": ("query", "question", "prompt"), "response": ("answers", "function_calls", "tool_calls")},
    optional=_SYSTEM,
    shape=lambda values: all({"name", "arguments"} <= set(call) for call in parse(values["response"], "")),
    example={
        "calls.jsonl": json.dumps(
            {
                "query": "Why?",
                "answers": '[{"name": "look", "arguments": {"for": "x"}}]',
                "tools": '[{"name": "look", "parameters": {"for": {"type": "string"}}}]',
            }
        )
    },
    gives=[
        {
            "messages": [
                _USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"for": "x"}}}],
                },
            ],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {"for": {"type": "string"}}}}],
        }
    ],
)
def read_query_and_calls(row: FormRow) -> Record:
    calls = read_calls(row["response"], row.sample)
    if not calls:
        raise BadRow("there are no calls of tools")
    return conversation([*read_prompt(row), {"role": "assistant", "content": "", "tool_calls": calls}], row)


# Decorators are applied from the bottom up, which is the order in which these forms are tried.
@rows(
    "chat",
    "prompt-response",
    "`prompt` and `response` (or completion, output, answer), texts or messages; or any two named fields",
    {
        "prompt": ("prompt", "query", "problem", "instruction", "question", "input"),
        "response": ("response", "completion", "output", "answer", "solution"),
    },
    optional=_SYSTEM,
    example={"train.jsonl": '{"prompt": "Why?", "response": "So."}\n'},
    gives=[{"messages": [_USER, _ANSWER]}],
)
@rows(
    "chat",
    "question-answer",
    "`question` and `answer`",
    {"prompt": ("question",), "response": ("answer",)},
    optional=_SYSTEM,
    example={"train.csv": "Question,Answer\nWhy?,So.\n"},
    gives=[{"messages": [_USER, _ANSWER]}],
)
@rows(
    "chat",
    "open-orca",
    "Open-Orca's `system_prompt`, `question` and `response`",
    {"prompt": ("question",), "response": ("response",)},
    optional=_SYSTEM,
    example={"train.jsonl": '{"system_prompt": "Be kind.", "question": "Why?", "response": "So."}\n'},
    gives=[{"messages": [{"role": "system", "content": "Be kind."}, _USER, _ANSWER]}],
)
@rows(
    "chat",
    "flan",
    "FLAN's `inputs` and `targets`",
    {"prompt": ("inputs",), "response": ("targets",)},
    optional=_SYSTEM,
    example={"train.jsonl": '{"inputs": "Why?", "targets": "So.", "task": "qa"}\n'},
    gives=[{"messages": [_USER, _ANSWER]}],
)
@rows(
    "chat",
    "dolly",
    "Dolly's `instruction`, `context` and `response`",
    {"prompt": ("instruction",), "response": ("response",)},
    optional=_SYSTEM,
    example={"train.jsonl": '{"instruction": "Why?", "context": "a", "response": "So.", "category": "open_qa"}\n'},
    gives=[{"messages": [{"role": "user", "content": "Why?\n\na"}, _ANSWER]}],
)
@rows(
    "chat",
    "alpaca",
    "Alpaca's `instruction`, `input` and `output`, perhaps with `system` and `history` [[question, answer], …]",
    {"prompt": ("instruction",), "response": ("output",)},
    optional=_SYSTEM,
    example={
        "train.jsonl": '{"instruction": "Why?", "input": "a", "output": "So.", "history": [["Hi", "Hello"]], '
        '"system": "Be kind."}\n'
    },
    gives=[
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Why?\n\na"},
                _ANSWER,
            ]
        }
    ],
)
def read_prompt_and_response(row: FormRow) -> Record:
    if isinstance(row.row.get("label"), bool) and "label" not in row.sample.reading.options.ignore_fields:
        raise BadRow(
            f"the label is true or false, as in {UNPAIRED}; "
            f"{row.sample.reading.option('ignore_fields')} label trains on all answers"
        )
    messages = read_prompt(row)
    for message in messages if is_turns(row["prompt"]) else []:
        if message["role"] == "assistant" and "weight" not in message:
            message["weight"] = 0
            row.sample.count("answer inside a prompt is not trained")
    return conversation([*messages, *read_response(row)], row)


def read_response(row: FormRow) -> list[dict[str, Any]]:
    """Returns the messages of an answer; a text with the row's reasoning."""
    value = row["response"]
    if is_turns(value):
        return read_turns(value, row)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    turn = {"role": "assistant", "content": value if isinstance(value, str) else row.text("response")}
    for name in ("reasoning_content", "reasoning", "thinking"):
        if name in row.row and name not in row.names.values() and not is_missing(row.row[name]):
            turn[name] = row.raw(name)
    return read_turns([turn], row)


@explains("chat")
def explain_formatted(sample: Sample) -> str | None:
    """Conversations that are one text each, with the marks of a chat template or with names of speakers."""
    for name in ("text", "chat", "conversation", "messages", "prompt"):
        texts = [row.get(name) for row in sample.rows]
        if texts and all(isinstance(text, str) and _FORMATTED.search(text) for text in texts):
            return (
                f"field {name!r} holds whole conversations as formatted texts, of which the answers are not known: "
                "write their turns as messages, or train on all of the text with pretrain_clm"
            )
    return None
