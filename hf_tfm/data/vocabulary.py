"""Properties of every token of a vocabulary: its text, and whether it begins a word."""

from unicodedata import category

import numpy as np
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .text import begins_unspaced_word, is_unspaced


# The bytes that the letters of byte-level tokens stand for.
_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


def word_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """
    Returns whether each token of a vocabulary (byte-level BPE, WordPiece or bytes) begins a word, `(vocab_size,)` bool.

    In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character begins a word; of a
    character that is cut into bytes, the first byte.
    """
    model, texts = tokenizer.backend_tokenizer.model, token_texts(tokenizer)
    if isinstance(model, WordPiece):  # in other vocabularies "##" is a piece of text, as Markdown's headings are
        prefix = model.continuing_subword_prefix
        return np.array([not text.startswith(prefix) or _begins_unspaced_word(text[len(prefix) :]) for text in texts])
    tokens = tokenizer.convert_ids_to_tokens(range(len(texts)))
    # Vowel signs and accents (category M) continue words, and so do bytes that are no complete character.
    return np.array(
        [
            _begins_unspaced_word(text, token)
            or not (text[:1].isalnum() or text[:1] == "\ufffd" or category(text[:1] or " ")[0] == "M")
            for token, text in zip(tokens, texts)
        ]
    )


def _begins_unspaced_word(text: str, token: str = "") -> bool:
    """Whether a text begins with a letter of a script without spaces, or with bytes of one that `token` stands for."""
    first = text[:1]
    if first == "\ufffd" and token != text:
        return is_unspaced(bytes(_BYTES.get(letter, 0) for letter in token))
    return first != "" and begins_unspaced_word(first)


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns each token of a vocabulary as text; byte-level tokens as the text that they decode to."""
    ids, backend = range(len(tokenizer)), tokenizer.backend_tokenizer
    if "ByteLevel" in str(backend.decoder):
        return backend.decode_batch([[number] for number in ids], skip_special_tokens=False)
    return tokenizer.convert_ids_to_tokens(ids)
