"""Conversations in the forms of public data sets: read right to the record, or refused by name."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.tables import ReadingOptions


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def system(text):
    return {"role": "system", "content": text}


def calls(**arguments):
    return [{"type": "function", "function": {"name": "look", "arguments": arguments}}]


TOOL = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]
TALK = [user("Why?"), assistant("So.")]


def read(*rows, names=None, **options):
    return read_rows(rows, Reading("chat", names or {}, ReadingOptions(**options)))


def lines(records) -> str:
    return "\n".join(line for report in records.reports for line in report.lines())


# Rows as public data sets have them, with other columns, and the messages that they mean.
PLAIN = {
    "messages": ({"messages": TALK, "id": 1}, TALK),
    "ultrachat": ({"prompt": "Why?", "prompt_id": "x", "messages": TALK}, TALK),
    "null fields of turns": ({"messages": [{**turn, "tool_calls": None, "name": None} for turn in TALK]}, TALK),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]},
                assistant("So."),
            ]
        },
        TALK,
    ),
    "capital roles": (
        {"messages": [{"role": "User", "content": "Why?"}, {"role": "ASSISTANT", "content": "So."}]},
        TALK,
    ),
    "human": ({"messages": [{"role": "human", "content": "Why?"}, {"role": "bot", "content": "So."}]}, TALK),
    "developer": ({"messages": [{"role": "developer", "content": "Be."}, *TALK]}, [system("Be."), *TALK]),
    "empty system": ({"messages": [system(""), *TALK]}, TALK),
    "lists by field": ({"messages": {"role": ["user", "assistant"], "content": ["Why?", "So."]}}, TALK),
    "messages as JSON": ({"messages": json.dumps(TALK)}, TALK),
    "messages as Python": ({"messages": repr(TALK)}, TALK),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], "id": "a"},
        TALK,
    ),
    "chatgpt": ({"conversation": [{"from": "user", "value": "Why?"}, {"from": "chatgpt", "value": "So."}]}, TALK),
    "openhermes": (
        {
            "conversations": [
                {"from": "system", "value": "Be.", "weight": None},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "So.", "weight": 1},
            ],
            "system_prompt": "Be.",
        },
        [system("Be."), *TALK],
    ),
    "lmsys": ({"conversation_id": "1", "model": "m", "conversation": TALK, "turn": 1, "redacted": False}, TALK),
    "system column": (
        {"system": "Be.", "conversations": [{"from": "user", "value": "Why?"}, {"from": "assistant", "value": "So."}]},
        [system("Be."), *TALK],
    ),
    "capybara": ({"source": "x", "conversation": [{"input": "Why?", "output": "So."}]}, TALK),
    "ultrachat raw": ({"id": "0", "data": ["Why?", "So.", "And?", "No."]}, [*TALK, user("And?"), assistant("No.")]),
    "alpaca": ({"instruction": "Why?", "input": "", "output": "So.", "text": "Below is …"}, TALK),
    "alpaca, noinput": ({"instruction": "Why?", "input": "<noinput>", "output": "So."}, TALK),
    "alpaca, null input": ({"instruction": "Why?", "input": None, "output": "So."}, TALK),
    "code alpaca": (
        {"instruction": "Why?", "input": "x", "output": "So.", "prompt": "Below … So."},
        [user("Why?\n\nx"), assistant("So.")],
    ),
    "llama factory": (
        {"instruction": "Why?", "input": "x", "output": "So.", "system": "Be.", "history": [["Hi", "Hello"]]},
        [system("Be."), user("Hi"), assistant("Hello"), user("Why?\n\nx"), assistant("So.")],
    ),
    "history as text": (
        {"instruction": "Why?", "output": "So.", "history": '[["Hi", "Hello"]]'},
        [user("Hi"), assistant("Hello"), *TALK],
    ),
    "dolly": (
        {"instruction": "Why?", "context": "A text.", "response": "So.", "category": "closed_qa"},
        [user("Why?\n\nA text."), assistant("So.")],
    ),
    "dolly, no context": ({"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"}, TALK),
    "flan": ({"inputs": "Why?", "targets": "So.", "task": "qa"}, TALK),
    "open-orca": ({"id": "1", "system_prompt": "Be.", "question": "Why?", "response": "So."}, [system("Be."), *TALK]),
    "open-orca, no system": ({"id": "1", "system_prompt": "", "question": "Why?", "response": "So."}, TALK),
    "question and answer": ({"question": "Why?", "answer": "So."}, TALK),
    "a number as answer": ({"question": "Why?", "answer": 42}, [user("Why?"), assistant("42")]),
    "medical o1": ({"Question": "Why?", "Response": "So."}, TALK),
    "prompt and response": ({"prompt": "Why?", "response": "So."}, TALK),
    "prompt and completion": ({"prompt": "Why?", "completion": "So."}, TALK),
    "prompt and output": ({"prompt": "Why?", "output": "So."}, TALK),
    "metamath": ({"type": "x", "query": "Why?", "response": "So.", "original_question": "?"}, TALK),
    "input and output": ({"input": "Why?", "output": "So."}, TALK),
    "lists of messages": ({"prompt": [user("Why?")], "completion": [assistant("So.")]}, TALK),
}


@pytest.mark.parametrize("name", PLAIN)
def test_forms_of_public_data_sets(name, tmp_path):
    row, messages = PLAIN[name]
    assert read(row) == [{"messages": messages}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    assert read_records(path, Reading("chat")) == [{"messages": messages}] * 3
    if all(isinstance(value, (str, type(None))) for value in row.values()):
        with open(tmp_path / "train.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        assert read_records(tmp_path / "train.csv", Reading("chat")) == [{"messages": messages}]


CALLED = {
    "openai": {
        "messages": [
            user("Why?"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "x"},
            assistant("So."),
        ],
        "tools": TOOLS,
    },
    "older openai": {
        "messages": [
            user("Why?"),
            {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": 1}'}},
            {"role": "function", "name": "look", "content": "x"},
            assistant("So."),
        ],
        "functions": [TOOL],
    },
    "arguments as mapping": {
        "messages": [
            user("Why?"),
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}],
            },
            {"role": "tool", "content": "x"},
            assistant("So."),
        ],
        "tools": json.dumps(TOOLS),
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Why?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
            {"from": "observation", "value": "x"},
            {"from": "gpt", "value": "So."},
        ],
        "tools": json.dumps([TOOL]),
    },
}


@pytest.mark.parametrize("name", CALLED)
def test_calls_of_tools_have_one_shape(name):
    [record] = read(CALLED[name])
    assert record["tools"] == TOOLS
    asked, called, result, answer = record["messages"]
    assert asked == user("Why?") and answer == assistant("So.")
    [call] = called["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": {"at": 1}} and called["content"] == ""
    assert result["role"] == "tool" and result["content"] == "x"
    if name == "openai":
        assert call["id"] == result["tool_call_id"] == "c1"


def test_a_query_with_its_calls_is_a_conversation():
    row = {
        "id": 0,
        "query": "Why?",
        "answers": '[{"name": "look", "arguments": {"at": 1}}]',
        "tools": json.dumps([TOOL]),
    }
    [record] = read(row)
    assert record == {"messages": [user("Why?"), assistant("", tool_calls=calls(at=1))], "tools": TOOLS}


def test_null_fields_that_parquet_adds_to_calls_are_left_out(tmp_path):
    rows = [
        {
            "messages": [
                user("Why?"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {key: 1}}}],
                },
            ]
        }
        for key in ("at", "to")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    records = read_records(tmp_path / "train.parquet", Reading("chat"))
    assert [record["messages"][1]["tool_calls"] for record in records] == [calls(at=1), calls(to=1)]
    assert "null fields in tools and their calls" in lines(records)
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"messages": [user("Why?"), assistant("", tool_calls=calls(at=None))]})
    )
    [record] = read_records(tmp_path / "train.jsonl", Reading("chat"))
    assert record["messages"][1]["tool_calls"] == calls(at=None), "in JSON a null is a value"


def test_weights_are_honoured_counted_or_refused():
    talk = [user("Hi"), assistant("Hello"), *TALK]
    for key, value in [("weight", 0), ("train", False), ("trainable", "false"), ("weight", 0.0), ("weight", "0")]:
        weighted = [talk[0], {**talk[1], key: value}, talk[2], {**talk[3], key: 1}]
        records = read({"messages": weighted}, {"messages": talk})
        assert records[0] == {"messages": [talk[0], {**talk[1], "weight": 0}, *TALK]} and records[1] == {
            "messages": talk
        }
        assert f"1 × message with {key} 0 is not trained" in lines(records)
    records = read(
        {"messages": talk},
        {
            "messages": [
                *talk[:3],
                {**talk[3], "weight": 0},
            ]
        },
        {"messages": [user("Hi"), assistant("Hello", weight=0)]},
    )
    assert len(records) == 2 and "1 × no message of the assistant has a weight above 0" in lines(records)
    for value in (0.5, 2, -1, "much"):
        with pytest.raises(InputError, match="a weight other than 0 and 1, which cannot be honoured"):
            read({"messages": [user("Hi"), assistant("Hello", weight=value)]})
    assert "weight 1 of the role user has no effect" in lines(
        read({"messages": [{**user("Hi"), "weight": 1}, TALK[1]]})
    )


def test_reasoning_under_any_name_is_kept_apart():
    for row in (
        {"messages": [user("Why?"), assistant("So.", reasoning_content="Hm.")]},
        {"messages": [user("Why?"), assistant("So.", reasoning="Hm.")]},
        {"messages": [user("Why?"), assistant("So.", thinking="Hm.")]},
        {
            "messages": [
                user("Why?"),
                assistant([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "So."}]),
            ]
        },
        {"question": "Why?", "reasoning": "Hm.", "answer": "So."},
    ):
        assert read(row) == [{"messages": [user("Why?"), assistant("So.", reasoning_content="Hm.")]}]
    text = "<think>Hm.</think>So."
    assert read({"messages": [user("Why?"), assistant(text)]})[0]["messages"][1] == assistant(text)


def test_answers_inside_a_prompt_are_not_trained():
    records = read({"prompt": [user("Hi"), assistant("Hello"), user("Why?")], "completion": [assistant("So.")]})
    assert records == [{"messages": [user("Hi"), assistant("Hello", weight=0), *TALK]}]
    assert "1 × answer inside a prompt is not trained" in lines(records)


REFUSED = [
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, TALK[1]]},
        "message 1.*|a part of type 'image_url'; only text can be read",
    ),
    ({"messages": [{**user("Why?"), "images": ["x.png"]}, TALK[1]]}, "has 'images', which cannot be read"),
    (
        {"messages": [{"role": "boss", "content": "x"}, TALK[1]]},
        "role 'boss', not one of system, user, assistant, tool",
    ),
    ({"messages": [user("Why?"), {"role": "assistant", "content": None}]}, r"a message has no content \(message 2\)"),
    ({"messages": [user(" "), TALK[1]]}, "the content of a message is blank"),
    ({"messages": [user("Why?"), {"role": "assistant"}]}, "a message has no content"),
    ({"messages": [user("Why?")]}, "no message of the assistant"),
    ({"messages": [user("Why?"), assistant("So.", train_detail=[])]}, None),
    ({"messages": [user("Why?"), assistant("So.", train_detail=[{"begin": 1}])]}, "has 'train_detail'"),
    (
        {"messages": [user("Why?"), assistant("", tool_calls=[{"function": {"arguments": "{}"}}])]},
        "a call of a tool has no",
    ),
    (
        {"messages": [user("Why?"), assistant("", tool_calls=[{"function": {"name": "a", "arguments": "{"}}])]},
        "no JSON",
    ),
    ({"messages": TALK, "tools": "look, find"}, "tools are text that is no JSON"),
    ({"messages": TALK, "tools": [{"x": 1}]}, "a tool has no name"),
    ({"messages": [system("A."), *TALK], "system": "B."}, "are different system prompts.*--ignore_fields system"),
    ({"messages": TALK, "context": "A text."}, "field 'context' belongs to the prompt.*--ignore_fields context"),
    ({"messages": TALK, "weight": 0.5}, "field 'weight' weighs records"),
    (
        {"instruction": "Why?", "output": "So.", "history": ["Hi"]},
        "something else than pairs of a question and its answer",
    ),
    (
        {"prompt": "Why?", "completion": "So.", "label": False},
        "unpaired preferences.*KTOTrainer.*--ignore_fields label",
    ),
    ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "which finetune_preference reads"),
    ({"text": "<|user|>Why?"}, "holds whole conversations as formatted texts.*pretrain_clm"),
    ({"system": "Be.", "chat": "USER: Why? ASSISTANT: So."}, "holds whole conversations as formatted texts"),
    ({"words": "Why?"}, "its fields are words.*hf-tfm formats chat"),
]


@pytest.mark.parametrize(("row", "complaint"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(row, complaint):
    if complaint is None:
        assert read(row)
        return
    with pytest.raises(InputError, match=complaint):
        read(row)


def test_ignored_fields_are_left_out_of_records_and_turns():
    talk = [user("Why?"), assistant("", tool_calls=calls()), {"role": "tool", "content": "x"}, assistant("So.")]
    row = {"messages": talk, "tools": TOOLS, "context": "A text."}
    records = read(row, ignore_fields=("tools", "tool_calls", "context"))
    assert records == [{"messages": TALK}]
    row = {"messages": [{**user("Why?"), "images": ["x"]}, TALK[1]]}
    assert read(row, ignore_fields=("images",)) == [{"messages": TALK}]


def test_unknown_fields_of_turns_are_said_with_their_number():
    records = read({"messages": [{**user("Why?"), "id": 1}, assistant("So.", id=2, model="m")]})
    text = lines(records)
    assert "2 × field 'id' of a message is not used" in text and "1 × field 'model' of a message is not used" in text


def test_fields_of_any_name_can_be_named():
    row = {"ask": "Why?", "reply": "So.", "persona": "Be.", "apis": json.dumps([TOOL])}
    names = {"prompt": "ask", "response": "reply", "system": "persona", "tools": "apis"}
    assert read(row, names=names) == [{"messages": [system("Be."), *TALK], "tools": TOOLS}]
    assert read({"talk": TALK}, names={"messages": "talk"}) == [{"messages": TALK}]
    assert read({"talk": ["Why?", "So."]}, names={"messages": "talk"}) == [{"messages": TALK}]


def test_counts_add_up_with_bad_rows_in_between():
    rows = [{"messages": TALK}] * 3 + [{"messages": [user("Why?")]}, {"messages": None}, {}, {"messages": "x"}]
    with pytest.raises(InputError, match="4 of 7 rows cannot be used"):
        read(*rows)
    records = read(*rows, skip_bad=True)
    [report] = records.reports
    assert len(records) == 3 and report.rows == 7 and sum(group.count for group in report.bad.values()) == 4


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), TEXTS), min_size=1), st.none() | TEXTS, TEXTS)
def test_any_conversation_survives_sharegpt_and_messages(turns, prompt, answer):
    messages = [{"role": role, "content": text} for role, text in turns] + [assistant(answer)]
    expected = [{"messages": ([system(prompt)] if prompt else []) + messages}]
    sharegpt = [{"from": NAMES[message["role"]], "value": message["content"]} for message in messages]
    assert read({"conversations": sharegpt, "system": prompt}) == expected
    assert read({"messages": expected[0]["messages"]}) == expected
    again = [{"from": NAMES[message["role"]], "value": message["content"]} for message in expected[0]["messages"]]
    assert read({"conversations": json.dumps(again)}) == expected


@pytest.mark.parametrize("name", ["image", "images", "videos", "audio"])
@pytest.mark.parametrize("job", ["chat", "preferences", "prompts"])
def test_pictures_and_sounds_of_a_prompt_are_refused_by_name(job, name):
    """They were left out in silence, and the answers about them trained."""
    row = {
        "chat": {"messages": TALK},
        "preferences": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        "prompts": {"prompt": "Why?", "answer": "So."},
    }[job]
    with pytest.raises(InputError, match=f"field '{name}' belongs to the prompt, and a model of texts cannot read it"):
        read_rows([row | {name: ["a.jpg"]}], Reading(job))
    assert read_rows([row | {name: []}, row | {name: None}], Reading(job)) == read_rows([row, row], Reading(job))
    ignored = ReadingOptions(ignore_fields=(name,))
    assert read_rows([row | {name: ["a.jpg"]}], Reading(job, options=ignored)) == read_rows([row], Reading(job))


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_rows_that_are_lists_of_messages(tmp_path, name):
    talks = [TALK, [system("Be brief."), *TALK], [*TALK, user("And?"), assistant("Well.")]]
    (tmp_path / name).write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    assert read_records(tmp_path / name, Reading("chat")) == [{"messages": talk} for talk in talks]
    asked = read_records(tmp_path / name, Reading("prompts", labelled=False))
    assert [record["prompt"] for record in asked] == [talk[:-1] for talk in talks]


def test_texts_in_turns_are_lists(tmp_path):
    """Names of fields inside `data`, and the characters of a text, were turns."""
    with pytest.raises(InputError, match="no form of chat|no field"):
        read({"data": {"question": "Why?", "answer": "So."}})
    with pytest.raises(InputError, match="row 3: field 'data' is no list of texts"):
        read({"data": ["Why?", "So."]}, {"data": ["Why?", "So."]}, {"data": "Why?"})
