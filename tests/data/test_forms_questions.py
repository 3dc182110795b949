"""Files of question answering as they are published: every one is read to the record, or refused by what it is."""

import csv
import json

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.tables import ReadingOptions


CONTEXT = "Ann sings in Oslo. Bob sings in Rome."
ANSWERED = {"id": "1", "question": "Where does Bob sing?", "answers": [{"text": "Rome", "answer_start": 32}]}
IMPOSSIBLE = {
    "id": "2", "question": "Where does Cid sing?", "answers": [], "is_impossible": True,
    "plausible_answers": [{"text": "Oslo", "answer_start": 13}],
}  # fmt: skip


def squad(*questions) -> dict:
    return {"version": "v2.0", "data": [{"title": "Singers", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}


def flat(question: dict) -> dict:
    answers = {key: [answer[key] for answer in question["answers"]] for key in ("text", "answer_start")}
    return {
        "id": question["id"],
        "title": "Singers",
        "context": CONTEXT,
        "question": question["question"],
        "answers": answers,
    }


def spans(records) -> list[list[str]]:
    """The answers, cut out of the contexts."""
    return [
        [
            record["context"][start : start + len(text)]
            for text, start in zip(*map(record["answers"].get, ("text", "answer_start")))
        ]
        for record in records
    ]


@pytest.mark.parametrize("indent", [None, 1])
def test_squads_own_files_are_read_for_training_and_for_predictions(tmp_path, indent):
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(squad(ANSWERED, IMPOSSIBLE), indent=indent))
    records = read_records(path, Reading("questions"))
    assert [record["id"] for record in records] == ["1", "2"] and spans(records) == [["Rome"], []]
    asked = read_records(path, Reading("questions", labelled=False))
    assert [(record["id"], record["question"], record["context"]) for record in asked] == [
        (question["id"], question["question"], CONTEXT) for question in (ANSWERED, IMPOSSIBLE)
    ]
    assert asked.rows == list(asked), "predictions are written beside the question, not beside its whole article"


def test_questions_without_answers_are_read_for_predictions(tmp_path):
    bare = [{name: question[name] for name in ("id", "question")} for question in (ANSWERED, IMPOSSIBLE)]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(squad(*bare)))
    assert len(read_records(path, Reading("questions", labelled=False))) == 2
    with pytest.raises(InputError, match="field 'answers' is null"):
        read_records(path, Reading("questions"))
    rows = [{"id": "7", "Question": "Who?", "passage": CONTEXT}]
    [record] = read_rows(rows, Reading("questions", labelled=False))
    assert record == {"question": "Who?", "context": CONTEXT}


CELLS = {
    "JSON": json.dumps,
    "Python": repr,
    "NumPy": lambda answers: (
        f"{{'text': array({answers['text']!r}, dtype=object), "
        f"'answer_start': array({answers['answer_start']!r},\n      dtype=int32)}}"
    ),
    "a list of mappings": lambda answers: repr([dict(zip(answers, pair)) for pair in zip(*answers.values())]),
}


@pytest.mark.parametrize("notation", CELLS)
def test_answers_in_cells_are_read_in_any_notation(tmp_path, notation):
    rows = [flat(ANSWERED), flat(IMPOSSIBLE), flat({**ANSWERED, "answers": [{"text": "Ann", "answer_start": 0}]})]
    with open(tmp_path / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "answers": CELLS[notation](row["answers"])} for row in rows)
    assert spans(read_records(tmp_path / "train.csv", Reading("questions"))) == [["Rome"], [], ["Ann"]]


def test_columns_of_answers_hold_numbers_as_text(tmp_path):
    (tmp_path / "train.csv").write_text(
        f'question,context,answer_text,answer_start\nWhere?,"{CONTEXT}",Rome,32.0\nWho?,"{CONTEXT}",,\n'
    )
    records = read_records(tmp_path / "train.csv", Reading("questions"))
    assert spans(records) == [["Rome"], []] and records[0]["answers"]["answer_start"] == [32]


def test_is_impossible_counts(tmp_path):
    rows = [{**flat(ANSWERED), "is_impossible": True}, {**flat(ANSWERED), "is_impossible": "False"}]
    records = read_rows(rows, Reading("questions"))
    assert spans(records) == [[], ["Rome"]]
    assert any("1 × answers left out, since is_impossible" in note for note in records.reports[0].notes)
    with pytest.raises(InputError, match="row 1: no answer, though is_impossible is false"):
        read_rows([{**flat(IMPOSSIBLE), "is_impossible": False}], Reading("questions"))


def test_starts_that_are_wrong_by_a_few_characters_are_mended_and_counted():
    rows = [flat({**ANSWERED, "answers": [{"text": "sings", "answer_start": start}]}) for start in (4, 6, 21, 23)]
    records = read_rows(rows, Reading("questions"))
    assert [record["answers"]["answer_start"] for record in records] == [[4], [4], [23], [23]]
    assert any(note.startswith("2 × answers not at their answer_start") for note in records.reports[0].notes)
    far = flat({**ANSWERED, "answers": [{"text": "Ann", "answer_start": 30}]})
    with pytest.raises(InputError, match=r"rows, row 5: .*\('Ann' is not at 30 but at 0\).*--skip_bad"):
        read_rows([*rows, far], Reading("questions"))


def test_one_bad_question_does_not_cost_its_article(tmp_path):
    bad = {**ANSWERED, "id": "9", "answers": [{"text": "Paris", "answer_start": 3}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(squad(ANSWERED, bad, IMPOSSIBLE)))
    with pytest.raises(InputError, match=r"question 9: an answer is not in its context \('Paris'\)"):
        read_records(path, Reading("questions"))
    records = read_records(path, Reading("questions", options=ReadingOptions(skip_bad=True)))
    assert [record["id"] for record in records] == ["1", "2"]
    assert "1 × an answer is not in its context" in records.reports[0].lines()[0]


def test_mrqa_is_read(tmp_path):
    found = {"text": "Rome", "char_spans": [[32, 35]], "token_spans": [[8, 8]]}
    rows = [
        {"header": {"dataset": "SQuAD", "split": "train"}},
        {
            "id": "",
            "context": CONTEXT,
            "qas": [{"qid": "a", "question": "Where?", "answers": ["Rome"], "detected_answers": [found]}],
        },
    ]
    (tmp_path / "SQuAD.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = read_records(tmp_path / "SQuAD.jsonl", Reading("questions"))
    assert spans(records) == [["Rome"]] and records[0]["id"] == "a"


REFUSED = {
    "drop": ({"passage": "p", "question": "q", "answers_spans": {"spans": ["3"], "types": ["number"]}}, "is DROP"),
    "triviaqa": ({"question": "q", "answer": {"value": "x"}, "entity_pages": {}, "search_results": {}}, "is TriviaQA"),
    "coqa": ({"story": "s", "questions": ["q"], "answers": {"input_text": ["a"]}}, "is CoQA"),
    "hotpotqa": ({"question": "q", "answer": "a", "context": {"title": []}, "supporting_facts": {}}, "is HotpotQA"),
    "boolq": ({"question": "q", "passage": "p", "answer": True}, "finetune_classification reads it with --text_field"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_without_spans_are_refused_by_what_they_are(name):
    row, reason = REFUSED[name]
    with pytest.raises(InputError) as raised:
        read_rows([row], Reading("questions"))
    assert reason in str(raised.value) and "\n" not in str(raised.value)
