"""Forms of prompts with an answer that can be verified."""

from typing import Any

from ..conversations import up_to_answer
from ..tables import BadRow
from .form import FormRow, Record, rows
from .turns import is_turns, read_prompt, read_tools, with_system


_OPTIONAL = {"system": ("system", "system_prompt"), "tools": ("tools", "functions")}
_EXAMPLE = {"prompt": [{"role": "user", "content": "6 * 7?"}], "answer": "42"}


# Decorators are applied from the bottom up, which is the order in which these forms are tried.
@rows(
    "prompts",
    "prompts",
    "`prompt`, `question` or `problem` (text or messages) with `answer`, `ground_truth` or `solution`; or named fields",
    {
        "prompt": ("prompt", "question", "problem", "instruction", "query", "input", "messages", "conversations"),
        "answer": ("answer", "ground_truth", "final_answer", "solution", "target", "output", "response"),
    },
    optional=_OPTIONAL,
    example={"train.jsonl": '{"question": "6 * 7?", "answer": "42"}\n'},
    gives=[_EXAMPLE],
)
@rows(
    "prompts",
    "verl",
    "verl's `prompt` with messages and `reward_model` with `ground_truth`",
    {"prompt": ("prompt",), "answer": ("reward_model.ground_truth",)},
    optional=_OPTIONAL,
    shape=lambda values: values["answer"] is not None and is_turns(values["prompt"]),
    example={
        "train.jsonl": '{"data_source": "x", "prompt": [{"role": "user", "content": "6 * 7?"}], '
        '"reward_model": {"style": "rule", "ground_truth": "42"}, "extra_info": {"index": 0}}\n'
    },
    gives=[_EXAMPLE],
)
def read_verifiable(row: FormRow) -> Record:
    messages = read_prompt(row)
    if len(up_to_answer(messages)) < len(messages):
        row.sample.count("last answer of a conversation is left out: the prompt is what stands before it")
        messages = up_to_answer(messages)
    messages = with_system(messages, row)
    tools = read_tools(row.get("tools"), row.sample)
    for message in messages:
        tools = read_tools(message.pop("tools", None), row.sample) or tools
    if all(message["role"] == "system" for message in messages):
        raise BadRow("nothing is asked: there is only a system prompt")
    record: dict[str, Any] = {"prompt": messages, **({"tools": tools} if tools else {})}
    if row.sample.reading.labelled:
        record["answer"] = row["answer"]
    return record
