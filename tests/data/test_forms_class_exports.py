"""Classes in the exports of annotation tools and in trees, read to the record by an independent reading."""

import json
import re

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records


def read(tmp_path, text, name, job="classification", labelled=True):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_records(path, Reading(job, labelled=labelled))


def annotate(*choices, **fields):
    return {"result": [{"type": "choices", "value": {"choices": list(choices)}}] if choices else [], **fields}


def test_choices_of_label_studio(tmp_path):
    """A task that nobody annotated, or whose annotation was cancelled, is left out and counted."""
    annotations = [
        [annotate("rude")],
        [annotate("rude", "short", ground_truth=True), annotate("fine")],
        [annotate("fine", was_cancelled=True), annotate("short")],
        [annotate()],
        [annotate("fine", was_cancelled=True)],
    ]
    tasks = [{"data": {"text": f"Text {n}."}, "annotations": each} for n, each in enumerate(annotations)]
    records = read(tmp_path, json.dumps(tasks), "export.json")
    assert list(records) == [
        {"text": "Text 0.", "label": ["rude"]},
        {"text": "Text 1.", "label": ["rude", "short"]},
        {"text": "Text 2.", "label": ["short"]},
    ]
    lines = "\n".join(records.reports[0].lines())
    assert "5 rows → 3 records" in lines and "1 × texts have several annotations" in lines
    with pytest.raises(InputError, match="form label-studio of classification, which finetune_classification reads"):
        read(tmp_path, json.dumps(tasks[:3]), "export.json", job="tags")


@pytest.mark.parametrize("names", [True, False])
def test_annotations_of_doccano(tmp_path, names):
    labels = [[2], [1, 3], [3, 3], []]
    rows = [
        {"id": n, "text": f"Text {n}.", "annotations": [
            {"label": label, "user": user} | ({"label_name": f"class {label}"} if names else {})
            for user, label in enumerate(each)
        ]}
        for n, each in enumerate(labels)
    ]  # fmt: skip
    records = read(tmp_path, "\n".join(map(json.dumps, rows)), "export.jsonl")
    written = [f"class {n}" if names else f"{n}" for n in range(4)]
    assert records.values("label") == [[written[2]], [written[1], written[3]], [written[3]]]
    assert "no label" in records.reports[0].lines()[0]


TREES = r"""(3 (2 (2 The) (2 Rock)) (4 (3 (2 is) (2 -LRB-)) (2 21st\/22nd)))
(0 (2 It) (0 (1 (2 was) (0 terrible)) (2 .)))
"""


@pytest.mark.parametrize("labelled", [True, False])
def test_trees_of_the_sentiment_treebank(tmp_path, labelled):
    """Words are what stands in front of a closing bracket, the label is the first number of a line."""
    words = [[part.rpartition(" ")[2] for part in line.split(")") if " " in part.strip()] for line in TREES.split("\n")]
    texts = [" ".join(line).replace("-LRB-", "(").replace("\\/", "/") for line in words if line]
    records = read(tmp_path, TREES, "train.txt", labelled=labelled)
    assert records.values("text") == texts
    assert [record.get("label") for record in records] == (["3", "0"] if labelled else [None, None])


def test_a_line_that_is_no_tree_is_a_bad_row(tmp_path):
    message = re.escape("line 201: the line is no tree in brackets ('(3 (2 The')")
    with pytest.raises(InputError, match=message):
        read(tmp_path, TREES * 100 + "(3 (2 The\n", "train.txt")


def test_categories_of_doccano_as_a_list_beside_entities(tmp_path):
    rows = [
        {"text": f"Text {n}.", "entities": [[0, 4, "X"]], "cats": cats} for n, cats in enumerate([["a"], ["b", "a"]])
    ]
    records = read(tmp_path, "\n".join(map(json.dumps, rows)), "intents.jsonl")
    assert records.values("label") == [["a"], ["b", "a"]]
    with pytest.raises(InputError, match="row.* cannot be used|field 'cats' is missing"):
        read(tmp_path, "\n".join(map(json.dumps, [*rows, {"text": "Text."}])), "intents.jsonl")
