"""
How the bytes of a file become text.

Text is UTF-8, or has a byte order mark, or the user names its encoding. charset-normalizer guesses that of other files.
A guess counts only if its letters are those of one language, and if no other encoding gives another text that is as
plausible. Otherwise the file is refused, because one encoding read as another is wrong without any error.
"""

import codecs
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, NoReturn

from ..core.errors import InputError
from .files import DataFile, open_file


SAMPLE_BYTES = 4 << 20  # an encoding is guessed from the start of a file
_EVIDENCE_BYTES = 1 << 16  # of its lines that are not ASCII
_CHUNK_BYTES = 1 << 18
_MIN_LETTERS = 80  # a guess from fewer letters is no guess

_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class _Writing(NamedTuple):
    """
    The letters of languages that share encodings.

    Args:
        encodings: Names, the most common one first.
        alphabets: Letters of each language besides ASCII, in lower case.
        frequent: The most frequent ones, of a script that has no ASCII letters.
        share: The smallest share of the frequent ones in real text.
    """

    encodings: tuple[str, ...]
    alphabets: tuple[str, ...]
    frequent: str = ""
    share: float = 0.0


def _letters(first: str, last: str) -> str:
    return "".join(map(chr, range(ord(first), ord(last) + 1)))


_CJK = _letters("一", "鿿") + _letters("、", "〟") + _letters("！", "～") + "·…—–‘’“”￥　々"
_KANA = _letters("ぁ", "ゖ") + _letters("ァ", "ー")
_WRITINGS = (
    _Writing(
        ("cp1252", "iso8859_15", "mac_roman", "cp850", "cp437"),
        # French, German, Spanish, Portuguese, Italian, Swedish and Finnish, Danish and Norwegian, Icelandic, Dutch,
        # Catalan, Albanian, loanwords in English
        ("àâæçèéêëîïôœùûüÿ", "äöüßéàè", "áéíóúüñªº", "àáâãçéêíóôõúüªº", "àèéìíîòóùúªº", "åäöéü", "æøåéèêòóôöäü")
        + ("áðéíóúýþæö", "éèëïöüáóíêçä", "àèéíïòóúüç·", "ëç", "àâçèéêëïîñóöôüí"),
    ),
    _Writing(
        ("cp1250", "iso8859_2"),
        # Polish, Czech, Slovak, Hungarian, Romanian, Croatian and Slovene, German
        ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž", "äöüß"),
    ),
    _Writing(("cp1254",), ("çğıöşüâîûi̇",)),
    _Writing(("cp1257",), ("āčēģīķļņšūž", "ąčęėįšųūž", "äõöüšž")),
    _Writing(
        ("cp1251", "koi8_r", "cp866"),
        (_letters("а", "я") + "ё", _letters("а", "я") + "іїєґ", _letters("а", "ш") + "ђјљњћџ"),
        "оаеинтісвр",
        0.5,
    ),
    _Writing(("cp1253", "iso8859_7"), (_letters("ά", "ώ") + "ΐ",), "αοιετσνηυρςάόίέή", 0.62),
    _Writing(("cp1255",), (_letters("א", "ת") + _letters("\u05b0", "\u05c2"),), "יוהלאתמרבש", 0.5),
    _Writing(("cp1256",), (_letters("ء", "ْ"),), "اليمونرتبةهع", 0.6),
    _Writing(("cp932", "euc_jp"), (_CJK + _KANA,), _KANA, 0.3),
    _Writing(
        ("gb18030", "big5"),
        (_CJK,),
        "的一是不了在人有我他这这這中大来來上国國个個到说說们們为為子和你地出道也时時年得就那要下以生会會自着著去之过過家学學对對可她里裡后後，。、",
        0.12,
    ),
    _Writing(("cp949",), (_CJK + _letters("가", "힣"),), "이다는을에가의고하지로도한사기은를인", 0.2),
)
_LANGUAGES = {encoding: writing for writing in _WRITINGS for encoding in writing.encodings}
_SIGNS = set("‘’“”„–—…•·«»€£§©®™°±²³½¼¾×µ¿¡\u00a0\u00ad№")  # of any language


@contextmanager
def open_text(file: DataFile, encoding: str | None = None, notes: list[str] | None = None) -> Iterator[BinaryIO]:
    """
    Open a file's text as a stream of UTF-8 without a byte order mark, whatever its encoding is.

    Args:
        encoding: The encoding that the user named. UTF-8 and byte order marks are known without it.
        notes: Receives a sentence if the encoding was guessed.

    Raises:
        InputError: The file is not text, or not in this encoding, or it has one that cannot be told; the message names
            line and byte. It may come later, while the stream is read.
    """
    with open_file(file) as stream:
        chunks = deque(stream.read(_CHUNK_BYTES) for _ in range(SAMPLE_BYTES // _CHUNK_BYTES))
        name = _known_encoding(encoding) if encoding is not None else _find_encoding(file, chunks, notes)
        yield io.BufferedReader(_Recoder(stream, file, chunks, name), _CHUNK_BYTES)


def _find_encoding(file: DataFile, chunks: deque[bytes], notes: list[str] | None) -> str:
    is_whole = not chunks[-1]
    name = next((name for mark, name in _MARKS.items() if chunks[0].startswith(mark)), "")
    if not name:
        if any(b"\0" in chunk for chunk in chunks):
            _refuse_binary(file, b"".join(chunks))
        name = "utf-8" if _is_utf8(chunks, is_whole) else ""
    return name or _guess(file, b"".join(chunks), is_whole, [] if notes is None else notes)


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
        name = codecs.lookup(name).name
    except (LookupError, ValueError):
        names = ", ".join(encoding for writing in _WRITINGS for encoding in writing.encodings[:1])
        raise InputError(f"--encoding {name}: no such encoding; known are utf-8, utf-16, {names} and more") from None
    return "utf-8" if name == "utf-8-sig" else name


class _Recoder(io.RawIOBase):
    """Text of any encoding as UTF-8. The first bytes are given, because the encoding was found with them."""

    def __init__(self, stream: BinaryIO, file: DataFile, first: deque[bytes], encoding: str):
        self._stream, self._file, self._first, self._encoding = stream, file, first, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._bytes = self._lines = 0  # that were decoded
        self._rest = b""
        self._is_start, self._is_end = True, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (self._rest or self._is_end):
            self._rest = self._read_chunk()
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _read_chunk(self) -> bytes:
        chunk = self._first.popleft() if self._first else self._stream.read(_CHUNK_BYTES)
        self._bytes += len(chunk)
        self._is_end = not chunk
        try:
            text = self._decoder.decode(chunk, final=self._is_end)
            content = text.encode()
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode(error.encoding, "replace")
            line = self._lines + good.count("\n") + 1
            position = self._bytes - len(error.object) + error.start + 1
            raise InputError(
                f"{self._file}, line {line}: byte {position} (0x{error.object[error.start]:02x}) is not "
                f"{_shown(self._encoding)}; --encoding NAME reads another encoding"
            ) from None
        except UnicodeError as error:
            raise InputError(f"{self._file}: is not {_shown(self._encoding)} ({error}); see --encoding") from None
        if "\0" in text:
            line = self._lines + text[: text.index("\0")].count("\n") + 1
            raise InputError(f"{self._file}, line {line}: is not text (it has zero bytes); leave it out")
        self._lines += text.count("\n")
        if self._is_start and text:
            self._is_start = False
            content = content.removeprefix(codecs.BOM_UTF8)
        return content


def _shown(encoding: str) -> str:
    return encoding.upper() if encoding.startswith("utf") else encoding


def _refuse_binary(file: DataFile, sample: bytes) -> NoReturn:
    pairs = sample[: len(sample) // 2 * 2]
    for zeros, name in ((pairs[1::2], "utf-16-le"), (pairs[::2], "utf-16-be")):
        if zeros.count(0) > max(0.7 * len(zeros), 0.9 * sample.count(0)):
            raise InputError(f"{file}: seems to be UTF-16 without a byte order mark; --encoding {name} reads it")
    line = sample[: sample.index(b"\0")].count(b"\n") + 1
    raise InputError(f"{file}, line {line}: is not text (it has zero bytes); leave it out")


def _guess(file: DataFile, sample: bytes, is_whole: bool, notes: list[str]) -> str:
    lossy = sample.decode("utf-8", "replace")
    broken = lossy.count("\ufffd")
    if sum(character > "\x7f" for character in lossy) > 2 * broken:
        return "utf-8"  # with a few broken bytes, at which reading will stop
    line = lossy[: lossy.index("\ufffd")].count("\n") + 1
    evidence = _lines_with_evidence(sample)
    readings = {name: text for name in _candidates(evidence) if (text := _decode(evidence, name, True)) is not None}
    # charset-normalizer names one of several encodings that give the same text.
    same = {
        name: [other for other in _LANGUAGES if _decode(evidence, other, True) == text]
        for name, text in readings.items()
    }
    readings = {same[name][0]: text for name, text in readings.items()}
    plausible = [names[0] for names in same.values() if any(_is_plausible(readings[names[0]], name) for name in names)]
    whole: dict[str, str] = {name: text for name in plausible if (text := _decode(sample, name, is_whole)) is not None}
    texts = list(dict.fromkeys(whole.values()))
    if len(texts) == 1 and _count_letters(texts[0][: 100 * _MIN_LETTERS]) >= _MIN_LETTERS:
        name = next(name for name in _LANGUAGES if _decode(sample, name, is_whole) == texts[0])
        notes.append(f"not UTF-8: read as {name}, a guess; --encoding NAME chooses another")
        return name
    names = list(whole if len(texts) > 1 else {**whole, **dict.fromkeys(sorted(readings, key=list(_LANGUAGES).index))})
    raise InputError(f"{file}, line {line}: is not UTF-8, {_choices(names, readings)}")


def _is_utf8(chunks: Iterable[bytes], is_whole: bool) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=is_whole)
    except UnicodeDecodeError:
        return False
    return True


def _choices(names: list[str], readings: dict[str, str]) -> str:
    """Advice that shows how the encodings differ, by a word that each one reads otherwise."""
    names = [name for n, name in enumerate(names) if readings[name] not in [readings[other] for other in names[:n]]][:3]
    if not names:
        return "and in none of the usual encodings; name its own with --encoding"
    words = [variants for variants in zip(*(readings[name].split() for name in names)) if not variants[0].isascii()]
    most = max(words, key=lambda variants: (len(set(variants)), all(map(str.isalpha, variants))), default=())
    choices = [f"--encoding {name} (has {word[:20]!r})" for name, word in zip(names, most)]
    return f"and its encoding cannot be told: name it with {' or '.join(choices)}"


def _decode(content: bytes, encoding: str, is_whole: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content, final=is_whole)
    except UnicodeError:
        return None


def _count_letters(text: str) -> int:
    """Letters of an alphabet count once, those that are a syllable or a word three times."""
    return sum(3 if character >= "\u3040" else 1 for character in text if character.isalpha())


def _lines_with_evidence(sample: bytes) -> bytes:
    """Returns lines that are not ASCII, from the whole sample."""
    lines = [line for line in sample.splitlines() if not line.isascii()]
    step = max(1, sum(map(len, lines)) // _EVIDENCE_BYTES)
    evidence = b"\n".join(lines[::step])
    if len(evidence) > 2 * _EVIDENCE_BYTES:
        # In all encodings of the table, no character ends in a byte under 0x30: it may be cut behind one.
        cut = re.match(rb"(?s).*[\n -/]", evidence[:_EVIDENCE_BYTES])
        return cut[0] if cut else b""
    return evidence


def _candidates(evidence: bytes) -> list[str]:
    import charset_normalizer

    return [match.encoding for match in charset_normalizer.from_bytes(evidence, cp_isolation=list(_LANGUAGES))]


# In shapes of words: a capital behind a small letter, a small one among capitals, a sign inside of a word, a letter
# beside a digit. Letters that are not ASCII are À or à, signs are ¤.
_STRANGE = re.compile(r"(?<=[a-zà])À|(?<=[A-ZÀ])à(?=[A-ZÀ])|(?<=[A-Za-zÀà])¤(?=[A-Za-zÀà])|(?<=\d)[Àà]|[Àà](?=\d)")


def _shape(character: str) -> str:
    if character < "\x7f" or character in "’‘\xad·–—ªº":
        return character
    return ("à" if character.islower() else "À") if character.isalpha() else "¤"


def _is_plausible(text: str, encoding: str) -> bool:
    """Whether the characters that are not ASCII are those of one language, where such characters stand."""
    writing = _LANGUAGES[encoding]
    is_latin, is_alphabet = not writing.frequent, writing.share >= 0.5
    if len({character for character in text.lower() if character > "\x7f"}) < (10 if is_alphabet else 2):
        return False
    strange = 0
    if is_latin:
        strange = len(_STRANGE.findall("".join(map(_shape, text))))
    elif is_alphabet:  # a capital behind a small letter, a word of two scripts
        strange = len(re.findall(r"(?<=à)À|(?<=[A-Za-z])[Àà]|[Àà](?=[A-Za-z])", "".join(map(_shape, text))))
    letters = [character for character in text.lower() if character > "\x7f" and character not in _SIGNS]
    if not letters:
        return not strange
    known = max(sum(character in alphabet for character in letters) for alphabet in map(set, writing.alphabets))
    frequent = sum(character in writing.frequent for character in letters)
    return len(letters) - known + strange <= 0.02 * len(letters) and frequent >= writing.share * len(letters)
