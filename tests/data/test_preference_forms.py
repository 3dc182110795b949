"""Preferences and prompts in the forms of public data sets: read right to the record, or refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.preferences import merge
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.tables import BadRow, ReadingOptions


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def system(text):
    return {"role": "system", "content": text}


def read(job, *rows, names=None, labelled=True, **options):
    return read_rows(rows, Reading(job, names or {}, ReadingOptions(**options), labelled))


def lines(records) -> str:
    return "\n".join(line for report in records.reports for line in report.lines())


ASKED = [user("Why?")]
LONG = [user("Hi"), assistant("Hello"), user("Why?")]
CHOSEN, REJECTED = assistant("So."), assistant("No idea.")
TEXTS = {"chosen": "So.", "rejected": "No idea."}
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: "


def after(turns, **fields):
    return {"chosen": [*turns, CHOSEN], "rejected": [*turns, REJECTED], **fields}


def as_values(turns):
    return [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]} for turn in turns]


PAIRS = {
    "texts": ({"prompt": "Why?", **TEXTS}, ASKED),
    "messages": ({"prompt": ASKED, "chosen": [CHOSEN], "rejected": [REJECTED]}, ASKED),
    "the prompt repeated": (after(ASKED, prompt=ASKED), ASKED),
    "the prompt as text, repeated": (after(ASKED, prompt="Why?"), ASKED),
    "ultrafeedback": (
        after(ASKED, prompt="Why?", prompt_id="x", messages=[*ASKED, CHOSEN], score_chosen=9.0, score_rejected=5.0),
        ASKED,
    ),
    "without a prompt": (after(LONG), LONG),
    "the last message as prompt": (after(LONG, prompt="Why?"), LONG),
    "with another blank": (after(LONG, prompt="Why? \n"), LONG),
    "with a system turn": (after([system("Be."), *LONG], prompt="Why?"), [system("Be."), *LONG]),
    "with a system turn before the only question": (
        after([system("Be."), *ASKED], prompt="Why?"),
        [system("Be."), *ASKED],
    ),
    "system in the prompt alone": (after(ASKED, prompt=[system("Be."), *ASKED]), [system("Be."), *ASKED]),
    "prompt of a system turn": (after(ASKED, prompt=[system("Be.")]), [system("Be."), *ASKED]),
    "the whole conversation as prompt": (after(ASKED, prompt=LONG), LONG),
    "history as prompt": (after(ASKED, prompt=LONG[:2]), LONG),
    "no question in the answers": ({"prompt": LONG, "chosen": [CHOSEN], "rejected": [REJECTED]}, LONG),
    "the conversation with its answer": (after(ASKED, messages=[*ASKED, CHOSEN]), ASKED),
    "chosen_messages": ({"chosen_messages": [*ASKED, CHOSEN], "rejected_messages": [*ASKED, REJECTED]}, ASKED),
    "from and value": (
        {"conversations": as_values(LONG), "chosen": as_values([CHOSEN])[0], "rejected": as_values([REJECTED])[0]},
        LONG,
    ),
    "intel orca": ({"system": "Be.", "question": "Why?", **TEXTS}, [system("Be."), *ASKED]),
    "empty system": ({"system": "", "question": "Why?", **TEXTS}, ASKED),
    "alpaca": ({"instruction": "Why?", "input": "x", **TEXTS}, [user("Why?\n\nx")]),
    "alpaca with history": ({"instruction": "Why?", "history": [["Hi", "Hello"]], **TEXTS}, LONG),
    "argilla": ({"instruction": "Why?", "chosen_response": "So.", "rejected_response": "No idea."}, ASKED),
    "messages as JSON": ({name: json.dumps(turns) for name, turns in after(ASKED).items()}, ASKED),
    "hh-rlhf": ({"chosen": HH + "So.", "rejected": HH + "No idea."}, LONG),
    "hh-rlhf with its question": ({"prompt": "Why?", "chosen": HH + "So.", "rejected": HH + "No idea."}, LONG),
    "hh-rlhf with its whole prompt": ({"prompt": HH, "chosen": HH + "So.", "rejected": HH + "No idea."}, LONG),
    "rm-static": ({"prompt": HH, "response": " So.", "chosen": " So.", "rejected": " No idea."}, LONG),
}


@pytest.mark.parametrize("name", PAIRS)
def test_forms_of_preferences(name, tmp_path):
    row, prompt = PAIRS[name]
    expected = {"prompt": prompt, "chosen": [CHOSEN], "rejected": [REJECTED]}
    assert read("preferences", row) == [expected]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    assert read_records(path, Reading("preferences")) == [expected] * 3


def test_scores_are_said_and_equal_answers_left_out():
    row = {"prompt": "Why?", **TEXTS, "chosen_score": 9}
    records = read("preferences", row, {**row, "rejected": "So. "}, row)
    assert len(records) == 2 and "not used: chosen_score" in lines(records)
    assert "1 × both answers are the same" in lines(records)


def test_tools_stand_beside_pairs():
    calls = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    row = {
        "prompt": "Why?",
        "chosen": [assistant("", tool_calls=calls)],
        "rejected": [REJECTED],
        "tools": [{"name": "look"}],
    }
    [record] = read("preferences", row)
    assert record["chosen"] == [assistant("", tool_calls=calls)]
    assert record["tools"] == [{"type": "function", "function": {"name": "look"}}]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "Why?", "completion": "So.", "label": True}, "unpaired preferences.*TRL's KTOTrainer"),
        ({"messages": [*ASKED, CHOSEN], "label": False}, "unpaired preferences.*TRL's KTOTrainer"),
        ({"messages": [*ASKED, CHOSEN]}, "it has the form messages of chat, which finetune_instruct reads"),
        ({"prompt": "Why?", "chosen": "So."}, "no field 'rejected' .--rejected_field names it"),
        ({**TEXTS}, "nothing is asked"),
        (
            {"prompt": "Why?", "chosen": [*ASKED, CHOSEN], "rejected": [user("Who?"), REJECTED]},
            "other turns before them",
        ),
        (after([user("Who?")], prompt="Why?"), "the prompt is no part of the conversation"),
        (after([system("A."), *ASKED], prompt=[system("B."), *ASKED]), "different system prompts"),
        ({"prompt": [*ASKED, CHOSEN], **TEXTS}, "the prompt ends with an answer"),
        ({"prompt": ASKED, "chosen": ASKED, "rejected": [REJECTED]}, "field 'chosen' ends with the user"),
        ({"prompt": ASKED, "context": "A text.", **TEXTS}, "field 'context' belongs to the prompt"),
        ({"chosen": HH + "So.", "rejected": HH}, "field 'rejected' ends with the user"),
        (
            {"chosen": HH.replace("Hello", "") + "So.", "rejected": HH.replace("Hello", "") + "No."},
            "of a message is blank",
        ),
    ],
)
def test_pairs_that_cannot_be_read_are_refused_by_name(row, complaint):
    with pytest.raises(InputError, match=complaint):
        read("preferences", row)


TURNS = st.lists(st.sampled_from("abc"), min_size=1, max_size=7).map(
    lambda texts: [(user, assistant)[number % 2](text) for number, text in enumerate(texts)]
)


@settings(max_examples=200, deadline=None)
@given(TURNS.filter(lambda turns: len(turns) % 2 == 1), st.data())
def test_a_prompt_is_never_put_in_twice(turns, data):
    """Any beginning or end of the conversation may be the prompt, with or without the system turn."""
    cut = data.draw(st.integers(0, len(turns)))
    prompt = data.draw(st.sampled_from([turns[cut:], turns[:cut]]))
    head = data.draw(st.sampled_from([[], [system("s")]]))
    where = data.draw(st.sampled_from(["prompt", "context", "both"]))
    first = head if where != "context" else []
    second = head if where != "prompt" else []
    assert merge([*first, *prompt], [*second, *turns]) == [*head, *turns]
    blank = [{**turn, "content": f" {turn['content']}\n"} for turn in prompt]
    assert merge(blank, turns) == turns


def test_a_prompt_from_elsewhere_is_bad():
    with pytest.raises(BadRow):
        merge([user("x")], [user("y")])


GOLD = {
    "gsm8k": ({"question": "6 * 7?", "answer": "6 * 7 is <<6*7=42>>42\n#### 42"}, "6 * 7 is <<6*7=42>>42\n#### 42"),
    "math": ({"problem": "6 * 7?", "solution": "It is $\\boxed{42}$", "level": "1"}, "It is $\\boxed{42}$"),
    "numina": ({"problem": "6 * 7?", "solution": "So …", "answer": "42", "messages": []}, "42"),
    "verl": (
        {"data_source": "x", "prompt": [user("6 * 7?")], "reward_model": {"style": "rule", "ground_truth": "42"}},
        "42",
    ),
    "ground_truth": ({"prompt": "6 * 7?", "ground_truth": 42}, 42),
    "messages": ({"messages": [user("6 * 7?"), assistant("42")], "answer": 42}, 42),
    "instruction": ({"instruction": "6 * 7?", "input": "", "answer": 42}, 42),
}


@pytest.mark.parametrize("name", GOLD)
def test_forms_of_prompts(name):
    row, answer = GOLD[name]
    records = read("prompts", row)
    assert records == [{"prompt": [user("6 * 7?")], "answer": answer}]
    assert records.rows == [row], "a reward function gets the file's own record"
    assert ("last answer of a conversation is left out" in lines(records)) == (name == "messages")


def test_prompts_with_system_named_fields_and_without_answers():
    row = {"ask": "6 * 7?", "gold": 42, "system_prompt": "Be."}
    [record] = read("prompts", row, names={"prompt": "ask", "answer": "gold"})
    assert record == {"prompt": [system("Be."), user("6 * 7?")], "answer": 42}
    assert read("prompts", {"prompt": "6 * 7?", "tests": []}, labelled=False) == [{"prompt": [user("6 * 7?")]}]
    with pytest.raises(InputError, match="no field 'answer' .--answer_field names it"):
        read("prompts", {"prompt": "6 * 7?", "tests": []})
    with pytest.raises(InputError, match="field 'answer' is null"):
        read("prompts", {"prompt": "6 * 7?", "answer": None})
