"""Files of translations as they are published: every one is read to the record, or refused by what it is."""

import gzip

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.tables import ReadingOptions


PAIRS = [("Ann sings.", "Anna singt."), ('He says "no.', 'Er sagt "nein.'), ("Go.", "Geh.")]
EXPECTED = [{"source": source, "target": target} for source, target in PAIRS]


def aligned(folder, *texts):
    for language, text in zip(("en", "de"), texts or map("\n".join, zip(*PAIRS))):
        with gzip.open(folder / f"corpus.{language}.gz", "wt") as file:
            file.write(text + "\n")
    return [folder / "corpus.en.gz", folder / "corpus.de.gz"]


def test_two_files_line_by_line(tmp_path):
    english, german = aligned(tmp_path)
    records = read_records([english, german], Reading("translation"))
    assert list(records) == EXPECTED
    assert any("source is corpus.en.gz, target corpus.de.gz" in note for note in records.reports[0].notes)
    assert read_records([german, english], Reading("translation"))[0] == {
        "source": "Anna singt.",
        "target": "Ann sings.",
    }
    assert len(read_records([english, german] * 2, Reading("translation"))) == 6


def test_blank_lines_are_kept_in_step(tmp_path):
    places = aligned(tmp_path, "Ann sings.\n\n \nGo.", "Anna singt.\nEr sitzt.\n\nGeh.")
    records = read_records(places, Reading("translation"))
    assert list(records) == [EXPECTED[0], EXPECTED[2]]
    assert records.reports[0].lines()[0].count("1 × source") == 2 and records.reports[0].rows == 4


@pytest.mark.parametrize("longer", ["en", "de"])
def test_files_that_are_not_aligned_are_refused(tmp_path, longer):
    texts = {"en": "a\nb\nc", "de": "a\nb\nc"} | {longer: "a\nb\nc\nd\ne"}
    with pytest.raises(InputError, match=rf"corpus.{longer}.gz: has 5 lines, and .* has 3: they are not aligned"):
        read_records(aligned(tmp_path, texts["en"], texts["de"]), Reading("translation"))


@pytest.mark.parametrize("header", [None, "en\tde", "source\ttarget", "English\tGerman"])
def test_tables_with_and_without_a_header(tmp_path, header):
    lines = ([header] if header else []) + ["\t".join(pair) for pair in PAIRS]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    assert list(read_records(tmp_path / "train.tsv", Reading("translation"))) == EXPECTED


def test_tatoeba_has_three_or_four_columns(tmp_path):
    rows = [f"{source}\t{target}\tCC-BY 2.0 (France) Attribution: #1 (a) & #2 (b)" for source, target in PAIRS]
    (tmp_path / "deu.txt").write_text("\n".join(rows))
    records = read_records(tmp_path / "deu.txt", Reading("translation"))
    assert list(records) == EXPECTED
    assert any("source is column 1, target column 2" in note for note in records.reports[0].notes)
    rows = [f"{number}\t{source}\t{number + 7}\t{target}" for number, (source, target) in enumerate(PAIRS)]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    assert list(read_records(tmp_path / "pairs.tsv", Reading("translation"))) == EXPECTED
    options = ReadingOptions(columns=("a", "en", "b", "de"))
    reading = Reading("translation", {"source": "de", "target": "en"}, options)
    assert read_records(tmp_path / "pairs.tsv", reading)[0] == {"source": "Anna singt.", "target": "Ann sings."}


def test_languages_are_found_and_said():
    rows = [{"id": "1", "translation": {"en": source, "de": target}} for source, target in PAIRS]
    records = read_rows(rows, Reading("translation"))
    assert list(records) == EXPECTED and any("source is en, target de" in note for note in records.reports[0].notes)
    for names in (("de", "en"), ("translation.de", "translation.en"), ("de", None)):
        given = {name: value for name, value in zip(("source", "target"), names) if value}
        assert read_rows(rows, Reading("translation", given))[2] == {"source": "Geh.", "target": "Go."}
    rows = [{"translation": {**row["translation"], "fr": "x"}} for row in rows]
    with pytest.raises(InputError, match="has en, de, fr: say which with --source_field and --target_field"):
        read_rows(rows, Reading("translation"))
    with pytest.raises(InputError, match=r"no field 'fr_CA' in 'translation' \(--target_field\), there are en, de, fr"):
        read_rows(rows, Reading("translation", {"target": "translation.fr_CA"}))
    columns = [{"id": "1", "en": source, "de": target} for source, target in PAIRS]
    assert list(read_rows(columns, Reading("translation"))) == EXPECTED
    with pytest.raises(InputError, match="has the languages en, de, fr: say which with"):
        read_rows([{**row, "fr": "x"} for row in columns], Reading("translation"))
    assert list(read_rows([{"src": s, "tgt": t, "score": 0.9} for s, t in PAIRS], Reading("translation"))) == EXPECTED


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en-US" segtype="sentence"/><body>
<tu><prop type="x">1</prop><tuv xml:lang="en-US"><seg>Ann <bpt i="1"/>sings.</seg></tuv>
<tuv xml:lang="de"><seg>Anna singt.</seg></tuv>{third}</tu>
<tu><tuv xml:lang="en-US"><seg>Go &amp; sit.</seg></tuv>{other}</tu>
</body></tmx>"""


def test_tmx(tmp_path):
    path = tmp_path / "memory.tmx"
    path.write_text(TMX.format(third="", other='<tuv xml:lang="de"><seg>Geh &amp; sitz.</seg></tuv>'))
    records = read_records(path, Reading("translation"))
    assert list(records) == [EXPECTED[0], {"source": "Go & sit.", "target": "Geh & sitz."}]
    assert any("source is en-US, target de" in note for note in records.reports[0].notes)
    path.write_text(TMX.format(third='<tuv xml:lang="fr"><seg>Anne chante.</seg></tuv>', other=""))
    with pytest.raises(InputError, match="has en-US, de, fr: say which with --source_field and --target_field"):
        read_records(path, Reading("translation"))
    records = read_records(path, Reading("translation", {"source": "fr", "target": "en"}))
    assert list(records) == [{"source": "Anne chante.", "target": "Ann sings."}]
    assert "2 rows → 1 record; left out: 1 × no text in fr" in records.reports[0].lines()[0]
    path.write_text("<tmx><body><tu>")
    with pytest.raises(InputError, match="broken XML"):
        read_records(path, Reading("translation"))


def test_a_list_of_one_translation(tmp_path):
    """As doccano writes it; of several the right one cannot be known."""
    rows = [{"text": "Hello!", "label": ["Hallo!"]}, {"text": "Bye.", "label": ["Tschüss."]}]
    reading = Reading("translation", {"target": "label"})
    expected = [{"source": row["text"], "target": row["label"][0]} for row in rows]
    assert list(read_rows(rows, reading)) == expected
    with pytest.raises(InputError, match="row 3: field 'label' is a list of 2 translations, not of one"):
        read_rows([*rows, {"text": "Bye.", "label": ["Tschüss.", "Ade."]}], reading)
