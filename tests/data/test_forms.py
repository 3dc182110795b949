"""Forms of data files: every example is read as its form, as its records; nothing is read wrongly in silence."""

import json

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading, forms_of
from hf_tfm.data.forms.jobs import JOBS
from hf_tfm.data.forms.reader import RecordReader, read_records, read_rows
from hf_tfm.data.records import read_cell, read_list
from hf_tfm.data.tables import ReadingOptions


FORMS = [form for job in JOBS for form in forms_of(job)]


NEED_OPTIONS = {"running-text": dict(labelled=False), "comma-labels": dict(several=True)}


def reading_of(form):
    return Reading(form.job, **NEED_OPTIONS.get(form.name, {}))


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    roots = sorted({folder / name.partition("/")[0] for name in files})
    return [str(root) for root in roots]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.job}-{form.name}")
def test_examples_are_recognised_and_read_to_the_record(form, tmp_path):
    reader = RecordReader(write(tmp_path, form.example), reading_of(form))
    assert [read.record for read in reader] == list(form.gives)
    assert {report.form for report in reader.reports} == {form.name}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.job}-{form.name}")
def test_counts_of_each_file_add_up(form, tmp_path):
    reader = RecordReader(write(tmp_path, form.example), reading_of(form))
    records = list(reader)
    assert sum(report.records for report in reader.reports) == len(records)
    for report in reader.reports:
        left_out = sum(group.count for group in (*report.left_out.values(), *report.bad.values()))
        assert report.records >= report.rows - left_out > 0


def test_names_of_forms_differ_within_a_job():
    for job in JOBS:
        names = [form.name for form in forms_of(job)]
        assert len(names) == len(set(names))


def test_bad_rows_are_reported_all_at_once_by_their_reason(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"label": "y"}, {"text": "", "label": "y"}]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows * 5)))
    with pytest.raises(InputError) as raised:
        read_records(path, Reading("classification"))
    message = str(raised.value)
    assert "15 of 20 rows" in message and "--skip_bad" in message
    assert "10 × field 'text' is blank" in message and "5 × field 'text' is missing" in message
    assert "line 2;" in message
    records = read_records(path, Reading("classification", options=ReadingOptions(skip_bad=True)))
    assert len(records) == 5
    [report] = records.reports
    assert report.rows == 20 and sum(group.count for group in report.bad.values()) == 15


def test_used_and_unused_fields_are_reported(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"id": 1, "sentence": "a", "label": "x", "split": "train"}\n')
    [report] = read_records(path, Reading("classification")).reports
    assert report.used == {"sentence", "label"} and report.unused == {"id", "split"}
    text = "\n".join(report.lines())
    assert "1 row → 1 record" in text and "not used: id, split" in text and "--text_field" in text


def test_a_wrong_field_name_is_answered_with_the_nearest_one(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"sentence": "a", "label": "x"}\n')
    with pytest.raises(InputError, match=r"no field 'sentense' \(--text_field\).*did you mean 'sentence'"):
        read_records(path, Reading("classification", {"text": "sentense"}))


def test_standard_names_are_found_in_any_case_and_ignored_fields_are_not(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("Sentence,LABEL,text\na,x,b\n")
    records = read_records(path, Reading("classification", options=ReadingOptions(ignore_fields=("text",))))
    assert records == [{"text": "a", "label": "x"}]
    assert records.reports[0].used == {"Sentence", "LABEL"} and not records.reports[0].unused


def test_parts_of_a_row_are_left_out_by_themselves(tmp_path):
    def question(number, text):
        return {"id": f"q{number}", "question": "Who?", "answers": [{"text": text, "answer_start": 0}]}

    article = {
        "paragraphs": [{"context": "Ann sings.", "qas": [question(1, "Ann"), question(2, " "), question(3, "A")]}]
    }
    with pytest.raises(InputError, match=r"row 1, question q2: .* is blank"):
        read_rows([article], Reading("questions"))
    records = read_rows([article], Reading("questions", options=ReadingOptions(skip_bad=True)))
    assert [record["id"] for record in records] == ["q1", "q3"]


def test_a_name_is_found_inside_a_field_and_a_wrong_one_is_named():
    rows = [{"data": {"sentence": "a", "label": "x"}}]
    [record] = read_rows(rows, Reading("classification", {"text": "sentence", "label": "data.label"}))
    assert record == {"text": "a", "label": "x"}
    with pytest.raises(InputError, match=r"no field 'body' in 'data' \(--text_field\), there are sentence, label"):
        read_rows(rows, Reading("classification", {"text": "data.body", "label": "label"}))


def test_without_records_the_reasons_are_said():
    rows = [{"premise": "a", "hypothesis": "b", "gold_label": "-"}]
    with pytest.raises(InputError, match="holds no records; left out: 1 × no label, 'gold_label' is '-'"):
        read_rows(rows, Reading("classification"))


def test_one_row_with_fields_of_another_form_does_not_make_the_form_of_the_file(tmp_path):
    rows = [{"prompt": "a", "response": "b"}] * 3 + [{"instruction": "a", "output": "b"}]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="line 4: field 'prompt' is missing"):
        read_records(path, Reading("chat"))


@pytest.mark.parametrize("job", ["text", "classification", "tags"])
def test_predictions_read_a_text_of_each_line(job, tmp_path):
    (tmp_path / "a.txt").write_text("one two\n\nthree\n", encoding="utf-8")
    records = read_records(tmp_path / "a.txt", Reading(job, labelled=False))
    assert [record["text"] for record in records] == ["one two", "three"]
    [report] = records.reports
    assert report.rows == 3 and report.left_out["the line is blank"].count == 1 and "a text a line" in report.notes


def test_texts_without_commas_in_a_cell_are_never_joined():
    for text in ("['Ann' 'Bob']", "['Ann'\n 'Bob']", "{'text': ['Ann' 'Bob']}"):
        with pytest.raises(ValueError, match="."):
            read_cell(text)
    assert read_cell("{'text': array(['Ann', 'Bob'], dtype=object)}") == {"text": ["Ann", "Bob"]}
    assert read_list("['Ann', \"Bob's\"]") == read_list('["Ann", "Bob\'s"]') == ["Ann", "Bob's"]
    rows = [{"query": "q", "positive": "p", "negative": "['one' 'two']"}]
    with pytest.raises(InputError, match="is a list that cannot be read"):
        read_rows(rows, Reading("pairs"))
