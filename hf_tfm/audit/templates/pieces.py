"""The text of each token of a row."""

import codecs
import re
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode


_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceDecoder:
    """
    Decodes a row token by token, so that the texts of its tokens together are the text of the row.

    Special tokens stand there as they are written. A character of several tokens is the text of the last of them.

    Args:
        tokenizer: Any tokenizer of transformers: byte-level, SentencePiece, WordPiece or a slow one.

    Attributes:
        added: Texts of the added tokens, special or not, by their ids.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in str(getattr(backend, "decoder", None))
        self.added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        self._pieces: dict[int, bytes] = {}
        # A decoder strips the space of a row's first token, so each token is decoded behind another one.
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        self._anchor_text = self._decode(self._anchor)

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(self._piece(number)) for number in map(int, ids)]
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces

    def _piece(self, number: int) -> bytes:
        if number not in self._pieces:
            self._pieces[number] = self._read_piece(number)
        return self._pieces[number]

    def _read_piece(self, number: int) -> bytes:
        if number in self.added:
            return self.added[number].encode()
        token = self.tokenizer.convert_ids_to_tokens(number) if 0 <= number < len(self.tokenizer) else None
        if token is None:
            return "\ufffd".encode()
        if self._is_byte_level:
            return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return self._decode([*self._anchor, number])[len(self._anchor_text) :].encode()

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def decode_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token of a row; together they are the text of the row."""
    return PieceDecoder(tokenizer)(ids)
