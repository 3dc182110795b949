"""Files of multiple choice as they are published: every one is read to the record, or refused by what it is."""

import csv
import json

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows


SWAG = {
    "video-id": "v1", "fold-ind": "1", "startphrase": "Ann stands up. She", "sent1": "Ann stands up.", "sent2": "She",
    "gold-source": "gold", "ending0": "sings.", "ending1": "sinks.", "ending2": "sits.", "ending3": "sells.",
    "label": 2,
}  # fmt: skip
HELLASWAG = {
    "ind": 4, "activity_label": "Singing", "ctx_a": "Ann stands up.", "ctx_b": "she", "ctx": "Ann stands up. She",
    "endings": ["sings.", "sinks.", "sits.", "sells."], "source_id": "x", "split": "train", "label": "3",
}  # fmt: skip
RACE = {
    "example_id": "high1.txt",
    "article": "Bob sings.",
    "question": "Who _ ?",
    "options": ["Ann", "Bob"],
    "answer": "B",
}
ARC = {"text": ["3", "4", "5"], "label": ["1", "2", "3"]}
STEM = {
    "stem": "2 + 2?",
    "choices": [{"text": "3", "label": "A"}, {"text": "4", "label": "B"}],
    "question_concept": "sum",
}
# The row, and question, context, options and the text of the right one.
PUBLISHED = {
    "SWAG": (SWAG, "She", "Ann stands up.", ["sings.", "sinks.", "sits.", "sells."], "sits."),
    "HellaSwag": (HELLASWAG, "Ann stands up. She", "", ["sings.", "sinks.", "sits.", "sells."], "sells."),
    "RACE": (RACE, "Who _ ?", "Bob sings.", ["Ann", "Bob"], "Bob"),
    "ARC": ({"id": "M_1", "question": "2 + 2?", "choices": ARC, "answerKey": "2"}, "2 + 2?", "", ["3", "4", "5"], "4"),
    "ARC itself": ({"id": "M_1", "question": STEM, "answerKey": "B"}, "2 + 2?", "", ["3", "4"], "4"),
    "OpenBookQA": (
        {
            "question_stem": "2 + 2?",
            "choices": {"text": ["3", "4"], "label": ["A", "B"]},
            "answerKey": "B",
            "fact1": "x",
        },
        "2 + 2?",
        "",
        ["3", "4"],
        "4",
    ),
    "a list of choices": (
        {"question": "2 + 2?", "choices": STEM["choices"], "answerKey": "B"},
        "2 + 2?",
        "",
        ["3", "4"],
        "4",
    ),
    "PIQA": ({"goal": "Boil", "sol1": "Heat", "sol2": "Eat", "label": 1}, "Boil", "", ["Heat", "Eat"], "Eat"),
    "COPA": (
        {
            "premise": "It rained.",
            "choice1": "I sat.",
            "choice2": "I got wet.",
            "question": "effect",
            "idx": 0,
            "label": 1,
        },
        "What happened as a result?",
        "It rained.",
        ["I sat.", "I got wet."],
        "I got wet.",
    ),
    "COPA of Arrow": (
        {
            "premise": "It rained.",
            "choice1": "I sat.",
            "choice2": "I got wet.",
            "question": "cause",
            "label": "choice2",
        },
        "What was the cause of this?",
        "It rained.",
        ["I sat.", "I got wet."],
        "I got wet.",
    ),
    "MMLU": (
        {"question": "2 + 2?", "subject": "algebra", "choices": ["3", "4"], "answer": 1},
        "2 + 2?",
        "",
        ["3", "4"],
        "4",
    ),
    "MMLU of Arrow": ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}, "2 + 2?", "", ["3", "4"], "4"),
    "Cosmos QA": (
        {"context": "Ann sings.", "question": "Who?", "answer0": "Ann", "answer1": "Bob", "label": 0},
        "Who?",
        "Ann sings.",
        ["Ann", "Bob"],
        "Ann",
    ),
    "QuAIL": (
        {"context": "Ann sings.", "question": "Who?", "answers": ["Ann", "Bob"], "correct_answer_id": 0},
        "Who?",
        "Ann sings.",
        ["Ann", "Bob"],
        "Ann",
    ),
    "MedQA": (
        {"question": "2 + 2?", "options": {"A": "three", "B": "four"}, "answer_idx": "B", "meta_info": "x"},
        "2 + 2?",
        "",
        ["three", "four"],
        "four",
    ),
    "MedMCQA": (
        {"question": "2 + 2?", "opa": "x", "opb": "y", "opc": "z", "cop": 0},
        "2 + 2?",
        "",
        ["x", "y", "z"],
        "x",
    ),
    "SciQ": (
        {"question": "2 + 2?", "distractor1": "5", "distractor2": "3", "correct_answer": "4", "support": "Sums."},
        "2 + 2?",
        "Sums.",
        ["3", "4", "5"],
        "4",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("as_table", [False, True])
def test_published_files_are_read_to_the_record(tmp_path, name, as_table):
    row, question, context, options, right = PUBLISHED[name]
    path = tmp_path / ("train.csv" if as_table else "train.jsonl")
    with open(path, "w", newline="") as file:
        if as_table:  # lists and mappings are written as Python prints them, as pandas does
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        else:
            file.write(json.dumps(row) + "\n")
    if as_table and name == "ARC itself":
        with pytest.raises(InputError):
            read_records(path, Reading("choices"))
        return
    [record] = read_records(path, Reading("choices"))
    assert (record["question"], record.get("context", ""), record["options"]) == (question, context, options)
    assert options[record["answer"]] == right
    [asked] = read_records(path, Reading("choices", labelled=False))
    assert asked == {name: value for name, value in record.items() if name != "answer"}


def test_answers_that_count_from_one(tmp_path):
    rows = [
        {"sentence": "Ann sang to Bob, for _ likes songs.", "option1": "Ann", "option2": "Bob", "answer": str(right)}
        for right in (2, 1, 1)
    ]
    records = read_rows(rows, Reading("choices"))
    assert [record["answer"] for record in records] == [1, 0, 0]
    assert any("counts the options from 1" in note for note in records.reports[0].notes)
    social = {"context": "c", "question": "q", "answerA": "x", "answerB": "y", "answerC": "z"}
    records = read_rows([{**social, "label": str(right)} for right in (1, 2, 3)], Reading("choices"))
    assert [record["answer"] for record in records] == [0, 1, 2]
    records = read_rows([{**social, "label": str(right)} for right in (1, 2, 0)], Reading("choices"))
    assert [record["answer"] for record in records] == [1, 2, 0]


@pytest.mark.parametrize("hidden", ["", -1, "-1"])
@pytest.mark.parametrize("row", [SWAG, HELLASWAG], ids=["SWAG", "HellaSwag"])
def test_hidden_labels_are_left_out_and_counted(row, hidden):
    records = read_rows([row, {**row, "label": hidden}, row], Reading("choices"))
    assert len(records) == 2 and "left out: 1 × no right option is given" in records.reports[0].lines()[0]
    assert len(read_rows([row, {**row, "label": hidden}], Reading("choices", labelled=False))) == 2


def test_race_itself_has_several_questions_an_article(tmp_path):
    article = {
        "id": "high1.txt", "article": "Bob sings.", "answers": ["B", "A", "E"], "questions": ["Who?", "What?", "Why?"],
        "options": [["Ann", "Bob"], ["songs", "books"], ["x", "y"]],
    }  # fmt: skip
    (tmp_path / "RACE" / "train" / "high").mkdir(parents=True)
    (tmp_path / "RACE" / "test" / "high").mkdir(parents=True)
    (tmp_path / "RACE" / "train" / "high" / "1.txt").write_text(json.dumps(article | {"answers": ["B", "A", "A"]}))
    (tmp_path / "RACE" / "test" / "high" / "2.txt").write_text(json.dumps(article | {"answers": ["A", "A", "A"]}))
    assert [r["answer"] for r in read_records(tmp_path / "RACE", Reading("choices"))] == [1, 0, 0]
    assert [r["answer"] for r in read_records(tmp_path / "RACE", Reading("choices"), "test")] == [0, 0, 0]
    (tmp_path / "race.jsonl").write_text(json.dumps(article))
    with pytest.raises(InputError, match=r"line 1, question 3: the answer .* \('E' of 2 options\)"):
        read_records(tmp_path / "race.jsonl", Reading("choices"))


def test_mmlu_itself_has_no_header(tmp_path):
    (tmp_path / "test.csv").write_text('"What, then?",a,"b, c",d,e,B\n"Two\nlines",1,2,3,4,D\n')
    records = read_records(tmp_path / "test.csv", Reading("choices"))
    assert [(record["question"], record["options"][record["answer"]]) for record in records] == [
        ("What, then?", "b, c"), ("Two\nlines", "4"),
    ]  # fmt: skip


def test_boolq_is_refused_by_name():
    rows = [{"question": "is it", "passage": "It is.", "answer": answer} for answer in (True, False)]
    with pytest.raises(InputError, match="as BoolQ: finetune_classification reads it with --text_field question"):
        read_rows(rows, Reading("choices"))


def test_fields_of_any_name():
    rows = [{"ask": "2 + 2?", "one": "3", "two": "4", "key": 1}]
    names = {"question": "ask", "options": ["one", "two"], "answer": "key"}
    assert read_rows(rows, Reading("choices", names)) == [{"question": "2 + 2?", "options": ["3", "4"], "answer": 1}]


@pytest.mark.parametrize("labels", ["ABC", "123"])
def test_options_at_the_end_of_the_question(tmp_path, labels):
    """ARC's CSV and QuaRel write the options into the question; the answer is their letter or number."""
    one, two, three = labels
    text = f'question,AnswerKey\n"A car (red, hot) stops. Why? ({one}) ice, snow ({two}) no (more) fuel",{two}\n'
    text += f"Who? ({one}) Ann ({two}) Bob ({three}) Eve,{three}\n"
    (tmp_path / "train.csv").write_text(text)
    assert list(read_records(tmp_path / "train.csv", Reading("choices"))) == [
        {"question": "A car (red, hot) stops. Why?", "options": ["ice, snow", "no (more) fuel"], "answer": 1},
        {"question": "Who?", "options": ["Ann", "Bob", "Eve"], "answer": 2},
    ]
    (tmp_path / "train.csv").write_text(text + f"Who? ({two}) Ann ({one}) Bob,{one}\n")
    with pytest.raises(InputError, match=r"line 4: the question has no options \(A\) … \(B\) …"):
        read_records(tmp_path / "train.csv", Reading("choices"))


def test_an_answer_index_counts_from_0():
    rows = [{"question": "2 + 2? (A) 3 (B) 4", "answer_index": 1}, {"question": "1? (A) 1 (B) 4", "answer_index": 0}]
    assert read_rows(rows, Reading("choices")) == [
        {"question": "2 + 2?", "options": ["3", "4"], "answer": 1},
        {"question": "1?", "options": ["1", "4"], "answer": 0},
    ]
