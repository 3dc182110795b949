"""Tables are read as they were written, or refused; what was guessed is said."""

import csv
import gzip
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc, parquet

from hf_tfm.core.errors import InputError
from hf_tfm.data.files import DataFile, list_files, list_skipped_files
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records
from hf_tfm.data.tables import BadRow, ReadingOptions, Table, open_table, read_rows


def read(path: Path, split: str = "train", **options) -> Table:
    """The table with its rows in a list."""
    with open_table(DataFile(path), ReadingOptions(**options), split) as table:
        table.rows = list(table.rows)
    return table


def rows_of(path: Path, split: str = "train", **options) -> list:
    return [row for _, row in read(path, split, **options).rows]


def write(path: Path, content: str | bytes | dict | list) -> Path:
    if isinstance(content, (dict, list)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Characters that matter to CSV, and some that every encoding of the test has, or only one.
_COMMON = st.text(st.sampled_from("ab1 ,;|\t\"'\n\r\\=-"), max_size=8)
_LETTERS = {
    "utf-8": "é☃ю日\u2028\x85",
    "utf-8-sig": "é☃ю日\u2028",
    "utf-16": "é☃ю日\u2028",
    "cp1252": "éèäßÞðÿœ€“",
    "cp1251": "éйюЯъёЂ№"[1:],
    "shift_jis": "ｱ日本ソ表あア、",
}
_SEPARATORS = {",": None, ";": None, "\t": None, "|": None, " ": "space"}


@st.composite
def written_tables(draw):
    """Rows, and how they are written: separator, quoting, encoding, header."""
    encoding = draw(st.sampled_from(list(_LETTERS)))
    cell = st.one_of(_COMMON, st.text(st.sampled_from('ab "\n' + _LETTERS[encoding]), max_size=8))
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=5))
    terminator = draw(st.sampled_from(["\r\n", "\n"]))
    # Python's csv puts a carriage return into quotes only if lines end in one.
    assume(terminator == "\r\n" or not any("\r" in cell for row in rows for cell in row))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    separator = draw(st.sampled_from(list(_SEPARATORS)))
    return rows, quoting, separator, terminator, encoding


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("is_told", [True, False], ids=["encoding told", "encoding not told"])
@given(table=written_tables())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_table_is_read_as_it_was_written_or_refused(tmp_path_factory, suffix, has_header, is_told, table):
    """But where quotes are kept, which is said: a file of tabs may have been written with quotes or without."""
    rows, quoting, separator, terminator, encoding = table
    names = [f"name {number}" for number in range(len(rows[0]))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator=terminator)
    writer.writerows([names] * has_header + rows)
    content = buffer.getvalue().encode(encoding)
    if not is_told and encoding in ("cp1252", "cp1251", "shift_jis"):
        assume(not _is_utf8(content))
    path = write(tmp_path_factory.getbasetemp() / f"property{suffix}", content)
    options = {"encoding": encoding if is_told else None, "no_header": not has_header}
    try:
        found = read(path, separator=_SEPARATORS[separator], **options)
    except InputError:
        return
    read_back = [row for _, row in found.rows]
    if any(isinstance(row, BadRow) for row in read_back) or any("kept as text" in note for note in found.notes):
        return
    columns = names if has_header else [f"column {number}" for number in range(1, len(names) + 1)]
    assert read_back == [dict(zip(columns, row)) for row in rows]


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


# Separators, quotes and headers of text.


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_found_and_said(tmp_path, separator):
    rows = [["text", "label"], ["hello, world", "good"], ["a, b, c", "bad"]]
    path = write(tmp_path / "a.csv", "".join(separator.join(row) + "\n" for row in rows))
    table = read(path)
    assert table.columns == rows[0] and [list(row.values()) for _, row in table.rows] == rows[1:]
    shown = "tab" if separator == "\t" else f"'{separator}'"
    assert table.notes == [f"cells are separated by {shown}, a guess; --separator names another"]


def test_commas_in_a_csv_are_not_worth_a_word(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"one; two | three",1\n"four\nlines",0\n')
    table = read(path)
    assert (table.kind, table.columns, table.notes) == ("csv", ["text", "label"], [])
    assert [row for _, row in table.rows] == list(csv.DictReader(io.StringIO(path.read_text())))
    assert [place for place, _ in table.rows] == [f"{path}, line 2", f"{path}, line 4"]


def test_cells_that_could_be_separated_in_two_ways_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", "a;1,5\nb;2,5\n")
    with pytest.raises(InputError, match="in several ways; say --separator ',' or --separator ';'"):
        read(path, no_header=True)
    assert rows_of(path, no_header=True, separator=";") == [
        {"column 1": "a", "column 2": "1,5"},
        {"column 1": "b", "column 2": "2,5"},
    ]


def test_blanks_separate_cells_on_request(tmp_path):
    path = write(tmp_path / "a.tsv", "EU   B-ORG\nrejects \t O\n")
    assert rows_of(path, separator="blanks", columns=("word", "tag")) == [
        {"word": "EU", "tag": "B-ORG"},
        {"word": "rejects", "tag": "O"},
    ]
    table = read(path, no_header=True, separator=None)
    assert any(isinstance(row, BadRow) for _, row in table.rows)
    with pytest.raises(InputError, match="must be one character, or tab, space or blanks"):
        read(path, separator="::")


def test_quotes_in_tsv_are_text(tmp_path):
    """Both readings of this file are consistent."""
    lines = ["text\tlabel", '"I will not go there,\tneg', 'she turned away at last."\tneg', "what a happy day\tpos"]
    table = read(write(tmp_path / "a.tsv", "\n".join(lines) + "\n"))
    assert [list(row.values()) for _, row in table.rows] == [line.split("\t") for line in lines[1:]]
    assert table.notes == ["quotes around cells are kept as text: TSV has no quoting"]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('text\tlabel\n"a\tb"\t1\nc\t0\n', [["a\tb", "1"], ["c", "0"]]),  # a tab inside
        ('text\tlabel\n"a\nb"\t1\nc\t0\n', [["a\nb", "1"], ["c", "0"]]),  # a line end inside
        ('text\tlabel\n"a ""b"""\t1\nc\t0\n', [['a "b"', "1"], ["c", "0"]]),  # doubled quotes
        ('"text"\t"label"\n"a"\t"1"\n', [["a", "1"]]),  # the header too
    ],
)
def test_quotes_of_a_quoting_writer_are_removed_from_tsv(tmp_path, content, rows):
    table = read(write(tmp_path / "a.tsv", content))
    assert [list(row.values()) for _, row in table.rows] == rows
    assert table.columns == ["text", "label"] and "taken as CSV's and removed" in table.notes[0]


def test_ill_formed_quotes_in_tsv_are_text_and_no_row_is_joined(tmp_path):
    content = 'text\tlabel\n"a" b\t1\n"c\t0\nd\te\t1\n"f ""g"""\t1\n'
    rows = [row for _, row in read(write(tmp_path / "a.tsv", content)).rows]
    assert [row["text"] for row in rows if isinstance(row, dict)] == ['"a" b', '"c', '"f ""g"""']
    assert str(rows[2]) == "has more cells than columns (3, not 2)"


def test_rows_that_cannot_be_used_are_collected_or_raised(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n1,2\n3\n4,5,6\n   \n\n"7" 8,9\n10,11\n')
    rows = read(path).rows
    faults = {place.rpartition(" ")[2]: row.kind for place, row in rows if isinstance(row, BadRow)}
    assert faults == {"3": "has fewer cells than columns", "4": "has more cells than columns", "7": "broken quotes"}
    assert [row for _, row in rows if not isinstance(row, BadRow)] == [{"a": "1", "b": "2"}, {"a": "10", "b": "11"}]
    with pytest.raises(InputError, match=r"a.csv, line 3: has fewer cells than columns \(1, not 2\); mend or drop"):
        list(read_rows(DataFile(path)))
    lines = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n{"a": 2}\n{"a": 3} x\n')
    assert [type(row) for row in rows_of(lines)] == [dict, BadRow, dict, BadRow]
    with pytest.raises(InputError, match=r"line 2: broken JSON \(Expecting value, column 7\); mend or drop this row"):
        list(read_rows(DataFile(lines)))


def test_headers(tmp_path):
    path = write(tmp_path / "a.csv", "good film,1\nbad film,0\ndull film,0\n")
    table = read(path)
    assert table.columns == ["good film", "1"] and table.header_looks_like_data == "'1' is a number"
    assert rows_of(path, no_header=True)[0] == {"column 1": "good film", "column 2": "1"}
    assert rows_of(path, columns=("text", "label"))[2] == {"text": "dull film", "label": "0"}
    assert read(path, no_header=True).first_row_looks_like_header is None
    with pytest.raises(InputError, match="--columns names 1 .text., but rows have 2 cells"):
        read(path, columns=("text",))
    path = write(tmp_path / "b.csv", "word,good\nfilm,good\nplay,bad\n")
    assert read(path).header_looks_like_data == "'good' is also a value of this column"
    assert "long for a name" in read(write(tmp_path / "c.csv", f"{'long ' * 20},x\na,b\n")).header_looks_like_data
    path = write(tmp_path / "d.csv", "rating,kind\n4,a\n5,b\n")
    assert read(path).header_looks_like_data is None
    assert read(path, no_header=True).first_row_looks_like_header == "'rating' is a common name of a column"
    path = write(tmp_path / "e.csv", "how many,kind\n4,a\n5,b\n")
    assert read(path, columns=("x", "y")).first_row_looks_like_header == "'how many' stands above numbers"


def test_columns_with_unclear_names_cannot_be_used(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,label,,\na b,2,3,4,\n")
    assert rows_of(path) == [{"text": "a b", "label": "2", "label (2)": "3", "column 4": "4", "column 5": ""}]
    with pytest.raises(InputError, match="has 2 columns called 'label'; .*--no_header.*--columns"):
        read_records(path, Reading("classification"))
    with pytest.raises(InputError, match="column 4 has no name in the header; .*--no_header.*--columns"):
        read_records(path, Reading("classification", {"label": "column 4"}))
    assert list(read_records(path, Reading("text"))) == [{"text": "a b"}]
    path = write(tmp_path / "a.csv", ",text\n0,one\n1,two\n")  # pandas' index
    assert read(path).columns == ["Unnamed: 0", "text"] and rows_of(path)[1] == {"Unnamed: 0": "1", "text": "two"}


# JSON.


RECORDS = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}, {"text": "three", "label": "a"}]


@pytest.mark.parametrize(
    ("value", "note"),
    [
        ({"data": RECORDS}, 'the 3 rows are those in "data" of a single object'),
        ({"version": "1", "data": RECORDS}, "left out: version"),
        ({"reviews": RECORDS}, 'the 3 rows are those in "reviews"'),
        ({"rows": [{"row_idx": n, "row": row} for n, row in enumerate(RECORDS)], "features": []}, "datasets server"),
        ({"train": RECORDS, "validation": RECORDS[:1]}, r"train \(3 rows\), validation \(1 rows\): read train"),
        ({name: [row[name] for row in RECORDS] for name in RECORDS[0]}, "lists of the same length"),
        ({name: {str(n): row[name] for n, row in enumerate(RECORDS)} for name in RECORDS[0]}, "made of columns"),
        ({str(n): row for n, row in enumerate(RECORDS)}, "numbered records"),
        ({"columns": ["text", "label"], "index": [0, 1, 2], "data": [[*row.values()] for row in RECORDS]}, "pandas"),
        ({"schema": {"fields": []}, "data": RECORDS}, "left out: schema"),
    ],
)
def test_objects_that_wrap_rows_are_unwrapped_and_said(tmp_path, value, note):
    for indent in (None, 2):
        table = read(write(tmp_path / "a.json", json.dumps(value, indent=indent)))
        assert [row for _, row in table.rows] == RECORDS
        assert [place for place, _ in table.rows][2] == f"{tmp_path}/a.json, record 3"
        assert len(table.notes) == 1 and re.search(note, table.notes[0])


def test_what_pandas_writes_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(RECORDS)
    for orient in ("columns", "index", "split", "records"):
        frame.to_json(tmp_path / "a.json", orient=orient)
        assert rows_of(tmp_path / "a.json") == RECORDS, orient
    frame.to_json(tmp_path / "a.json", orient="table")
    assert rows_of(tmp_path / "a.json") == [{"index": number, **row} for number, row in enumerate(RECORDS)]
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    assert rows_of(tmp_path / "a.jsonl") == RECORDS
    frame.to_csv(tmp_path / "a.csv")
    assert [row["Unnamed: 0"] for row in rows_of(tmp_path / "a.csv")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"text": "one", "label": "a"},
        {"context": "c", "answers": {"text": ["a"], "answer_start": [0]}},
        {"query": "q", "positive": ["a", "b"], "negative": ["c", "d"]},
    ],
)
def test_an_object_that_is_a_record_is_one_row(tmp_path, record):
    assert rows_of(write(tmp_path / "a.json", json.dumps(record, indent=1))) == [record]
    assert rows_of(write(tmp_path / "a.json", record)) == [record]
    assert rows_of(write(tmp_path / "a.jsonl", record)) == [record]


def test_squad_is_unwrapped_to_its_articles(tmp_path):
    articles = [{"title": "t", "paragraphs": [{"context": "c", "qas": []}]}]
    assert rows_of(write(tmp_path / "a.json", {"version": "v2.0", "data": articles})) == articles


def test_the_split_of_an_object_is_chosen(tmp_path):
    path = write(tmp_path / "a.json", {"train": RECORDS, "dev": RECORDS[:1], "test": RECORDS[1:]})
    assert rows_of(path, "validation") == RECORDS[:1] and rows_of(path, "test") == RECORDS[1:]
    assert len(rows_of(path, "")) == 6
    with pytest.raises(InputError, match=r"no rows of the 'validation' split, there are train \(3 rows\), test \(2"):
        read(write(tmp_path / "b.json", {"train": RECORDS, "test": RECORDS[1:]}), "validation")


def test_arrays_lines_and_other_values(tmp_path):
    table = read(write(tmp_path / "a.jsonl", RECORDS))
    assert [row for _, row in table.rows] == RECORDS and table.notes == ["is a JSON array, not one record a line"]
    assert rows_of(write(tmp_path / "a.jsonl", json.dumps(RECORDS, indent=1))) == RECORDS
    lines = "".join(json.dumps(row) + "\n" for row in RECORDS)
    for name in ("a.json", "a.ndjson"):
        table = read(write(tmp_path / name, "\n" + lines))
        assert [row for _, row in table.rows] == RECORDS and table.notes == [] and table.rows[0][0].endswith("line 2")
    for values in (["a", "b"], [[1, 2], [3, 4]], [1.5, None]):
        assert rows_of(write(tmp_path / "a.json", values)) == values
        assert rows_of(write(tmp_path / "a.jsonl", "".join(json.dumps(value) + "\n" for value in values))) == values


def test_objects_one_behind_the_other_and_metadata_are_refused(tmp_path):
    text = "\n".join(json.dumps(row, indent=2) for row in RECORDS)
    with pytest.raises(InputError, match=r"a.json, line 5: a second record begins; .*`jq -c .`"):
        read(write(tmp_path / "a.json", text))
    with pytest.raises(InputError, match="line 3: broken JSON .Expecting value, column 11"):
        read(write(tmp_path / "a.json", '{\n "text": "a",\n "label": ,\n}\n'))
    info = {"builder_name": "csv", "features": {"text": {"dtype": "string"}}, "splits": {"train": {"num_examples": 3}}}
    for metadata in (info, {"default": info}, {"model_type": "bert", "hidden_size": 8}):
        with pytest.raises(InputError, match="holds metadata .*no rows"):
            read(write(tmp_path / "a.json", json.dumps(metadata, indent=1)))


# Arrow.


FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "List"},
    "old": {"feature": {"names": ["x"], "_type": "ClassLabel"}, "_type": "Sequence"},
}
NUMBERED = [
    {"text": "one", "label": 1, "tags": [0, 1], "old": [0]},
    {"text": "two", "label": -1, "tags": [], "old": None},
    {"text": "three", "label": None, "tags": [1, -1], "old": []},
]
NAMED = [
    {"text": "one", "label": "yes", "tags": ["O", "B-X"], "old": ["x"]},
    {"text": "two", "label": -1, "tags": [], "old": None},
    {"text": "three", "label": None, "tags": ["B-X", -1], "old": []},
]


def arrow_table() -> pa.Table:
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.Table.from_pylist(NUMBERED).replace_schema_metadata(metadata)


def write_arrow(path: Path, kind: str) -> Path:
    table = arrow_table()
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    elif kind == "feather":
        feather.write_feather(table, path)
    else:
        with (
            open(path, "wb") as sink,
            (ipc.new_file if kind == "file" else ipc.new_stream)(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("kind", ["parquet", "feather", "file", "stream"])
def test_numbers_of_classes_become_names(tmp_path, kind):
    suffix = {"file": "arrow", "stream": "arrow"}.get(kind, kind)
    table = read(write_arrow(tmp_path / f"a.{suffix}", kind))
    assert [row for _, row in table.rows] == NAMED
    assert table.kind == ("parquet" if kind == "parquet" else "arrow") and table.columns == list(FEATURES)
    assert table.class_names == {"label": ["no", "yes"], "tags": ["O", "B-X"], "old": ["x"]}
    assert table.rows[2][0].endswith("record 3")
    (tmp_path / f"b.{suffix}").write_bytes(b"junk" * 50)
    with pytest.raises(InputError, match="cannot be read .*mend the file or fetch it again"):
        read(tmp_path / f"b.{suffix}")


def test_names_of_classes_in_an_answer_of_the_datasets_server(tmp_path):
    features = [{"feature_idx": n, "name": name, "type": kind} for n, (name, kind) in enumerate(FEATURES.items())]
    table = read(write(tmp_path / "a.json", {"features": features, "rows": [{"row": row} for row in NUMBERED]}))
    assert [row for _, row in table.rows] == NAMED and table.class_names["tags"] == ["O", "B-X"]


@pytest.mark.parametrize("has_splits", [True, False])
def test_a_folder_of_save_to_disk_is_read_without_its_metadata(tmp_path, has_splits):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    train = datasets.Dataset.from_list([{"text": "one", "label": 1}, {"text": "two", "label": -1}], features=features)
    test = datasets.Dataset.from_list([{"text": "three", "label": 0}], features=features)
    (datasets.DatasetDict({"train": train, "test": test}) if has_splits else train).save_to_disk(tmp_path / "saved")
    found = [row for file in list_files(tmp_path / "saved") for _, row in read_rows(file)]
    assert found == [{"text": "one", "label": "yes"}, {"text": "two", "label": -1}]
    skipped = list_skipped_files(str(tmp_path / "saved"))
    assert {path.name for path in skipped["about the data"]} >= {"state.json", "dataset_info.json"}
    if has_splits:
        assert [row["text"] for file in list_files(tmp_path / "saved", "test") for _, row in read_rows(file)] == [
            "three"
        ]


# Encodings and compression.


def test_other_encodings_of_tables(tmp_path):
    text = "text,label\n" + "".join(
        f"{word},{n}\n" for n, word in enumerate("größe äpfel öfen würde straße".split() * 9)
    )
    table = read(write(tmp_path / "a.csv", text.encode("cp1252")))
    assert [row for _, row in table.rows] == list(csv.DictReader(io.StringIO(text)))
    assert table.notes == ["not UTF-8: read as cp1252, a guess; --encoding NAME chooses another"]
    lines = '{"text": "größe"}\n{"text": "äpfel"}\n'
    for name in ("a.jsonl", "a.json"):
        path = write(tmp_path / name, lines.encode("cp1252"))
        assert rows_of(path, encoding="cp1252") == [{"text": "größe"}, {"text": "äpfel"}]
        with pytest.raises(InputError, match="--encoding cp1252"):
            read(path)
    path = write(tmp_path / "a.csv.gz", gzip.compress(text.encode("utf-16")))
    assert len(rows_of(path)) == 45
