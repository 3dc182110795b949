"""Reading documents: every format, every way to be wrong, and coming back to any place."""

import bz2
import csv
import gzip
import json
import lzma
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from hf_tfm.core.errors import InputError
from hf_tfm.data import files, json_rows, sources
from hf_tfm.data.sources import DocumentStream, Source, parse_source, parse_sources, read_documents


TEXTS = ["one\ntwo", 'quo"te, comma\ttab', "naïve ☃ 🎈", "[3] }{", "last"]


def write(path: Path, texts=TEXTS, field="text") -> Path:
    """The texts in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": i, field: text} for i, text in enumerate(texts)]
    kind = [suffix for suffix in path.suffixes if suffix in files.READABLE][0]
    if kind == ".parquet":
        table = pa.table({"id": range(len(texts)), field: texts})
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, row_group_size=2)
        data = sink.getvalue().to_pybytes()
    elif kind in (".csv", ".tsv"):
        plain = path.with_name("plain")
        with open(plain, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if kind == ".tsv" else ",")
            writer.writerows([["id", field], *([r["id"], r[field]] for r in records)])
        data = plain.read_bytes()
        plain.unlink()
    elif kind == ".json":
        data = json.dumps(records, indent=2).encode()
    elif kind == ".txt":
        data = "\n\n".join(texts).encode()
    else:
        data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix)
    if path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(pack(data) if pack else data)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_formats(tmp_path, kind):
    # A parquet file is read from its end, which a zstd stream cannot do.
    for packed in ["", ".gz", ".bz2", ".xz"] + [".zst"] * (kind != "parquet"):
        assert list(read_documents(write(tmp_path / f"a.{kind}{packed}"))) == TEXTS


def test_json_lines_in_a_json_file_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + write(tmp_path / "a.jsonl").read_bytes())
    assert list(read_documents(file)) == TEXTS
    file.write_bytes(b"\xef\xbb\xbf \n" + write(tmp_path / "b.json").read_bytes())
    assert list(read_documents(file)) == TEXTS


def test_a_broken_json_array_is_refused(tmp_path):
    file = write(tmp_path / "a.json", [f"{i} " + "x" * (i % 97) for i in range(50)])
    whole = file.read_text()
    for broken in (
        whole.rstrip()[:-1],
        whole + " " * 50 + "x",
        whole.replace("},", "}", 1),
        whole.replace("},", "},,"),
    ):
        file.write_text(broken)
        with pytest.raises(InputError, match="broken JSON"):
            list(read_documents(file))


def test_a_json_array_larger_than_memory_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "a.json")
    monkeypatch.setattr(json_rows, "_MAX_SHARE_OF_MEMORY", 1e-12)
    with pytest.raises(InputError, match=r"a.json: this JSON file is too large .* convert it to .jsonl"):
        list(read_documents(file))


def test_txt_documents(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a b\nc\n\n \nd\r\n\n\n", newline="")
    assert list(read_documents(file)) == ["a b\nc\n\n \nd\n\n\n"]
    assert list(read_documents({"location": str(file), "text_unit": "paragraph"})) == ["a b\nc", "d"]
    assert list(read_documents({"location": str(file), "text_unit": "line"})) == ["a b", "c", "d"]


def test_a_long_text_is_cut_at_line_ends_and_read_in_constant_memory(tmp_path):
    file = tmp_path / "a.txt"
    text = "".join(f"line {i} of a long book\n" for i in range(400_000))
    file.write_text(text)
    tracemalloc.start()
    assert sum(len(part) for part in read_documents(file)) == len(text) > 10e6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9e6
    parts = list(read_documents(file))
    assert "".join(parts) == text
    assert len(parts) > 8 and all(part.endswith("\n") for part in parts)


def test_a_folder_is_read_by_split(tmp_path):
    write(tmp_path / "b.jsonl", ["b"])
    write(tmp_path / "train-00001.jsonl.gz", ["t"])
    write(tmp_path / "sub" / "deep" / "a.txt", ["a"])
    write(tmp_path / "validation" / "x.csv", ["v1"])
    write(tmp_path / "dev.jsonl", ["v2"])
    write(tmp_path / "test_set.jsonl", ["t1"])
    write(tmp_path / "testament.jsonl", ["bible"])
    write(tmp_path / ".cache" / "junk.jsonl", ["junk"])
    (tmp_path / "README.md").write_text("not data")
    assert list(read_documents(tmp_path)) == ["b", "a", "bible", "t"]
    assert list(read_documents({"location": str(tmp_path), "split": "validation"})) == ["v2", "v1"]
    assert list(read_documents({"location": str(tmp_path), "split": "test"})) == ["t1"]
    # A file or glob is read whatever it is called.
    assert list(read_documents(tmp_path / "dev.jsonl")) == ["v2"]
    assert list(read_documents(f"{tmp_path}/**/*.csv")) == ["v1"]


def test_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("b.jsonl", "a/x.csv.gz", "test.jsonl", "p.parquet"):
            archive.write(write(tmp_path / "files" / name, [name]), name)
        archive.writestr("__MACOSX/._b.jsonl", "junk")
        archive.writestr("notes.doc", "junk")
    assert list(read_documents(tmp_path / "a.zip")) == ["a/x.csv.gz", "b.jsonl", "p.parquet"]
    source = Source(f"{tmp_path}/a.zip")
    assert str(source.list_files()[1]) == f"{tmp_path}/a.zip/b.jsonl"
    assert source.list_skipped_files() == {
        "named for another split": [tmp_path / "a.zip" / "test.jsonl"],
        "of another kind": [tmp_path / "a.zip" / "notes.doc"],
    }


def test_what_is_left_out_of_a_folder_can_be_named(tmp_path):
    """But for hidden files: those of other splits, and those of unknown kinds whatever split they are named for."""
    for name in ("a.jsonl", "test_a.jsonl", "dev/b.csv", "eval.zip", "notes.doc", "test.py", ".git/c.txt", "d/.e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = Source(str(tmp_path))
    assert [file.path.name for file in source.list_files()] == ["a.jsonl"]
    assert source.list_skipped_files() == {
        "named for another split": [tmp_path / "dev" / "b.csv", tmp_path / "eval.zip", tmp_path / "test_a.jsonl"],
        "of another kind": [tmp_path / "notes.doc", tmp_path / "test.py"],
    }
    assert Source(str(tmp_path / "test_a.jsonl")).list_skipped_files() == {} == Source("hub:a/b").list_skipped_files()


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_records_are_chosen_by_a_field(tmp_path, kind):
    origins = ("news", "web", "books", "news")
    records = [{"text": text, "source": one, "number": i} for i, (text, one) in enumerate(zip("abcd", origins))]
    path = tmp_path / f"mix{kind}"
    if kind == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "source", "number"])
            writer.writeheader()
            writer.writerows(records)
    else:
        lines = map(json.dumps, records)
        path.write_text("\n".join(lines) if kind == ".jsonl" else f"[{','.join(lines)}]")
    assert list(read_documents(f"{path}?source=news,books")) == ["a", "c", "d"]
    assert list(read_documents(f"{path}?source=web")) == ["b"]
    assert list(read_documents({"location": str(path), "where": {"number": [2]}})) == ["c"]
    with pytest.raises(InputError, match="holds no text; no record where .*poems"):
        list(read_documents(f"{path}?source=poems"))
    with pytest.raises(InputError, match="no field 'genre' to choose by" if kind != ".parquet" else "genre"):
        list(read_documents(f"{path}?genre=poems"))


def test_plain_text_has_no_fields_to_choose_by(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="plain text has no fields"):
        list(read_documents(f"{tmp_path / 'a.txt'}?source=news"))


def test_several_sources_fields_and_blank_documents(tmp_path):
    one = write(tmp_path / "one.jsonl", ["a", "", " \n", "b", "c"])
    two = write(tmp_path / "two.csv", ["d", "e"], field="body")
    assert list(read_documents([one, f"{two}#body"])) == ["a", "b", "c", "d", "e"]
    assert list(read_documents(two, text_field="body")) == ["d", "e"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("data/books", Source("data/books")),
        ("data/wiki.jsonl.gz@0.7", Source("data/wiki.jsonl.gz", weight=0.7)),
        ("x@2", Source("x", weight=2)),
        ("code=src/*.parquet#content@3e-1", Source("src/*.parquet", 0.3, "content", name="code")),
        ("hub:a/b:en:test@1", Source("hub:a/b:en:test", weight=1)),
        ("me@home/x.txt", Source("me@home/x.txt")),
        ("lang=en/x.txt", Source("en/x.txt", name="lang")),
        ("data/lang=en/x.txt", Source("data/lang=en/x.txt")),
        ({"location": "x", "weight": 2, "text_unit": "line"}, Source("x", 2, text_unit="line")),
    ],
)
def test_parse_source(spec, expected):
    assert parse_source(spec) == expected


def test_a_path_that_exists_is_taken_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lang=en" / "x#y@2.jsonl", ["a"])
    assert parse_source("lang=en/x#y@2.jsonl") == Source("lang=en/x#y@2.jsonl")


def test_hub_names():
    assert parse_source("hub:a/b").hub == ("a/b", None, "train")
    assert parse_source("hub:a/b:en").hub == ("a/b", "en", "train")
    assert parse_source("hub:a/b::test").hub == ("a/b", None, "test")
    assert parse_source({"location": "hub:a/b", "split": "test[:10%]"}).hub == ("a/b", None, "test[:10%]")
    assert parse_source("data/x.txt").hub is None


def _broken_gzip(path):
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])


BROKEN = {
    "missing.jsonl": (lambda path: None, "missing.jsonl: no such file, folder or glob"),
    "empty.jsonl": (lambda path: path.touch(), "empty.jsonl: holds no text"),
    "blank.txt": (lambda path: path.write_text(" \n\n"), "blank.txt: holds no text"),
    "header.csv": (lambda path: path.write_text("id,text\n"), "header.csv: holds no text"),
    "array.json": (lambda path: path.write_text("[]"), "array.json: holds no text"),
    "folder": (lambda path: path.mkdir(), "folder: holds no file of the 'train' split"),
    "a.docx": (lambda path: path.touch(), "a.docx: unknown kind of file; the name must end in .jsonl"),
    "a.gz": (lambda path: path.touch(), "a.gz: unknown kind of file"),
    "field.jsonl": (
        lambda path: write(path, field="body"),
        "field.jsonl: no field 'text' .--text_field",
    ),
    "field.csv": (
        lambda path: write(path, field="body"),
        "field.csv: no field 'text' .--text_field",
    ),
    "field.parquet": (
        lambda path: write(path, field="body"),
        "field.parquet: no field 'text' .--text_field",
    ),
    "null.jsonl": (
        lambda path: path.write_text('{"text": "a"}\n\n{"text": null}\n'),
        "null.jsonl, line 3: field 'text' is null",
    ),
    "null.parquet": (
        lambda path: write(path, ["a", None]),
        "null.parquet, record 2: field 'text' is null",
    ),
    "number.json": (lambda path: path.write_text('[{"text": 5}]'), "number.json, record 1: field 'text' is a int"),
    "short.csv": (
        lambda path: path.write_text("id,text\n1,a\n2\n"),
        "short.csv, line 3: has fewer cells than columns .1, not 2.",
    ),
    "list.jsonl": (lambda path: path.write_text("[1]\n"), "list.jsonl: no field .text."),
    "broken.jsonl": (
        lambda path: path.write_text('{"text": "a"}\n{"text": "b"\n'),
        r"broken.jsonl, line 2: broken JSON \(Expecting ',' delimiter, column 13\); mend",
    ),
    "digits.jsonl": (
        lambda path: path.write_text(f'{{"text": {"1" * 5000}}}'),
        "digits.jsonl.*: broken JSON .Exceeds the limit",
    ),
    "broken.json": (
        lambda path: path.write_text('[{"text": "a"}, {"text": b}]'),
        "broken.json, record 2: broken JSON",
    ),
    "cut.json": (lambda path: path.write_text('[{"text": "a"},'), "cut.json, record 2: broken JSON"),
    "open.json": (
        lambda path: path.write_text('[{"text": "a"}'),
        "record 2: broken JSON .Expecting ',' or ']' before it",
    ),
    "commas.json": (
        lambda path: path.write_text('[{"text": "a"} {"text": "b"}]'),
        "record 2: broken JSON .Expecting ','",
    ),
    "twice.json": (
        lambda path: path.write_text('[{"text": "a"}] [{"text": "b"}]'),
        "text behind the ] that ends 1 records",
    ),
    "colon.json": (lambda path: path.write_text('[{"text" "a"}]'), "record 1: broken JSON .Expecting ':' delimiter.$"),
    "half.jsonl": (
        lambda path: path.write_text('{"text": "\\ud83d"}\n'),
        "half.jsonl, line 1: field 'text' has half of a surrogate pair",
    ),
    "latin.txt": (lambda path: path.write_bytes("é".encode("latin1")), "latin.txt, line 1: is not UTF-8, and"),
    "latin.jsonl": (
        lambda path: path.write_bytes('{"text": "a"}\n{"text": "é"}'.encode("latin1")),
        "latin.jsonl, line 2: is not UTF-8, and its encoding cannot be told: name it with --encoding",
    ),
    "latin.csv": (lambda path: path.write_bytes(b"text\n\xe9\n"), "latin.csv, line 2: is not UTF-8, and"),
    "binary.txt": (lambda path: path.write_bytes(bytes(100)), "binary.txt, line 1: is not text"),
    "junk.parquet": (lambda path: path.write_bytes(bytes(range(200))), "junk.parquet: cannot be read"),
    "cut.parquet": (
        lambda path: path.write_bytes(write(path).read_bytes()[:-9]),
        "cut.parquet: cannot be read",
    ),
    "junk.jsonl.gz": (lambda path: path.write_bytes(b"junk"), "junk.jsonl.gz: cannot be read .*mend the file"),
    "cut.jsonl.gz": (_broken_gzip, "cut.jsonl.gz: cannot be read"),
    "junk.jsonl.xz": (lambda path: path.write_bytes(b"junk"), "junk.jsonl.xz: cannot be read"),
    "junk.jsonl.bz2": (lambda path: path.write_bytes(b"junk"), "junk.jsonl.bz2: cannot be read"),
    "junk.jsonl.zst": (lambda path: path.write_bytes(b"junk"), "junk.jsonl.zst: cannot be read"),
    "junk.zip": (lambda path: path.write_bytes(b"junk"), "junk.zip: cannot be read"),
    "wide.csv": (lambda path: path.write_text("text\na\nhello, world\n"), "wide.csv, line 3: has more cells"),
    "quote.csv": (lambda path: path.write_text('text\n"a" b\n'), "quote.csv, line 2: broken quotes"),
    "names.csv": (
        lambda path: path.write_text("text,id,text\na,1,b\n"),
        "names.csv: has 2 columns called 'text'; rename it, or say --no_header",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_are_one_line_that_says_where(tmp_path, name):
    make, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as error:
        list(read_documents(str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_columns_that_nobody_asks_for_may_share_a_name(tmp_path):
    (tmp_path / "a.csv").write_text("text,note,note,,\na,1,2,,\n")
    assert list(read_documents(tmp_path / "a.csv")) == ["a"]


def test_parts_of_a_source(tmp_path):
    """Together they are the whole text, and what stands in it twice is in one of them."""
    texts = [f"document {i}" for i in range(300)]
    path = write(tmp_path / "many.jsonl", [*texts, "", *texts[:50]])
    held_out, rest = ([*read_documents({"location": str(path), "part": part})] for part in ([0, 0.1], [0.1, 1]))
    assert 15 < len(set(held_out)) < 45 and not set(held_out) & set(rest)
    assert sorted(held_out + rest) == sorted(texts + texts[:50])
    assert rest == [text for text in texts + texts[:50] if text in set(rest)], "in another order"


def test_parts_of_one_file_of_plain_text(tmp_path):
    """It is one document, and cut so that there is something to hold out."""
    lines = [f"line {i} of a long story that has no end\n" for i in range(8000)]
    (tmp_path / "story.txt").write_text("".join(lines))
    assert len([*read_documents(tmp_path / "story.txt")]) == 1
    held_out, rest = ([*read_documents(Source(f"{tmp_path}/story.txt", part=part))] for part in ((0, 0.2), (0.2, 1)))
    assert held_out and rest and max(map(len, held_out + rest)) <= sources.HELD_OUT_CHARACTERS
    assert sorted("".join(held_out + rest).splitlines(keepends=True)) == sorted(lines)


def test_too_few_documents_for_a_part(tmp_path):
    """In all sources together: one that has none in a part is no mistake."""
    many = Source(str(write(tmp_path / "many.jsonl", [f"document {i}" for i in range(100)])))
    path = write(tmp_path / "one.jsonl", ["a single document"])
    parts = [
        [*read_documents([replace(s, part=part) for s in (many, Source(str(path)))])] for part in ((0, 0.5), (0.5, 1))
    ]
    assert sum(map(len, parts)) == 101
    with pytest.raises(InputError) as error:
        for part in ((0, 0.5), (0.5, 1)):
            list(read_documents(Source(str(path), part=part)))
    assert "one.jsonl: too few documents for a share of 0.5" in str(error.value)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no source of text"),
        (["a@1", "b"], "source b has no weight but others have"),
        ("a@0", "weight 0.0 is not a positive number"),
        ("a@1e", "'1e' behind the @ is not a number"),
        ({"location": "a", "wieght": 1}, "needs location, may have weight, text_field"),
        ({"location": "a", "weight": "high"}, "weight high is not a positive number"),
        ({"location": "a", "text_unit": "word"}, "must be document, paragraph or line"),
        ({"location": "a", "part": [0.5, 0.2]}, "is not two shares of its documents"),
        ({"location": "a", "part": 0.5}, "is not two shares of its documents"),
    ],
)
def test_wrong_sources(specs, message):
    with pytest.raises(InputError, match=message):
        parse_sources(specs)


@pytest.fixture
def three_places(tmp_path):
    """Sources of two files, of one file, and of a dataset that `datasets` opens; and their texts."""
    write(tmp_path / "folder" / "a.jsonl.gz", ["a1", "", "a2", "a3"])
    write(tmp_path / "folder" / "b.csv", ["b1", "b2"])
    write(tmp_path / "c.jsonl", ["c1", "c2"])
    write(tmp_path / "dataset" / "train.jsonl", ["h1", "h2", "h3"])
    write(tmp_path / "dataset" / "test.jsonl", ["t1"])
    folder, dataset = tmp_path / "folder", tmp_path / "dataset"
    places = parse_sources([folder, tmp_path / "c.jsonl", f"hub:{dataset}"])
    return places, ["a1", "a2", "a3", "b1", "b2", "c1", "c2", "h1", "h2", "h3"]


def test_a_stream_goes_on_from_any_position(three_places):
    places, texts = three_places
    assert list(read_documents(places)) == texts
    for done in range(len(texts) + 1):
        stream = DocumentStream(places)
        documents = iter(stream)
        first = [next(documents) for _ in range(done)]
        position = json.loads(json.dumps(stream.position()))
        assert first + list(DocumentStream(places, position)) == texts


def test_hub_errors(tmp_path, three_places):
    with pytest.raises(InputError, match="hub:nobody/nothing: cannot be opened"):
        list(read_documents("hub:nobody/nothing"))
    with pytest.raises(InputError, match="Bad split: dev. Available splits"):
        list(read_documents(f"hub:{tmp_path}/dataset::dev"))
    with pytest.raises(InputError, match=r"no field 'body' \(--text_field\), there are id, text"):
        list(read_documents(f"hub:{tmp_path}/dataset#body"))
