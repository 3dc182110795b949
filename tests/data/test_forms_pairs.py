"""Files of pairs as they are published: every one is read to the record, or refused by what it is."""

import gzip
import json

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.tables import ReadingOptions


STS = [
    ("5.000", "A plane is taking off.", 'An "air plane is taking off.'),
    ("0.000", 'A "man is here.', "A car, too, is red."),
    ("2.5", "A man plays a flute.", "A man plays."),
]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)], ids=["score first", "score last"])
@pytest.mark.parametrize("header", [False, True])
def test_sts_without_quotes_with_and_without_header(tmp_path, order, header):
    table = [[row[number] for number in order] for row in STS]
    names = [[("score", "sentence1", "sentence2")[number] for number in order]]
    (tmp_path / "sts.tsv").write_text("".join("\t".join(row) + "\n" for row in (names if header else []) + table))
    expected = [{"text": a, "text_pair": b, "score": float(score)} for score, a, b in STS]
    records = read_records(tmp_path / "sts.tsv", Reading("pairs"))
    assert list(records) == expected
    assert header or any("without a header: text is column" in note for note in records.reports[0].notes)


def test_the_sts_benchmark_itself_has_tabs_in_a_csv(tmp_path):
    lines = (
        f"main-captions\tMSRvid\t2012test\t{number:04}\t{score}\t{a}\t{b}\n" for number, (score, a, b) in enumerate(STS)
    )
    (tmp_path / "sts-train.csv").write_text("".join(lines))
    records = read_records(tmp_path / "sts-train.csv", Reading("pairs"))
    assert [(r["score"], r["text"], r["text_pair"]) for r in records] == [(float(s), a, b) for s, a, b in STS]


def test_triples_and_pairs_without_a_header(tmp_path):
    rows = ["who sings songs\tAnn sings songs.\tBob sits here.\n", "who is here\tBob is.\tAnn is not.\n"]
    (tmp_path / "triples.train.small.tsv").write_text("".join(rows))
    records = read_records(tmp_path / "triples.train.small.tsv", Reading("pairs"))
    assert records[1] == {"text": "who is here", "text_pair": "Bob is.", "negative": ["Ann is not."]}
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.write('["who sings", "Ann sings"]\n["who sits", "Bob sits"]\n')
    assert read_records(tmp_path / "pairs.jsonl.gz", Reading("pairs"))[1]["text_pair"] == "Bob sits"


PUBLISHED = {
    "AllNLI": ({"anchor": "a b", "positive": "c", "negative": "d"}, [("a b", "c", ["d"], None)]),
    "hard negatives": (
        {"query": "q", "positive": "p", "negative_1": "x", "negative_2": "y"},
        [("q", "p", ["x", "y"], None)],
    ),
    "lists": (
        {"query": "q", "pos": ["p", "r"], "neg": ["x", "y"]},
        [("q", "p", ["x", "y"], None), ("q", "r", ["x", "y"], None)],
    ),
    "STS": ({"sentence1": "a", "sentence2": "b", "score": "0.25"}, [("a", "b", [], 0.25)]),
    "SICK": ({"sentence_A": "a", "sentence_B": "b", "relatedness_score": 4.5}, [("a", "b", [], 4.5)]),
    "QQP": ({"question1": "a", "question2": "b", "is_duplicate": "1"}, [("a", "b", [], 1.0)]),
    "answers": ({"question": "a", "answer": "b", "id": 3}, [("a", "b", [], None)]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows(name):
    row, expected = PUBLISHED[name]
    records = read_rows([row], Reading("pairs"))
    assert [(r["text"], r["text_pair"], r.get("negative", []), r.get("score")) for r in records] == expected


def test_classes_are_no_scores():
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1, 2)]
    for several in (rows, rows[:2], [{"sentence1": "a", "sentence2": "b", "label": "entailment"}]):
        with pytest.raises(
            InputError, match="field 'label' holds classes.*finetune_classification.*--ignore_fields label"
        ):
            read_rows(several, Reading("pairs"))
    ignored = ReadingOptions(ignore_fields=("label",))
    assert read_rows(rows, Reading("pairs", options=ignored))[0] == {"text": "a", "text_pair": "b"}


def test_bad_rows_are_named():
    rows = [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, "high", None)]
    with pytest.raises(InputError) as raised:
        read_rows(rows, Reading("pairs"))
    assert "rows, row 2 ('high')" in str(raised.value) and "field 'score' is null: rows, row 3" in str(raised.value)
    with pytest.raises(InputError, match="row 1: field 'neg' is an empty list"):
        read_rows([{"query": "q", "pos": ["p"], "neg": []}], Reading("pairs"))


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "nq"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": "" if n else "Ann", "text": f"text {n}", "metadata": {}} for n in range(3)]
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(2)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "q0\td0\t1\nq0\td1\t2\nq1\td2\t0\n")
    (folder / "qrels" / "test.tsv").write_text(header + "q1\td2\t1\n")
    return folder


def test_beir_gives_the_pairs_of_its_judgements(beir):
    records = read_records(beir, Reading("pairs"))
    assert list(records) == [
        {"text": "query 0", "text_pair": "Ann text 0"}, {"text": "query 0", "text_pair": "text 1"},
    ]  # fmt: skip
    assert "3 rows → 2 records; left out: 1 × judged as not relevant" in records.reports[0].lines()[0]
    assert read_records(beir, Reading("pairs"), "test") == [{"text": "query 1", "text_pair": "text 2"}]
    with pytest.raises(InputError, match=r"no qrels of the 'validation' split, there is test.tsv, train.tsv"):
        read_records(beir, Reading("pairs"), "validation")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td2\t1\n")
    with pytest.raises(InputError, match="a query or document that is not there .query q9, document d2"):
        read_records(beir, Reading("pairs"), "test")


def test_judgements_of_trec_alone_are_refused_by_name(tmp_path):
    """They were said to be words with tags; the advice names the folder of BEIR."""
    (tmp_path / "qrels.txt").write_text("1 0 TREC_DOC_1 0\n1 0 DOC222 1\n2 Q0 WSJ_1 -1\n")
    with pytest.raises(InputError, match=r"judgements of TREC .* qrels/test.tsv, with the header query-id, corpus-id"):
        read_records(tmp_path / "qrels.txt", Reading("pairs"))
