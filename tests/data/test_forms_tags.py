"""Forms of tagging: columns, CoNLL-U and spans of real data sets, read to the record by an independent reading."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading, Sample
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.forms.tag_spans import Span, tag_spans
from hf_tfm.data.records import Records
from hf_tfm.data.tables import ReadingOptions
from hf_tfm.data.text import find_words


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O
. . O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- -X- O

# # O O
\u00a0 NN B-NP O
"""


def read(tmp_path, text: str, name: str = "train.conll", labelled: bool = True, **options) -> Records:
    """The records of a file; field options are those of the script without `_field`."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    fields = {"words": "tokens", "tags": "tags", "text": "text"}
    names = {fields[option]: options.pop(option) for option in [*options] if option in fields}
    return read_records(path, Reading("tags", names, ReadingOptions(**options), labelled))


def split(text: str, column: int, separator: str | None = None) -> list[dict]:
    """Sentences of columns, read another way."""
    sentences = [
        [line.split(separator) if separator else line.split(" ") for line in block.split("\n") if line]
        for block in text.split("\n\n")
    ]
    sentences = [lines for lines in sentences if lines and not lines[0][0].startswith("-DOCSTART-")]
    return [
        {"tokens": [cells[0] for cells in lines], "tags": [cells[column] for cells in lines]} for lines in sentences
    ]


def notes(records: Records) -> str:
    return "\n".join(records.reports[0].lines())


@pytest.mark.parametrize("name", ["train.conll", "eng.train", "ner.txt", "train.iob", "train.tsv", "train.csv"])
def test_conll_2003_is_read_by_columns(tmp_path, name):
    records = read(tmp_path, CONLL, name)
    assert list(records) == split(CONLL, 3) and len(records) == 3
    assert records.reports[0].rows == 3 and "2 lines -DOCSTART- are left out" in notes(records)
    assert "tags from 'column 4' (--tags_field names another, or its number)" in notes(records)
    assert records.places[1].endswith("line 9")


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ({"columns": ("tokens", "pos", "chunk", "ner")}, 3),
        ({"columns": ("tokens", "pos", "chunk", "ner"), "tags": "pos"}, 1),
        ({"columns": ("tokens", "pos", "chunk", "x"), "tags": "Chunk"}, 2),
        ({"tags": "2"}, 1),
    ],
)
def test_columns_are_chosen_by_name_or_number(tmp_path, options, column):
    assert list(read(tmp_path, CONLL, **options)) == split(CONLL, column)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": "5"}, r"no column '5' \(--tags_field\), there are column 1, column 2"),
        ({"columns": ("a", "b"), "tags": "b"}, "--columns names 2 columns, but lines have 4"),
        ({"words": "form"}, r"no column 'form' \(--words_field\)"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, CONLL, **options)


TWO = "EU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\n. O\n\n"


@pytest.mark.parametrize("name", ["t.conll", "t.txt", "t.iob", "t.bio", "t.tsv", "t.csv"])
@pytest.mark.parametrize("separator", [" ", "\t", "  \t"])
def test_two_columns_with_tabs_or_blanks(tmp_path, name, separator):
    records = read(tmp_path, TWO.replace(" ", separator), name)
    assert list(records) == split(TWO, 1)
    assert "lines" not in notes(records) and "tags from" not in notes(records)


def test_two_columns_as_tsv_are_no_table_of_one_word_sentences(tmp_path):
    """As a table its first row would be the header, and each word a sentence."""
    blocks = [TWO] * 500
    records = read(tmp_path, "".join(blocks).replace(" ", "\t"), "train.tsv")
    assert list(records) == split(TWO, 1) * 500 and records[0]["tokens"] == ["EU", "rejects"]


def test_words_with_commas_quotes_and_spaces(tmp_path):
    rows = [['"', "O"], [",", "O"], ["a\u3000b", "B-X"], ["it's", "O"]]
    for separator in ("\t", " "):
        records = read(tmp_path, "\n".join(separator.join(row) for row in rows) + "\n\n", "t.txt")
        assert records[0] == {"tokens": [word for word, _ in rows], "tags": [tag for _, tag in rows]}
    text = '"""",O\n",",O\nAnn,B-PER\n\nsang,O\n'
    assert list(read(tmp_path, text, "t.csv")) == [
        {"tokens": ['"', ",", "Ann"], "tags": ["O", "O", "B-PER"]},
        {"tokens": ["sang"], "tags": ["O"]},
    ]


def test_parts_of_speech_and_other_public_columns(tmp_path):
    assert read(tmp_path, "the DET\ncat NOUN\n\n. PUNCT\n", "t.pos")[0] == {
        "tokens": ["the", "cat"],
        "tags": ["DET", "NOUN"],
    }
    lower = "".join(f"word{n} {'noun verb det'.split()[n % 3]}\n" + "\n" * (n % 5 == 4) for n in range(60))
    assert read(tmp_path, lower, "t.txt")[0]["tags"] == ["noun", "verb", "det", "noun", "verb"]
    germeval = "#\thttp://de.wikipedia.org [2009-10-17]\n1\tSchartau\tB-PER\tO\n2\tsagte\tO\tO\n\n#\tx y\n1\tIn\tO\tO\n"
    records = read(tmp_path, germeval, "train.tsv", tags="3")
    assert list(records) == [
        {"tokens": ["Schartau", "sagte"], "tags": ["B-PER", "O"]},
        {"tokens": ["In"], "tags": ["O"]},
    ]
    assert "2 lines with comments are left out" in notes(records)
    multiconer = "# id 5239 domain=en\nthe _ _ O\nbank _ _ B-GRP\n\n# id 1 domain=en\nyes _ _ O\n"
    assert [record["tags"] for record in read(tmp_path, multiconer)] == [["O", "B-GRP"], ["O"]]
    uner = "# sent_id = 1\n# text = Where\n1\tWhere\tO\t-\tAnn\n2\tOslo\tB-LOC\t-\tAnn\n\n"
    assert list(read(tmp_path, uner, "en.iob2")) == [{"tokens": ["Where", "Oslo"], "tags": ["O", "B-LOC"]}]


def test_a_table_with_a_number_for_each_sentence(tmp_path):
    """Kaggle's ner_dataset.csv, and a row a word with its sentence."""
    kaggle = (
        "Sentence #,Word,POS,Tag\nSentence: 1,Thousands,NNS,O\n,of,IN,O\n,London,NNP,B-geo\n"
        'Sentence: 2,",",",",O\n,Iraq,NNP,B-geo\n'
    )
    expected = [
        {"tokens": ["Thousands", "of", "London"], "tags": ["O", "O", "B-geo"]},
        {"tokens": [",", "Iraq"], "tags": ["O", "B-geo"]},
    ]
    records = read(tmp_path, kaggle, "ner.csv")
    assert list(records) == expected and "the first line is the header: Sentence #, Word, POS, Tag" in notes(records)
    numbered = 'sentence_id,words,labels\n0,Thousands,O\n0,of,O\n0,London,B-geo\n1,",",O\n1,Iraq,B-geo\n'
    assert list(read(tmp_path, numbered, "ner.csv")) == expected
    assert [record["tags"] for record in read(tmp_path, kaggle, "ner.csv", tags="POS")] == [
        ["NNS", "IN", "NNP"],
        [",", "NNP"],
    ]


def test_faults_of_columns_are_rows_that_cannot_be_used(tmp_path):
    broken = CONLL + "\nAnn NNP B-PER\nsang VBD B-VP O\n"
    with pytest.raises(InputError, match=r"line 17: a line has not 4 columns \(line 17: 'Ann NNP B-PER'\)"):
        read(tmp_path, broken)
    records = read(tmp_path, broken, skip_bad=True)
    assert len(records) == 3 and records.reports[0].rows == 4
    with pytest.raises(InputError, match=r"a word or a tag is blank \(line 5: '\\tO'\)"):
        read(tmp_path, "a\tO\nb\tB-X\n\nc\tO\n\tO\n", "t.tsv")
    with pytest.raises(InputError, match="has no blank lines behind sentences: all 300 words"):
        read(tmp_path, "Ann B-PER\nsang O\n" * 150)
    with pytest.raises(InputError, match="all 300 sentences have one word"):
        read(tmp_path, "Ann B-PER\n\nsang O\n\n" * 150)
    with pytest.raises(InputError, match="is CoNLL-2012"):
        read(tmp_path, "#begin document (bc/cctv); part 000\nbc 0 0 In IN (TOP* - - (ORG* -\n", "t.conll")
    table = "text,rude,spam\n" + "Buy two now,0,1\nGo away,1,0\n" * 20
    with pytest.raises(InputError, match="no field 'tags'|finetune_classification"):
        read(tmp_path, table, "t.csv")
    with pytest.raises(InputError, match="is plain text; tags need a word and its tag a line"):
        read(tmp_path, "Call me Ishmael.\nSome years ago.\n", "t.txt")


def test_one_word_a_row_is_refused_where_sentences_cannot_be_told(tmp_path):
    table = "word,tag\n" + "Ann,B-PER\nsang,O\n" * 60
    with pytest.raises(InputError, match="has no blank lines behind sentences|all first 100 records have one word"):
        read(tmp_path, table * 3, "t.csv")
    rows = [{"tokens": [word], "tags": [tag]} for word, tag in [("Ann", "B-PER"), ("sang", "O")] * 20]
    with pytest.raises(InputError, match="all first 40 records have one word, .* column `sentence_id`"):
        read_rows(rows, Reading("tags"))
    assert len(read_rows(rows, Reading("tags", options=ReadingOptions(format="words-and-tags")))) == 40


CONLLU = """# sent_id = 1
# text = Don't go.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\tSpaceAfter=No
3.1\twent\tgo\tVERB\t_\t_\t_\t_\t_\t_
4\t10 000\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_

# text = #
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (None, [["AUX", "PART", "VERB", "PUNCT"], ["SYM"]]),
        ("deprel", [["aux", "advmod", "root", "punct"], ["root"]]),
        ("5", [["VB", "RB", "VB", "."]]),
    ],
)
def test_conllu_reads_the_words_that_are_annotated(tmp_path, tags, expected):
    records = read(tmp_path, CONLLU, "en-ud-train.conllu", tags=tags)
    assert [record["tags"] for record in records] == expected
    assert records[0]["tokens"] == ["Do", "n't", "go", "10 000"]
    said = notes(records)
    assert "1 ranges of words" in said and "1 empty words" in said and "3 lines with comments" in said
    assert ("no word has a tag, all are _" in said) == (tags == "5") and records.reports[0].rows == 2


def test_words_alone_are_read_for_predictions(tmp_path):
    assert list(read(tmp_path, CONLL, labelled=False)) == [{"tokens": record["tokens"]} for record in split(CONLL, 3)]
    assert list(read(tmp_path, "Ann\nsang\n\nYes\n", labelled=False, format="columns")) == [
        {"tokens": ["Ann", "sang"]}, {"tokens": ["Yes"]}
    ]  # fmt: skip


TEXT = "Ann sang in New York."
SPANS = [[0, 3, "PER"], [12, 20, "LOC"]]
TAGGED = {"tokens": ["Ann", "sang", "in", "New", "York", "."], "tags": ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]}


def dicts(**names) -> list[dict]:
    keys = {"start": "start", "end": "end", "label": "label", **names}
    return [dict(zip((keys["start"], keys["end"], keys["label"]), span)) for span in SPANS]


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "text": TEXT, "label": SPANS, "Comments": []},  # doccano
        {"text": TEXT, "labels": SPANS, "meta": {}},
        {"data": TEXT, "label": SPANS},
        {"text": TEXT, "entities": dicts(start="start_offset", end="end_offset"), "relations": []},
        {"text": TEXT, "ents": dicts()},  # spaCy's Doc.to_json
        {"text": TEXT, "spans": [{**span, "token_start": 0} for span in dicts()], "answer": "accept"},  # Prodigy
        {"text": TEXT, "entities": dicts(label="entity_group")},
        {"text": TEXT, "label": [{**span, "labels": [span.pop("label")], "text": TEXT[span["start"] : span["end"]]}
                                 for span in dicts()], "annotator": 1},
        {"text": TEXT, "entities": json.dumps(SPANS)},  # in a cell of a table
        {"text": TEXT, "entities": repr(SPANS[::-1])},
    ],
)  # fmt: skip
def test_spans_are_laid_on_words(row):
    assert list(read_rows([row], Reading("tags"))) == [TAGGED]


def test_training_tuples_of_spacy(tmp_path):
    pairs = [[TEXT, {"entities": SPANS}], ["Yes.", {"entities": []}]]
    expected = [TAGGED, {"tokens": ["Yes", "."], "tags": ["O", "O"]}]
    for content in (
        json.dumps(pairs),
        "\n".join(map(json.dumps, pairs)),
        json.dumps({"classes": ["PER"], "annotations": [None, *pairs]}),
    ):
        assert list(read(tmp_path, content, "t.json")) == expected


def test_the_tokens_of_prodigy_and_spacy_are_the_words():
    places = [(0, 3), (4, 8), (9, 11), (12, 20), (20, 21)]
    tokens = [{"text": TEXT[a:b], "start": a, "end": b, "id": n} for n, (a, b) in enumerate(places)]
    row = {"text": TEXT, "tokens": tokens, "spans": dicts()}
    words = ["Ann", "sang", "in", "New York", "."]
    assert list(read_rows([row], Reading("tags"))) == [{"tokens": words, "tags": ["B-PER", "O", "O", "B-LOC", "O"]}]
    assert list(read_rows([row], Reading("tags", labelled=False))) == [{"tokens": words}]
    rejected = read_rows([row, {**row, "answer": "reject"}, {**row, "answer": "ignore"}], Reading("tags"))
    assert len(rejected) == 1 and "1 × field 'answer' is 'reject'" in notes(rejected)


def studio(*annotations: list, **more) -> dict:
    results = [{"result": [{"type": "labels", "from_name": "label", "value": value} for value in values], **more}
               for values in annotations]  # fmt: skip
    return {"id": 7, "data": {"text": TEXT}, "annotations": results, "predictions": []}


def test_exports_of_label_studio():
    values = [{"start": a, "end": b, "text": TEXT[a:b], "labels": [tag]} for a, b, tag in SPANS]
    assert list(read_rows([studio(values)], Reading("tags"))) == [TAGGED]
    records = read_rows([studio(values, []), studio(values, was_cancelled=True)], Reading("tags"))
    assert list(records) == [TAGGED] and "1 × texts have several annotations" in notes(records)
    assert "1 × no annotation that was not cancelled" in notes(records)
    [record] = read_rows([{"data": {"text": TEXT}}], Reading("tags", labelled=False))
    assert record["tokens"] == TAGGED["tokens"]
    minimal = [{"text": TEXT, "label": values, "annotator": 1}, {"text": "Yes.", "annotator": 1}]
    records = read_rows(minimal, Reading("tags"))
    assert records[1]["tags"] == ["O", "O"] and "1 × texts of Label Studio have no spans" in notes(records)


def test_spans_counted_in_utf_16_are_placed_by_their_text():
    text = "😀 Ann sang 😀"
    [record] = records = read_rows(
        [{"text": text, "label": [{"start": 3, "end": 6, "text": "Ann", "label": "PER"}]}], Reading("tags")
    )
    assert record["tags"] == ["O", "B-PER", "O", "O"] and "1 × spans are counted in UTF-16" in notes(records)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[12, 40, "LOC"]], r"a span is not in the text \(LOC 12–40 in a text of 21 characters\)"),
        ([[3, 3, "LOC"]], "a span is not in the text"),
        ([[8, 4, "LOC"]], "a span is not in the text"),
        ([[-3, 2, "LOC"]], "a span is not in the text"),
        ([[3, 4, "LOC"]], "a span is blank"),
        ([{"start": 0, "end": 4, "text": "Bob ", "label": "PER"}], r"another text .* \('Bob '"),
    ],
)
def test_spans_outside_their_text_are_refused(spans, message):
    with pytest.raises(InputError, match=message):
        read_rows([{"text": TEXT, "label": spans}], Reading("tags"))


def test_overlapping_spans_and_halves_of_words_are_counted():
    spans = [[0, 8, "EVENT"], [0, 3, "PER"], [0, 3, "PER"], [12, 17, "LOC"]]
    [record] = records = read_rows([{"text": TEXT, "label": spans}], Reading("tags"))
    assert record == {
        "tokens": ["Ann", "sang", "in", "New", "Y", "ork", "."],
        "tags": ["B-EVENT", "I-EVENT", "O", "B-LOC", "I-LOC", "O", "O"],
    }
    assert "1 × spans overlap a longer one" in notes(records) and "1 × words are cut" in notes(records)


def test_scripts_without_spaces_are_tagged_by_characters():
    [record] = read_rows([{"text": "张三去了北京。", "label": [[0, 2, "PER"], [4, 6, "LOC"]]}], Reading("tags"))
    assert record["tokens"] == list("张三去了北京。")
    assert record["tags"] == ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    [running] = read_rows([{"text": "张三去了北京。"}], Reading("tags", labelled=False))
    assert running["tokens"] == record["tokens"], "predictions split text as training does"


def test_spacys_json_of_version_2(tmp_path):
    tokens = [{"id": 0, "orth": "Ann", "ner": "U-PER"}, {"id": 1, "orth": "sang", "ner": "O"}]
    docs = [
        {"id": 0, "paragraphs": [{"raw": "Ann sang", "sentences": [{"tokens": tokens}, {"tokens": [{"orth": "x"}]}]}]}
    ]
    with pytest.raises(InputError, match="record 1, sentence 2: a token has no orth or no ner"):
        read(tmp_path, json.dumps(docs), "t.json")
    assert list(read(tmp_path, json.dumps(docs), "t.json", skip_bad=True)) == [
        {"tokens": ["Ann", "sang"], "tags": ["U-PER", "O"]}
    ]


def test_lists_in_cells_and_sentences_with_blanks(tmp_path):
    """Kaggle's ner.csv, and CSV that pandas writes."""
    kaggle = "Sentence #,Sentence,POS,Tag\nSentence: 1,Ann sang .,\"['NNP', 'VBD', '.']\",\"['B-per', 'O', 'O']\"\n"
    assert list(read(tmp_path, kaggle, "ner.csv")) == [{"tokens": ["Ann", "sang", "."], "tags": ["B-per", "O", "O"]}]
    pandas = "tokens,ner_tags\n\"['Ann', 'sang']\",\"['B-PER', 'O']\"\nYes,O\n"
    assert [record["tokens"] for record in read(tmp_path, pandas, "t.csv")] == [["Ann", "sang"], ["Yes"]]
    with pytest.raises(InputError, match="is a number below 0, which stands for no tag"):
        read_rows([{"tokens": ["a", "b"], "labels": [-100, 3]}], Reading("tags"))


def test_names_of_classes_come_from_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    features = {"ner_tags": {"feature": {"names": ["O", "B-PER", "I-PER", "B-NEVER"], "_type": "ClassLabel"},
                             "_type": "Sequence"}}  # fmt: skip
    table = pyarrow.table({"tokens": [["Ann", "sings"]], "ner_tags": [[1, 0]]})
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(meta), tmp_path / "t.parquet")
    records = read_records(tmp_path / "t.parquet", Reading("tags"))
    assert records == [{"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}]
    assert records.classes("tags") == ["O", "B-PER", "I-PER", "B-NEVER"]


def spans_of(tags: list[str], places: list[tuple[int, int]]) -> set[tuple[int, int, str]]:
    """Spans of tags B-, I- and O, by their definition."""
    spans: list[list] = []
    for tag, (start, end) in zip(tags, places):
        if tag.startswith("B-"):
            spans.append([start, end, tag[2:]])
        elif tag.startswith("I-"):
            spans[-1][1] = end
    return {tuple(span) for span in spans}


@given(st.text("ab c.猫北\u0301é-\n9😀", min_size=1, max_size=40).filter(str.strip), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_spans_and_tags_are_the_same(text, seed):
    draw, spans, end = random.Random(seed), set(), 0
    while end < len(text):
        start = draw.randint(end, len(text) - 1)
        end = draw.randint(start + 1, len(text))
        if text[start:end].strip():
            left = len(text[start:end]) - len(text[start:end].lstrip())
            spans.add((start + left, start + left + len(text[start:end].strip()), draw.choice(["X", "a-b c"])))
    sample = Sample(Reading("tags"))
    record = tag_spans(text, [Span(*span) for span in draw.sample(sorted(spans), len(spans))], sample)
    places, place = [], 0
    for word in record["tokens"]:
        place = text.index(word, place)
        places.append((place, place + len(word)))
        place += len(word)
    assert "".join(record["tokens"]) == "".join(text.split()) and spans_of(record["tags"], places) == spans
    if not sample.counts:
        assert places == find_words(text)


PLUS = """# global.columns = id form ner misc
# text = Ann sang.
1	Ann	B-PER	_
2	sang	O	SpaceAfter=No
3	.	O	_
"""


def test_conllu_plus_has_columns_of_any_name_and_case(tmp_path):
    """Its first line names the columns; tags are UPOS if there is one, else the column with another usual name."""
    assert list(read(tmp_path, PLUS, "train.conllup")) == [
        {"tokens": ["Ann", "sang", "."], "tags": ["B-PER", "O", "O"]}
    ]
    upper = PLUS.replace("id form ner misc", "ID FORM UP:PRED MISC")
    with pytest.raises(
        InputError, match="none of its columns ID, FORM, UP:PRED, MISC has tags: --tags_field names one"
    ):
        read(tmp_path, upper, "train.conllup")
    assert read(tmp_path, upper, "train.conllup", tags="UP:PRED")[0]["tags"] == ["B-PER", "O", "O"]
    with pytest.raises(InputError, match="none of its columns id, lemma, ner, misc has the name FORM"):
        read(tmp_path, PLUS.replace("form", "lemma"), "train.conllup")


@pytest.mark.parametrize("joint", ["/", "_", "|", "###"])
@pytest.mark.parametrize("name", ["train.txt", "brown.pos", "train.tsv"])
def test_tags_behind_their_words_in_running_text(tmp_path, joint, name):
    sentences = [[("The", "DT"), ("cat", "NN"), (".", ".")], [("A", "DT"), ("dog", "NN2"), ("sat", "VB-TL")]]
    blank = "\t" if name.endswith(".tsv") else " "
    text = "".join(blank.join(f"{word}{joint}{tag}" for word, tag in sentence) + "\n" for sentence in sentences)
    expected = [{"tokens": [word for word, _ in each], "tags": [tag for _, tag in each]} for each in sentences]
    assert list(read(tmp_path, text, name)) == expected
    assert read(tmp_path, text, name, labelled=False)[0] == {"tokens": ["The", "cat", "."]}
    with pytest.raises(InputError, match=r"line 3: a word has no tag behind \S+ \('bad'\)"):
        read(tmp_path, text + f"no{joint}UH bad\n" + text * 40, name, skip_bad=False)


@pytest.mark.parametrize(
    "text", ["either/or, and so on\n", "see http://a.example/b\n", "1/2 3/4\n", "snake_case a_b c\n"]
)
def test_slashes_in_plain_text_are_no_tags(tmp_path, text):
    with pytest.raises(InputError, match="is plain text"):
        read(tmp_path, text, "train.txt")


def test_choices_of_label_studio_are_classes_and_no_spans(tmp_path):
    """They were read as texts without a tagged word."""
    result = {"type": "choices", "value": {"choices": ["rude"]}}
    rows = [{"data": {"text": "Go away."}, "annotations": [{"result": [result]}]}] * 3
    with pytest.raises(InputError, match="no form of tags|no field|classification"):
        read(tmp_path, json.dumps(rows), "export.json")
