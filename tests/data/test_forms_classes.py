"""Forms of classification: labels, lists, columns, folders of real data sets, read to the record."""

import csv
import io
import json

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.records import Records
from hf_tfm.data.tables import ReadingOptions
from hf_tfm.tasks.classification import Classification
from hf_tfm.tasks.labels import read_labels


def read(tmp_path, content: str, name: str = "train.csv", labelled: bool = True, **options) -> Records:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    names = {name: options.pop(name) for name in ("text", "text_pair", "label") if name in options}
    return read_records(path, Reading("classification", names, ReadingOptions(**options), labelled))


def labels(rows: list[dict], **options) -> list:
    return [record["label"] for record in read_rows(rows, Reading("classification", **options))]


def notes(records: Records) -> str:
    return "\n".join(records.reports[0].lines())


def test_multi_hot_lists_are_no_names():
    """transformers' own convention; a Parquet's numbers of named classes are no such lists."""
    rows = [{"text": "a cat", "labels": [0, 1, 0, 1]}, {"text": "a dog", "labels": [1, 0, 0, 0]}]
    records = read_rows(rows, Reading("classification"))
    assert [record["label"] for record in records] == [["1", "3"], ["0"]]
    assert "4 classes" in notes(records) and "labels.json" in notes(records)
    task = read_labels(records)
    assert task.problem_type == "multi_label_classification" and task.names == ["0", "1", "2", "3"]
    assert task.encode(records) == [(0.0, 1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0)]
    as_cells = [{**row, "labels": json.dumps([float(value) for value in row["labels"]])} for row in rows]
    assert labels(as_cells) == [["1", "3"], ["0"]]
    assert labels([{"text": "a", "labels": [0]}, {"text": "b", "labels": [1, 0]}, {"text": "c", "labels": [2]}]) == [
        [0], [1, 0], [2],
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"row 12: field 'labels' has not 4 numbers 0 or 1 \(\[1, 0\]\)"):
        read_rows([*rows * 5, rows[0], {"text": "x", "labels": [1, 0]}], Reading("classification"))


def test_names_in_labels_json_name_multi_hot_classes(tmp_path):
    (tmp_path / "labels.json").write_text('["tame", "wild"]')
    records = read(tmp_path, '{"text": "a", "labels": [0, 1]}\n{"text": "b", "labels": [1, 1]}\n', "t.jsonl")
    task = read_labels(records)
    assert task.names == ["tame", "wild"] and task.encode(records) == [(0.0, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize("cell", ["['a', 'b']", '["a", "b"]', " ['a', 'b'] "])
def test_lists_in_cells(tmp_path, cell):
    file = io.StringIO()
    csv.writer(file).writerows([["text", "labels"], ["first text", cell], ["second text", "[]"]])
    assert [record["label"] for record in read(tmp_path, file.getvalue())] == [["a", "b"], []]


def test_labels_that_look_like_something_else_are_looked_at_twice(tmp_path):
    for value, message in (
        ("['a' 'b']", r"looks like a list that cannot be read"),  # NumPy
        ("{'a': 1}", "looks like a list"),
        ({"name": "a"}, "is a dict, not a name or a number"),
    ):
        rows = [{"text": f"text {n}", "label": "x"} for n in range(3)] + [{"text": "t", "label": value}]
        with pytest.raises(InputError, match=message):
            read_rows(rows, Reading("classification"))
    with pytest.raises(InputError, match="a label in field 'labels' is no name"):
        read_rows([{"text": "a", "labels": ["x", None]}, {"text": "b", "labels": ["y"]}], Reading("classification"))


def test_missing_labels_of_snli_and_glue_are_left_out():
    snli = [{"sentence1": "a", "sentence2": "b", "gold_label": label} for label in ("entailment", "-", "neutral")]
    records = read_rows(snli, Reading("classification"))
    assert [record["label"] for record in records] == ["entailment", "neutral"]
    assert "1 × no label, 'gold_label' is '-'" in notes(records) and records.reports[0].rows == 3
    assert labels([{"text": "a", "label": label} for label in (0, 1, 2, -1)]) == [0, 1, 2]
    assert labels([{"text": "a", "label": label} for label in ("pos", "neg", -1)]) == ["pos", "neg"]
    with pytest.raises(InputError, match="holds no records; left out: 2 × no label, 'label' is -1"):
        labels([{"text": "a", "label": -1}] * 2)
    predicted = read_rows(snli, Reading("classification", labelled=False))
    assert len(predicted) == 3 and all("label" not in record for record in predicted), "predictions need no label"


@pytest.mark.parametrize("values", [[-1, 1], [-1, 0, 1], ["-1", "1"], [-0.5, -1.0, 0.25], [-2, -1, 0, 3]])
def test_minus_one_is_a_label_beside_its_like(values):
    rows = [{"text": "a", "label": value} for value in values]
    records = read_rows(rows, Reading("classification"))
    assert [record["label"] for record in records] == values
    assert "-1 in 'label' is taken for a label beside" in notes(records)
    assert labels([{"text": "a", "label": label} for label in "+-+"]) == ["+", "-", "+"]


def test_tsv_has_no_quotes(tmp_path):
    text = 'text\tlabel\n"I will not go there,\tneg\nshe turned away at last."\tneg\nwhat a happy day\tpos\n'
    expected = [dict(zip(("text", "label"), line.split("\t"))) for line in text.splitlines()[1:]]
    assert list(read(tmp_path, text, "t.tsv")) == expected and len(expected) == 3
    rows = [(f"{quote}Hello , he said .", str(n % 2)) for n, quote in enumerate(['"', "", "'", '"', '""'] * 8)]
    text = "text\tlabel\n" + "".join(f"{sentence}\t{label}\n" for sentence, label in rows)
    assert [(record["text"], record["label"]) for record in read(tmp_path, text, "t.tsv")] == rows


def test_tables_without_a_header(tmp_path):
    text = "I like it a lot,pos\nIt is dull,neg\nIt is fine,pos\n"
    with pytest.raises(InputError, match="--columns"):
        read(tmp_path, text)
    for options in ({"columns": ("text", "label")}, {"no_header": True, "text": "column 1", "label": "column 2"}):
        assert list(read(tmp_path, text, **options)) == [
            dict(zip(("text", "label"), line.split(","))) for line in text.splitlines()
        ]
    ag_news = '"3","Wall St. Bears","Short-sellers, Wall Street"\n"4","Ann wins","She won."\n'
    records = read(tmp_path, ag_news, columns=("class", "title", "description"))
    assert list(records) == [{"text": "Short-sellers, Wall Street", "label": "3"}, {"text": "She won.", "label": "4"}]
    assert "not used: title" in notes(records)


JIGSAW = "id,comment_text,toxic,insult,threat\n0a,You!,1,1,0\n0b,Hello.,0,0,0\n0c,Hm.,1,0,0\n"


def test_several_columns_of_0_and_1(tmp_path):
    expected = [["toxic", "insult"], [], ["toxic"]]
    records = read(tmp_path, JIGSAW)
    assert [record["label"] for record in records] == expected
    assert "a class for each of the columns toxic, insult, threat" in notes(records)
    assert records.classes("label") == ["toxic", "insult", "threat"], "also a class that never holds"
    assert read_labels(records).encode(records)[0] == (1.0, 1.0, 0.0)
    named = read(tmp_path, JIGSAW, label=["insult", "toxic"])
    assert [record["label"] for record in named] == [["insult", "toxic"], [], ["toxic"]]
    assert "not used: id, threat" in notes(named)
    semeval = "ID,Tweet,anger,joy\n2017-1,Worry,False,True\n2017-2,Oh,True,False\n"
    assert [record["label"] for record in read(tmp_path, semeval)] == [["joy"], ["anger"]]
    single = read(tmp_path, JIGSAW, label="toxic")
    assert [record["label"] for record in single] == ["1", "0", "1"]
    with pytest.raises(InputError, match=r"column 'toxic' is neither 0 nor 1 \(toxic: '2'\)"):
        read(tmp_path, JIGSAW.replace("0c,Hm.,1", "0c,Hm.,2"), label=["toxic", "insult"])


def test_categories_of_spacy():
    rows = [{"text": "a", "cats": {"sport": 1.0, "news": 0.0}}, {"text": "b", "cats": {"sport": False, "news": True}}]
    assert labels(rows) == [["sport"], ["news"]] and read_labels(read_rows(rows, Reading("classification"))).names == [
        "sport",
        "news",
    ]
    records = read_rows([*rows, {"text": "c", "cats": {"sport": 0.7, "news": 0.2}}], Reading("classification"))
    assert records[2]["label"] == ["sport"] and "1 × texts have scores between 0 and 1" in notes(records)
    [pair] = read_rows([["a", {"cats": {"x": 1, "y": 0}}]], Reading("classification"))
    assert pair == {"text": "a", "label": ["x"]}


def test_fasttext_lines(tmp_path):
    lines = [f"__label__{'ab'[n % 2]} text number {n}" for n in range(40)] + ["__label__a __label__b both"]
    records = read(tmp_path, "\n".join(lines), "t.txt")
    assert records[1] == {"text": "text number 1", "label": ["b"]} and records[-1]["label"] == ["a", "b"]
    with pytest.raises(InputError, match="line 42: the line has no __label__"):
        read(tmp_path, "\n".join([*lines, "no label"]), "t.txt")


def test_comma_labels_are_read_when_asked_and_else_said(tmp_path):
    text = 'text,genre\na,"Drama, Crime"\nb,Crime\nc,Drama\nd,""\n'
    records = read(tmp_path, text.replace('d,""\n', ""), label="genre")
    assert [record["label"] for record in records] == ["Drama, Crime", "Crime", "Drama"]
    assert "1 × labels such as 'Drama, Crime'" in notes(records) and "--format comma-labels" in notes(records)
    asked = read(tmp_path, text, label="genre", format="comma-labels")
    assert [record["label"] for record in asked] == [["Drama", "Crime"], ["Crime"], ["Drama"], []]


def folder(root, *files: str):
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number}", encoding="utf-8")
    return root


def test_a_folder_for_each_class_and_for_each_split(tmp_path):
    """aclImdb with its unsup folder, 20 Newsgroups with its numbers, and a class that is called as a split."""
    names = "train/pos/0_9 train/neg/0_1 train/unsup/0_0 test/pos/1 test/neg/2".split()
    imdb = folder(tmp_path / "aclImdb", *(f"{name}.txt" for name in names))
    reading = Reading("classification")
    train, test = read_records(imdb, reading), read_records(imdb, reading, "test")
    assert {(record["label"], record["text"]) for record in train} == {("pos", "text 0"), ("neg", "text 1")}
    assert "1 × no label, in the folder unsup" in notes(train)
    assert {(record["label"], record["text"]) for record in test} == {("pos", "text 3"), ("neg", "text 4")}
    assert len(read_records(imdb / "test", reading, "test")) == 2
    news = folder(tmp_path / "20news", "alt.atheism/49960", "alt.atheism/51060", "sci.space/59848")
    assert sorted(record["label"] for record in read_records(news, reading)) == ["alt.atheism"] * 2 + ["sci.space"]
    traffic = folder(tmp_path / "traffic", "train/1.txt", "car/1.txt", "bus/1.txt")
    assert sorted(record["label"] for record in read_records(traffic, reading)) == ["bus", "car", "train"]


def test_pairs_of_public_data_sets():
    for first, second, label in (
        ("sentence1", "sentence2", "label"), ("premise", "hypothesis", "gold_label"),
        ("question1", "question2", "is_duplicate"), ("question", "sentence", "label"), ("text_a", "text_b", "labels"),
    ):  # fmt: skip
        rows = [{"idx": 1, first: "a", second: "b", label: "x"}]
        assert list(read_rows(rows, Reading("classification"))) == [{"text": "a", "text_pair": "b", "label": "x"}]
        assert list(read_rows(rows, Reading("classification", labelled=False))) == [{"text": "a", "text_pair": "b"}]


def test_a_model_of_pairs_does_not_take_single_texts():
    reading = Reading("classification", labelled=False, dashed=True, defaults={"text": "text", "text_pair": "second"})
    with pytest.raises(InputError, match="no field 'second', which had the second text .* --text-pair-field"):
        read_rows([{"text": "a"}], reading)
    assert list(read_rows([{"text": "a", "second": "b"}], reading)) == [{"text": "a", "text_pair": "b"}]


def test_rejected_records_of_prodigy_are_left_out():
    rows = [{"text": "a", "label": "x", "answer": answer} for answer in ("accept", "reject", "ignore")]
    assert len(labels(rows)) == 1


def test_names_of_classes_keep_their_order(tmp_path):
    import pyarrow
    from pyarrow import parquet

    features = {"label": {"names": ["world", "art", "never"], "_type": "ClassLabel"}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(meta), tmp_path / "t.parquet")
    records = read_records(tmp_path / "t.parquet", Reading("classification"))
    assert [record["label"] for record in records] == ["art", "world"] and "1 × no label" in notes(records)
    task = read_labels(records)
    assert task.names == ["world", "art", "never"] and task.encode(records) == [1, 0]


def test_labels_that_are_no_classes_are_refused_with_what_they_are():
    def learn(values, **fields):
        task = Classification(**fields)
        task.learn_labels(
            read_rows([{"text": f"t {n}", "label": value} for n, value in enumerate(values)], task.reading())
        )
        return task

    with pytest.raises(InputError, match="40 different labels in 40 records .*finetune_instruct"):
        learn(["A long answer that somebody wrote, with all that belongs to it: " + str(n) for n in range(40)])
    with pytest.raises(InputError, match="40 different labels in 40 records .*--problem_type regression"):
        learn(range(40))
    with pytest.raises(InputError, match="40 different labels .*--label_field names the right one"):
        learn([f"id{n}" for n in range(40)])
    assert learn(range(40), problem_type="regression").labels.problem_type == "regression"
    assert len(learn([f"id{n}" for n in range(40)], problem_type="single_label_classification").labels.names) == 40
    assert learn([0.5, 1.0, 2.25]).labels.problem_type == "regression"
    task = learn(["3", "1", "3"])
    split = task.read(read_rows([{"text": "a", "label": "1"}], task.reading()))
    assert "numbers without names" in " ".join(task.notes("train", split))


def test_a_file_with_another_number_of_classes_is_refused():
    from tiny import build

    config = build(
        "TfmEncoderForSequenceClassification", num_labels=3, problem_type="multi_label_classification"
    ).config
    records = read_rows([{"text": "a", "labels": [0, 1]}], Reading("classification"))
    with pytest.raises(InputError, match="has 2 classes without names, the model 3"):
        Classification().adopt_labels(config, records)


def test_numbers_with_fractions_behind_label_are_a_regression(tmp_path):
    """FastText's lines, with numbers as Flair writes them; whole numbers (__label__1) stay classes."""
    numbers = ["0.312", "0.7", "1", "0.312"]
    records = read(tmp_path, "".join(f"__label__{number}\tA text.\n" for number in numbers), "train.txt")
    learned = read_labels(records)
    assert learned.problem_type == "regression" and learned.encode(records) == [float(number) for number in numbers]
    records = read(tmp_path, "__label__1 A text.\n__label__2 A text.\n", "train.txt")
    assert read_labels(records).names == ["1", "2"]


def test_labels_json_in_a_folder_is_no_data(tmp_path):
    (tmp_path / "labels.json").write_text('["no", "yes"]')
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    records = read_records(tmp_path, Reading("classification"))
    assert len(records) == 2 and [report.file for report in records.reports] == [str(tmp_path / "train.jsonl")]
