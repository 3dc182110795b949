"""
Trains tokenizers: byte-level BPE, WordPiece, or plain bytes.

The result is a stock `PreTrainedTokenizerFast`: one `tokenizer.json` that transformers, vLLM, TEI, llama.cpp and the
Rust library read without this package. [`save_tokenizer`] saves one; `AutoTokenizer.from_pretrained` loads it.

Decisions that hold for every tokenizer made here:

- **Ids of special tokens do not depend on the text or the vocabulary size**: pad 0, unknown 1, begin 2, end 3, mask 4,
  then (decoder style) the four chat tokens, then the spare tokens, then the learned ones. No two share an id; pad is
  never eos, so that a model can learn to stop.
- **A packed document is `<bos> text <eos>`** in both styles. A decoder's tokenizer adds bos by itself and never eos
  (as Llama's does), so that a prompt starts like a document and can be continued. An encoder's adds both, as
  `[CLS] text [SEP]`; `[CLS]` and `[SEP]` are also its bos and eos, so that packing treats both styles alike.
- **Text is data, not markup.** `tokenizer("<|eos|>")` is one token, as templates need it. Text of other people is
  encoded by `encode_text` and, in chats, by `encode_chat`: no document can place a special token there.
- **Decoders pad left**, because `generate` returns wrong continuations (and warns) after padding on the right. Training
  works with both: TRL's collators choose the side themselves and the loss skips padding. Encoders pad right.
- **An assistant's turn ends with eos**, every other turn with `<|end|>`: every tool stops at eos by default, and the
  model knows from pretraining that nothing follows it.
"""

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..artifacts.tokenizer_files import DECODER_TOKENS, ENCODER_TOKENS, _trim
from ..core.errors import InputError


# llama.cpp's name (`tokenizer.ggml.pre`) for the rule by which `_train_byte_level` cuts text into words.
GGUF_PRE_TOKENIZER = "smollm"

CHAT_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

# An answer's reasoning, content and calls of tools, in the plain text that Hermes, Qwen and vLLM's `hermes` parser use.
ANSWER_TEMPLATE = """\
{%- if message['reasoning_content'] -%}
            {{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- message['content'] or '' -}}
        {%- for call in message['tool_calls'] or [] -%}
            {{- '\\n' if message['content'] or not loop.first -}}
            {{- '<tool_call>\\n{"name": ' -}}{{- call['function']['name'] | tojson -}}{{- ', "arguments": ' -}}
            {%- if call['function']['arguments'] is string -%}
                {{- call['function']['arguments'] -}}
            {%- else -%}
                {{- call['function']['arguments'] | tojson -}}
            {%- endif -%}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}"""

TOOLS_TEMPLATE = """\
{{- '<tools>\\n' -}}
    {%- for tool in tools -%}{{- tool | tojson -}}{{- '\\n' -}}{%- endfor -%}
    {{- '</tools>' -}}"""

# Content stands directly between special tokens, never beside a space or line end of the template's own: the ids of a
# turn are then the same in a prompt, in training, and alone.
CHAT_TEMPLATE = (
    """\
{{- bos_token -}}
{%- set turn = namespace(role='user', called=false) -%}
{%- if tools -%}
    {{- '<|system|>' -}}
    {%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] + '\\n\\n' -}}{%- endif -%}
    """
    + TOOLS_TEMPLATE
    + """
    {{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['content'] is not string and not message['tool_calls'] -%}
        {{- raise_exception('message ' ~ loop.index ~ ': content must be a string') -}}
    {%- elif message['role'] == 'system' and loop.first -%}
        {%- if not tools -%}{{- '<|system|>' + message['content'] + '<|end|>' -}}{%- endif -%}
    {%- elif message['role'] == 'tool' and turn.called -%}
        {{- '<|user|><tool_response>\\n' + message['content'] + '\\n</tool_response><|end|>' -}}
        {%- set turn.role = 'assistant' -%}
    {%- elif message['role'] != turn.role -%}
        {{- raise_exception('message ' ~ loop.index ~ ': role is ' ~ message['role'] ~ ', expected ' ~ turn.role
            ~ ' (a chat is an optional system message, then user and assistant in turns; tools after calls)')
        -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|user|>' + message['content'] + '<|end|>' -}}
        {%- set turn.role = 'assistant' -%}
        {%- set turn.called = false -%}
    {%- else -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
        """
    + ANSWER_TEMPLATE
    + """
        {{- eos_token -}}
        {%- endgeneration -%}
        {%- set turn.role = 'user' -%}
        {%- set turn.called = message['tool_calls'] -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
)

# SHA-256 of the template before it knew tools, which saved tokenizers have. It gives other conversations the same ids.
OLDER_CHAT_TEMPLATE = "75c33c6cd84f02be7895931d45dd30cadb046280f56c23b6c96149b7e8901c8a"

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


def encode_text(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """
    Returns token ids of documents as data: no special token is added, and none is recognised.

    A document that contains the characters `<|eos|>` gets the ids of those characters: `decode` restores it, and it
    cannot end a document or open a chat turn. (`tokens.encode_documents` does the same for a whole corpus.)
    """
    if not texts:
        return []
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]


def is_own_template(template: str | None) -> bool:
    """Whether a chat template is that of [`train_tokenizer`], of this version or an older one."""
    return template == CHAT_TEMPLATE or hash_template(template) == OLDER_CHAT_TEMPLATE


def hash_template(template: str | None) -> str:
    """Returns the SHA-256 of a template's text."""
    return hashlib.sha256((template or "").encode()).hexdigest()


def encode_chat(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> dict[str, list[int]]:
    """
    Returns a conversation for training: `input_ids`, and `assistant_masks`, 1 at the assistant's tokens and their eos.

    The result is that of `apply_chat_template(..., return_assistant_tokens_mask=True)`, but no message can place a
    special token. For tokenizers of [`train_tokenizer`], whose template separates contents from its own text.

    Raises:
        InputError: The turns are malformed; the message says which one.
    """
    from jinja2 import TemplateError

    markup = [tokenizer.bos_token, tokenizer.eos_token, *CHAT_TOKENS]
    special = re.compile(f"({'|'.join(map(re.escape, markup))})")
    try:
        text = tokenizer.apply_chat_template(
            [_hide(message, special) for message in messages], tools=_hide(tools, special), tokenize=False
        )
    except TemplateError as error:
        raise InputError(f"malformed conversation: {error}") from None
    pieces = [piece for piece in special.split(text) if piece]
    bodies = iter(encode_text(tokenizer, [_unhide(piece) for piece in pieces if piece not in markup]))
    input_ids: list[int] = []
    assistant_masks: list[int] = []
    spoken = False
    for piece in pieces:
        ids = [tokenizer.convert_tokens_to_ids(piece)] if piece in markup else next(bodies)
        input_ids += ids
        assistant_masks += [int(spoken)] * len(ids)
        if piece in markup:
            spoken = piece == "<|assistant|>"
    return {"input_ids": input_ids, "assistant_masks": assistant_masks}


# Stands inside special tokens that are text, so that they are none in the rendered conversation; doubled if it is text.
_HIDING = "\ue000"


def _hide(value: Any, special: re.Pattern[str]) -> Any:
    """Returns text, or what holds texts, with special tokens hidden."""
    if isinstance(value, str):
        return special.sub(lambda match: match[0][0] + _HIDING + match[0][1:], value.replace(_HIDING, 2 * _HIDING))
    if isinstance(value, Mapping):
        return {_hide(name, special): _hide(part, special) for name, part in value.items()}
    return [_hide(part, special) for part in value] if isinstance(value, (list, tuple)) else value


def _unhide(text: str) -> str:
    return re.sub(f"{_HIDING}({_HIDING}?)", r"\1", text)


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
    backend.train_from_iterator(iter(()) if texts is None else _refuse_blank(texts), trainer)
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
    trained.train_from_iterator(_refuse_blank(texts), trainer)

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


def _refuse_blank(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts; raises `InputError` if all of them are blank."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise InputError("no text to train a tokenizer on: the documents are empty or there are none")
