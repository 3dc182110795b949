"""
Trains a tokenizer of one's own: byte-level BPE, WordPiece, or plain bytes.

The result is a stock `PreTrainedTokenizerFast`: one `tokenizer.json` that transformers, vLLM, TEI, llama.cpp and the
Rust library read without this package. [`save_tokenizer`] saves one; `AutoTokenizer.from_pretrained` loads it.

Decisions that hold for every tokenizer made here:

- **Ids of special tokens do not depend on the text or the vocabulary size**: pad 0, unknown 1, begin 2, end 3, mask 4,
  then (decoder style) the four chat tokens, then the spare ones, then everything learned. No two share an id; pad is
  never eos, so a model can learn to stop.
- **A packed document is `<bos> text <eos>`** in both styles. A decoder's tokenizer adds bos by itself and never eos
  (as Llama's does), so that a prompt starts as documents start and can be continued. An encoder's adds both, as
  `[CLS] text [SEP]`; `[CLS]` and `[SEP]` are also its bos and eos, so code that packs needs no second case and a
  `[CLS]`-started decoder can be generated from.
- **Text is data, not markup.** `tokenizer("<|eos|>")` is one token, as templates need it. Whoever encodes text that
  other people wrote calls `encode_text` and, for chats, `encode_chat`: there no document can place a special token.
- **Decoders pad left**, because `generate` gives wrong continuations (and warns) after padding on the right, while
  training does not care: TRL's collators choose the side themselves and the loss skips padding. Encoders pad right.
- **An assistant's turn ends with eos**, every other turn with `<|end|>`: each tool stops at eos without being told, and
  pretraining has already taught it as "nothing follows".
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..core.errors import InputError


# llama.cpp's name (`tokenizer.ggml.pre`) for the rule by which `_train_byte_level` cuts text into words.
GGUF_PRE_TOKENIZER = "smollm"

# The order is the order of the ids.
DECODER_TOKENS = {
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
    "bos_token": "<|bos|>",
    "eos_token": "<|eos|>",
    "mask_token": "<|mask|>",
}
ENCODER_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
CHAT_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

# Content stands directly between special tokens, never beside a space or line end of the template's own: the ids of a
# turn are then the same in a prompt, in training, and alone.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set turn = namespace(role='user') -%}
{%- for message in messages -%}
    {%- if message['content'] is not string -%}
        {{- raise_exception('message ' ~ loop.index ~ ': content must be a string') -}}
    {%- elif message['role'] == 'system' and loop.first -%}
        {{- '<|system|>' + message['content'] + '<|end|>' -}}
    {%- elif message['role'] != turn.role -%}
        {{- raise_exception('message ' ~ loop.index ~ ': role is ' ~ message['role'] ~ ', expected ' ~ turn.role
            ~ ' (a chat is an optional system message, then user and assistant in turns)') -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|user|>' + message['content'] + '<|end|>' -}}
        {%- set turn.role = 'assistant' -%}
    {%- else -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
        {%- set turn.role = 'user' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

# Marks the start of a word while WordPiece is trained. BERT's normalizer drops private-use characters from text.
_WORD_START = "\ue000"
_MAX_WORDPIECE_CHARACTERS = 1000  # rarer ones become [UNK]


def train_tokenizer(
    texts: Iterable[str] = (),
    kind: Literal["bpe", "wordpiece", "bytes"] = "bpe",
    vocab_size: int = 8192,
    style: Literal["decoder", "encoder"] = "decoder",
    *,
    lowercase: bool = False,
    min_frequency: int = 2,
    num_spare_tokens: int = 16,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """
    Trains a tokenizer. The same texts give the same tokenizer, in every process (WordPiece: if they have no more than
    1,000 different characters; past that, chance decides between equally rare ones).

    Args:
        texts: The documents to learn from, read once; not needed for `kind="bytes"`.
        kind: `bpe` (byte-level: any text comes back unchanged from `decode`), `wordpiece` (BERT's: words without their
            spacing, unknown characters become `[UNK]`) or `bytes` (256 symbols; any text comes back unchanged).
        vocab_size: Upper bound for `len(tokenizer)`, special tokens included. BPE and WordPiece reach it exactly unless
            the text is too small, which warns; `bytes` has its fixed size.
        style: `decoder` (`<|bos|> text`, chat template, pads left) or `encoder` (`[CLS] a [SEP] b [SEP]` with
            `token_type_ids`, pads right).
        lowercase: WordPiece only: lower-case the text and strip its accents.
        min_frequency: A pair seen less often is not merged.
        num_spare_tokens: Special tokens `<|spare_0|>` … without a meaning yet. A later role or sentinel takes one of
            them, and the embedding keeps its size (and LoRA adapters their shapes).
        model_max_length: In tokens; what `truncation=True` cuts to. None leaves it to the model's configuration.

    Raises:
        InputError: An unknown option, no text, or a vocabulary too small for the special tokens and the alphabet.
    """
    if kind not in ("bpe", "wordpiece", "bytes"):
        raise InputError(f"kind is {kind!r}; choose bpe, wordpiece or bytes")
    if style not in ("decoder", "encoder"):
        raise InputError(f"style is {style!r}; choose decoder or encoder")
    if lowercase and kind != "wordpiece":
        raise InputError(f"lowercase works with kind wordpiece only, not {kind}: {kind} keeps text as it is")
    if num_spare_tokens < 0:
        raise InputError(f"num_spare_tokens is {num_spare_tokens}; give 0 or more")

    named = DECODER_TOKENS if style == "decoder" else ENCODER_TOKENS
    extra = [*(CHAT_TOKENS if style == "decoder" else []), *(f"<|spare_{i}|>" for i in range(num_spare_tokens))]
    # Masking a BPE token hides the space in front of its word too, so in "a [MASK]" the mask has to swallow the space.
    swallows_space = {"[MASK]"} if kind == "bpe" else set()
    specials = [
        AddedToken(token, lstrip=token in swallows_space, normalized=False, special=True)
        for token in (*named.values(), *extra)
    ]

    if kind == "wordpiece":
        backend = _train_wordpiece(texts, vocab_size, specials, named["unk_token"], lowercase, min_frequency)
    else:
        backend = _train_byte_level(texts if kind == "bpe" else None, vocab_size, specials, min_frequency)
    if kind != "bytes" and backend.get_vocab_size() < vocab_size:
        warnings.warn(
            f"the text gave only {backend.get_vocab_size()} of {vocab_size} tokens: give more text, a smaller "
            "vocab_size, or a smaller min_frequency",
            stacklevel=2,
        )

    begin, end = list(named.values())[2:4]
    if style == "decoder":
        single, pair = f"{begin} $A", f"{begin} $A {begin}:1 $B:1"
        options = {"padding_side": "left", "chat_template": CHAT_TEMPLATE}
    else:
        single, pair = f"{begin} $A {end}", f"{begin} $A {end} $B:1 {end}:1"
        options = {"padding_side": "right", "bos_token": begin, "eos_token": end}
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(begin, 2), (end, 3)]
    )
    if style == "encoder":
        _trim(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if style == "encoder" else []), "attention_mask"],
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
        **named,
        **options,
    )


def trim_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Leave the blank in front of a word out of the place that a token has in its text, so that an entity or an answer
    begins with its first letter. The ids stay as they are. Does nothing to a tokenizer that [`train_tokenizer`] has not
    made, that joins no blanks to words, or that does so already.

    An encoder's tokenizer is made like this. A decoder's becomes so when it is fine-tuned to find places in a text:
    `return_assistant_tokens_mask` of `apply_chat_template` looks up answers by their first character, and would find no
    token at a blank.
    """
    if tokenizer.is_fast:
        _trim(tokenizer.backend_tokenizer)


def _trim(backend: Tokenizer) -> None:
    if _shall_trim(json.loads(backend.to_str())):
        trim = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
        backend.post_processor = processors.Sequence([trim, backend.post_processor])


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike) -> None:
    """Save a tokenizer with its chat template, in files that transformers 4 and 5 open alike."""
    tokenizer.save_pretrained(folder)
    mend_tokenizer_files(folder)


def mend_tokenizer_files(folder: str | os.PathLike) -> bool:
    """
    Rewrite the tokenizer's files in a folder so that transformers 4 opens them as well: version 5 names a class that
    version 4 has not, and a list where it expects named tokens. In the folder of an encoder, or of a model that finds
    places in a text, also [`trim_offsets`]. No text gets other ids.

    Returns: whether a file changed. A folder without a tokenizer is left alone.
    """
    folder = Path(folder)
    changed = False
    path = folder / "tokenizer_config.json"
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = _rewrite(path, saved, _for_both_versions(saved))
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if _shall_trim(saved) and (_first_tokens(saved) == list(ENCODER_TOKENS.values()) or _finds_places(folder)):
        backend = Tokenizer.from_file(str(path))
        _trim(backend)
        _replace(path, backend.to_str(pretty=True))
        changed = True
    return changed


def _for_both_versions(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `tokenizer_config.json` as transformers 4 and 5 both read them."""
    # What the last loading was told has no place in a file.
    fields = {name: value for name, value in saved.items() if name not in ("is_local", "local_files_only")}
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        listed = [*fields.get("additional_special_tokens", ()), *fields.pop("extra_special_tokens")]
        fields["additional_special_tokens"] = [token for n, token in enumerate(listed) if token not in listed[:n]]
    return fields


def _finds_places(folder: Path) -> bool:
    """Whether a folder holds a model that marks words or answers in a text, or an adapter that does."""
    kinds: list[str] = []
    if (folder / "config.json").is_file():
        kinds += json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if (folder / "adapter_config.json").is_file():
        task = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
        kinds += {"TOKEN_CLS": ["ForTokenClassification"], "QUESTION_ANS": ["ForQuestionAnswering"]}.get(task, [])
    return any(kind.endswith(("ForTokenClassification", "ForQuestionAnswering")) for kind in kinds)


def _shall_trim(state: Mapping[str, Any]) -> bool:
    return _joins_blanks(state) and _without_trimming(state["post_processor"]) == state["post_processor"]


def _joins_blanks(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, as its file has it, is byte-level BPE of [`train_tokenizer`]."""
    cuts = [part["type"] for part in (state.get("pre_tokenizer") or {}).get("pretokenizers", ())]
    known = (list(DECODER_TOKENS.values()), list(ENCODER_TOKENS.values()))
    return cuts == ["Digits", "ByteLevel"] and bool(state["model"].get("merges")) and _first_tokens(state) in known


def _first_tokens(state: Mapping[str, Any]) -> list[str]:
    return [token["content"] for token in state["added_tokens"][: len(DECODER_TOKENS)]]


def _without_trimming(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A post-processor as it was before [`trim_offsets`]."""
    if step is None or step["type"] != "Sequence":
        return step
    rest = [_without_trimming(part) for part in step["processors"] if part["type"] != "ByteLevel"]
    return rest[0] if len(rest) == 1 and len(step["processors"]) > 1 else {**step, "processors": rest}


def _rewrite(path: Path, saved: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    if fields == saved:
        return False
    _replace(path, json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return True


def _replace(path: Path, text: str) -> None:
    """Put a file in the place of another, which may be a link to one that has to stay as it is."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def encode_text(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """
    Token ids of documents as data: no special token is added, and none is recognised.

    A document that holds the characters `<|eos|>` gets the ids of those characters, so `decode` gives it back, while
    nothing in it can end a document or open a chat turn. (`data.encode_documents` does the same to a whole corpus.)
    """
    if not texts:
        return []
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]


def encode_chat(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """
    A conversation for training: `input_ids`, and `assistant_masks` that is 1 on what the assistant says and its eos.

    Gives what `apply_chat_template(..., return_assistant_tokens_mask=True)` gives, but no message can place a special
    token. For tokenizers made by [`train_tokenizer`], whose template keeps contents apart from its own text.

    Raises:
        InputError: The turns are malformed; the message says which one.
    """
    from jinja2 import TemplateError

    slot = tokenizer.unk_token  # never part of the template, so each one found stands for a content
    slotted = [
        {**message, "content": slot if isinstance(message.get("content"), str) else None} for message in messages
    ]
    try:
        rendered = tokenizer.apply_chat_template(slotted, return_dict=True, return_assistant_tokens_mask=True)
    except TemplateError as error:
        raise InputError(f"malformed conversation: {error}") from None
    contents = iter(encode_text(tokenizer, [message["content"] for message in messages]))
    input_ids: list[int] = []
    assistant_masks: list[int] = []
    for token_id, spoken in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True):
        piece = next(contents) if token_id == tokenizer.unk_token_id else [token_id]
        input_ids += piece
        assistant_masks += [spoken] * len(piece)
    return {"input_ids": input_ids, "assistant_masks": assistant_masks}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """
    A sha256 in hex over all that decides which ids a text gets, to key caches of tokenized text.

    Two tokenizers with the same fingerprint give the same ids. Saving and loading, padding, truncation, maximum length,
    chat template and [`trim_offsets`] do not change it.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["padding"] = state["truncation"] = None  # left over from the last call
    if _joins_blanks(state):
        state["post_processor"] = _without_trimming(state["post_processor"])
    state["special_tokens"] = tokenizer.special_tokens_map  # which ids packing puts around a document
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _train_byte_level(
    texts: Iterable[str] | None, vocab_size: int, specials: list[AddedToken], min_frequency: int
) -> Tokenizer:
    """Byte-level BPE; without texts the 256 byte symbols alone."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(specials) + len(alphabet)
    if vocab_size < smallest:
        raise InputError(
            f"vocab_size {vocab_size} is too small: {len(specials)} special tokens and {len(alphabet)} bytes need "
            f"{smallest}; raise vocab_size or lower num_spare_tokens"
        )
    # Text is cut into words first, and no token crosses a cut: each digit stands alone, then GPT-2's rule sets apart
    # words with the space before them, runs of punctuation, runs of blanks, and 's 't 're 've 'm 'll 'd. llama.cpp
    # knows a fixed list of such rules, and a model with any other cannot become a GGUF file. Those that glue quotes
    # to words and line ends to full stops (Llama 3's, Qwen's, GPT-4o's) put 4 % more bytes into a token, but a small
    # model trained for a short time has more bits per byte left: to it ` I`, `"I` and `-I` are words without kinship.
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=smallest if texts is None else vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(iter(()) if texts is None else _some(texts), trainer)
    return backend


def _train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    specials: list[AddedToken],
    unk_token: str,
    lowercase: bool,
    min_frequency: int,
) -> Tokenizer:
    """
    WordPiece, by way of BPE over words that carry a start mark.

    tokenizers' own WordPieceTrainer numbers its "##" symbols in the order of a hash map, so that two runs over one text
    end in different vocabularies. BPE's training is deterministic, and the marks can be turned into "##" afterwards.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    words = pre_tokenizers.BertPreTokenizer()
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.Metaspace(replacement=_WORD_START, prepend_scheme="always", split=False)]
    )
    trainer = trainers.BpeTrainer(
        # Some to spare: the start mark does not stay, nor what joins it to a character that is a token already.
        vocab_size=vocab_size + 1 + _MAX_WORDPIECE_CHARACTERS,
        min_frequency=min_frequency,
        special_tokens=specials,
        limit_alphabet=_MAX_WORDPIECE_CHARACTERS,
        show_progress=False,
    )
    trained.train_from_iterator(_some(texts), trainer)

    by_id = trained.get_vocab()
    learned = [token for token in sorted(by_id, key=by_id.__getitem__)[len(specials) :] if token != _WORD_START]
    alphabet = [token for token in learned if len(token) == 1]
    # Punctuation and Chinese characters are words of their own and never continue one.
    inner = [c for c in alphabet if len(words.pre_tokenize_str(normalizer.normalize_str("a" + c))) == 1]
    pieces = [token[1:] if token[0] == _WORD_START else "##" + token for token in learned if len(token) > 1]
    required = [*(token.content for token in specials), *alphabet, *("##" + c for c in inner)]
    if vocab_size < len(required):
        raise InputError(
            f"vocab_size {vocab_size} is too small: the special tokens and the characters of the text need "
            f"{len(required)}; raise vocab_size"
        )
    tokens = list(dict.fromkeys([*required, *pieces]))[:vocab_size]

    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token=unk_token))
    backend.normalizer = normalizer
    backend.pre_tokenizer = words
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(specials)
    return backend


def _some(texts: Iterable[str]) -> Iterator[str]:
    """Passes texts on; raises if there was nothing in them."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise InputError("no text to train a tokenizer on: the documents are empty or there are none")
