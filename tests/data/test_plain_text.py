"""Plain text: lines with places, WikiText, Project Gutenberg, and nothing lost."""

from pathlib import Path

import pytest

from hf_tfm.core.errors import InputError
from hf_tfm.data import plain_text
from hf_tfm.data.files import DataFile
from hf_tfm.data.plain_text import open_lines, read_plain_text
from hf_tfm.data.tables import ReadingOptions


WIKITEXT = " \n = Robert <unk> = \n \n Robert is an actor . \n \n = = Career = = \n \n He played . \n"
WIKITEXT += " \n = 1 = 2 = \n \n A second article . \n"

HEADER = "The Project Gutenberg eBook of A Long\n\nTitle: A Long\n\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK A LONG\nTITLE IN TWO LINES ***\n"
BOOK = "\nIt was night.\n\nShe read.\n"
END = "*** END OF THE PROJECT GUTENBERG EBOOK A LONG ***\n\nThe licence.\n"


def read(path: Path, content: str | bytes, *arguments, **options) -> tuple[list[str], list[str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    notes: list[str] = []
    return list(read_plain_text(DataFile(path), *arguments, notes=notes, **options)), notes


@pytest.mark.parametrize("name", ["wiki.train.tokens", "wiki.test.raw"])
def test_articles_of_wikitext(tmp_path, name):
    documents, _ = read(tmp_path / name, WIKITEXT)
    assert [document.split("\n")[0] for document in documents] == [" ", " = Robert <unk> = ", " = 1 = 2 = "]
    assert "".join(documents) == WIKITEXT
    assert len(read(tmp_path / "a.txt", WIKITEXT)[0]) == 1


def test_marks_of_project_gutenberg_are_said_and_left_out_on_request(tmp_path):
    path, text = tmp_path / "a.txt", HEADER + START + BOOK + END
    documents, notes = read(path, text)
    assert "".join(documents) == text and "--strip_gutenberg leaves them out" in notes[0]
    documents, notes = read(path, text, strip_gutenberg=True)
    assert documents == [BOOK] and notes == ["Project Gutenberg's header and licence are left out"]
    assert read(path, text, "paragraph", strip_gutenberg=True)[0] == ["It was night.", "She read."]
    assert read(path, text, "line", strip_gutenberg=True)[0] == ["", "It was night.", "", "She read."]
    long_book = BOOK * 20_000
    assert "".join(read(path, HEADER + START + long_book + END, strip_gutenberg=True)[0]) == long_book
    assert read(path, BOOK, strip_gutenberg=True) == ([BOOK], [])


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_no_character_is_lost_where_reading_goes_on(tmp_path, monkeypatch, size):
    monkeypatch.setattr(plain_text, "MAX_CHARACTERS", 1000)
    text = ("ab c" * size)[:size] + "\nend"
    documents, _ = read(tmp_path / "a.txt", text)
    assert "".join(documents) == text and max(map(len, documents)) <= 1000
    assert read(tmp_path / "a.txt", text, "line")[0] == text.split("\n")


def test_lines_have_places(tmp_path):
    path = tmp_path / "a.conll"
    path.write_bytes("EU B-ORG\r\n\nÖl O".encode("cp1252"))
    lines = list(open_lines(DataFile(path), ReadingOptions(encoding="cp1252")))
    assert lines == [(f"{path}, line {n}", line) for n, line in enumerate(["EU B-ORG", "", "Öl O"], 1)]
    with pytest.raises(InputError, match="a.conll, line 3: is not UTF-8"):
        list(open_lines(DataFile(path)))
