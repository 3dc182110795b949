"""Text is decoded as it was encoded, or refused with the encodings to choose from."""

import codecs
from pathlib import Path

import pytest

from hf_tfm.core.errors import InputError
from hf_tfm.data.encodings import SAMPLE_BYTES, open_text
from hf_tfm.data.files import DataFile


# The first article of the Universal Declaration of Human Rights, and an encoding that is usual for the language.
TEXTS = {
    "cp1252": [
        "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de"
        " conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und"
        " sollen einander im Geist der Brüderlichkeit begegnen. Schöne Größe!",
        "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete och bör"
        " handla gentemot varandra i en anda av broderskap. Två små öar.",
        "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência,"
        " devem agir uns para com os outros em espírito de fraternidade. A lição começa às três.",
        "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di"
        " coscienza e devono agire gli uni verso gli altri in spirito di fratellanza. Perché così c’è più?",
    ],
    "cp1250": [
        "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i"
        " sumieniem i powinni postępować wobec innych w duchu braterstwa.",
        "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím a mají"
        " spolu jednat v duchu bratrství. Příliš žluťoučký kůň.",
    ],
    "cp1251": [
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны"
        " поступать в отношении друг друга в духе братства.",
        "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю і повинні"
        " діяти у відношенні один до одного в дусі братерства.",
    ],
    "cp1253": [
        "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι με"
        " λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης."
    ],
    "cp1254": [
        "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve birbirlerine"
        " karşı kardeşlik zihniyeti ile hareket etmelidirler."
    ],
    "cp932": [
        "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを授けられており、"
        "互いに同胞の精神をもって行動しなければならない。"
    ],
    "gb18030": ["人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"],
    "cp949": [
        "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 "
        "부여받았으며 서로 형제애의 정신으로 행동하여야 한다."
    ],
}
ENCODINGS = (*TEXTS, "iso8859_2", "iso8859_15", "koi8_r", "cp1257", "cp1255", "mac_roman", "cp850", "euc_jp", "big5")


def read(path: Path, content: bytes, encoding: str | None = None) -> tuple[str, list[str]]:
    path.write_bytes(content)
    notes: list[str] = []
    with open_text(DataFile(path), encoding, notes) as stream:
        return stream.read().decode(), notes


@pytest.mark.parametrize("usual", TEXTS)
def test_the_usual_encoding_of_a_language_is_found_and_said(tmp_path, usual):
    for text in TEXTS[usual]:
        for variant in (text, f"text,label\n{text},pos\n", text * 500):
            found, notes = read(tmp_path / "a.txt", variant.encode(usual))
            assert found == variant
            assert notes == [f"not UTF-8: read as {usual}, a guess; --encoding NAME chooses another"]


def test_no_text_is_read_in_another_encoding_than_its_own(tmp_path):
    """Short, whole, in capitals and as a column: a wrong text is the one thing that must not happen."""
    count = refused = 0
    for text in [text for texts in TEXTS.values() for text in texts]:
        for variant in (text[:40], text, text.upper(), "\n".join(f"{word},pos" for word in text.split())):
            for encoding in ENCODINGS:
                try:
                    content = variant.encode(encoding)
                except UnicodeEncodeError:
                    continue
                if content.isascii() or content.decode(encoding) != variant:
                    continue
                count += 1
                try:
                    found, _ = read(tmp_path / "a.txt", content)
                    assert found == variant, encoding
                except InputError as error:
                    refused += 1
                    assert "--encoding" in str(error)
    assert count > 150 and refused < 0.7 * count


def test_byte_order_marks(tmp_path):
    text = "text,label\nnaïve ☃ 🎈,pos\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert read(tmp_path / "a.csv", text.encode(encoding)) == (text, [])
        assert read(tmp_path / "a.csv", text.encode(encoding), encoding) == (text, [])
    for encoding, mark in (("utf-16-be", codecs.BOM_UTF16_BE), ("utf-32-be", codecs.BOM_UTF32_BE)):
        assert read(tmp_path / "a.csv", mark + text.encode(encoding)) == (text, [])
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(InputError, match=f"UTF-16 without a byte order mark; --encoding {encoding} reads it"):
            read(tmp_path / "a.csv", b"plain text\n".decode().encode(encoding))
        assert read(tmp_path / "a.csv", text.encode(encoding), encoding) == (text, [])


def test_a_short_text_is_refused_with_words_that_tell_encodings_apart(tmp_path):
    with pytest.raises(
        InputError, match=r"line 2: is not UTF-8, .*--encoding cp1252 \(has 'garçon'\) or --encoding"
    ) as error:
        read(tmp_path / "a.txt", "one\nun garçon\n".encode("cp1252"))
    assert read(tmp_path / "a.txt", "one\nun garçon\n".encode("cp1252"), "cp1252")[0] == "one\nun garçon\n"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "shift_jis", "utf-16"])
def test_an_error_far_into_a_file_names_line_and_byte(tmp_path, encoding):
    lines = ["ああ line of text\n"] * (SAMPLE_BYTES // 10)
    good = "".join(lines).encode(encoding)
    broken = {"utf-8": b"\xff", "shift_jis": b"\xff", "utf-16": b"\x00\xdc"}[encoding]
    with pytest.raises(InputError) as error:
        read(tmp_path / "a.txt", good + broken + "\n".encode(encoding), None if encoding == "utf-8" else encoding)
    assert f"line {len(lines) + 1}: byte {len(good) + 1} (0x" in str(error.value) and "--encoding" in str(error.value)


def test_utf8_with_a_few_broken_bytes_is_not_taken_for_another_encoding(tmp_path):
    text = TEXTS["cp1252"][0].encode()
    with pytest.raises(InputError, match=f"line 1: byte {len(text) + 1} .0xc3. is not UTF-8"):
        read(tmp_path / "a.txt", text + b"\xc3\n")


def test_binary_files_and_unknown_encodings(tmp_path):
    with pytest.raises(InputError, match="line 2: is not text .it has zero bytes"):
        read(tmp_path / "a.txt", b"a\n\xff\0\0\x01\x02\x03")
    with pytest.raises(InputError, match="line 300001: is not text"):
        read(tmp_path / "a.txt", b"a line of text\n" * 300_000 + b"\0")
    for name in ("utf-99", "base64", "rot13"):
        with pytest.raises(InputError, match=f"--encoding {name}: no such encoding; known are utf-8"):
            read(tmp_path / "a.txt", b"a", name)
