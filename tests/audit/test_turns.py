"""Turns are found in rows of any template, also truncated and packed."""

import re
from pathlib import Path

import pytest
from audit_helpers import byte_tokenizer
from chat_templates import TEMPLATES, chat_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_tfm.audit.templates.pieces import decode_pieces
from hf_tfm.audit.templates.turns import TurnFinder
from hf_tfm.data.chat import PLAIN_TEMPLATE
from hf_tfm.data.tokenizer import train_tokenizer


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Málaga?"},
    {"role": "assistant", "content": "In Spain: 🏖!"},
    {"role": "user", "content": "And\nwhere is 東京?"},
    {"role": "assistant", "content": "In Japan."},
]
TRL_TEMPLATES = [
    path
    for path in Path(pytest.importorskip("trl").__file__).parent.glob("chat_templates/*.jinja")
    if not re.search("idefics|smolvlm|llava", path.name)
]


def trl_tokenizer(path):
    """Returns a byte-level tokenizer with a template that TRL ships, and a token for each marker in it."""
    template = path.read_text(encoding="utf-8")
    markers = re.findall(r"<\|\w+\|>|<｜[^｜<>]+｜>|<\w+\|>|<\|\w+>|</?[a-z_]+>|\[/?[A-Z_]+\]", template)
    specials = dict.fromkeys(["<pad>", "<s>", "</s>", "<mask>", *markers])
    return byte_tokenizer(list(specials), chat_template=template, eos_token="</s>")


def encode(tokenizer, messages=CHAT):
    """Returns the row of a conversation, without its system message if the template refuses it."""
    finder = TurnFinder(tokenizer)
    text = finder.render(messages) or finder.render(messages[1:])
    return finder, tokenizer(text, add_special_tokens=False)["input_ids"]


def read(tokenizer, ids, turns):
    """Returns role and content of each turn."""
    return [(turn.role, tokenizer.decode(ids[turn.content_start : turn.content_end])) for turn in turns]


def answers(tokenizer, ids, turns):
    return [tokenizer.decode(ids[turn.answer_start : turn.content_end]) for turn in turns if turn.role == "assistant"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_of_published_templates(name):
    tokenizer = chat_tokenizer(name)
    finder, ids = encode(tokenizer)
    turns = finder.find(ids)
    spoken = [(message["role"], message["content"]) for message in CHAT[1:]]
    assert [(role, text.removeprefix("Be brief.\n\n")) for role, text in read(tokenizer, ids, turns)][-4:] == spoken
    assert all(turn.complete for turn in turns)
    assert len(finder.stop_ids) == 1
    last = turns[-1]
    assert finder.stop_ids[0] in ids[last.content_end : last.end]
    headers = "".join(tokenizer.decode(ids[turn.start : turn.content_start]) for turn in turns)
    assert not any(word in headers for word in ("Spain", "Japan", "where"))


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_turns_of_templates_that_trl_ships(path):
    tokenizer = trl_tokenizer(path)
    finder, ids = encode(tokenizer)
    turns = finder.find(ids)
    assert answers(tokenizer, ids, turns) == ["In Spain: 🏖!", "In Japan."]
    users = [text for role, text in read(tokenizer, ids, turns) if role == "user"]
    assert [text.removeprefix("Be brief.\n\n") for text in users] == ["Where is Málaga?", "And\nwhere is 東京?"]
    assert bool(finder.stop_ids) == (path.stem != "glm4moe")  # its answers end where the next role begins


def test_turns_of_own_templates():
    tokenizer = train_tokenizer(kind="bytes")
    finder, ids = encode(tokenizer)
    assert read(tokenizer, ids, finder.find(ids)) == [(one["role"], one["content"]) for one in CHAT]
    plain = byte_tokenizer(chat_template=PLAIN_TEMPLATE, eos_token="</s>")
    finder, ids = encode(plain)
    assert answers(plain, ids, finder.find(ids)) == ["In Spain: 🏖!", "In Japan."]
    assert finder.stop_ids == [plain.eos_token_id]


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_of_truncated_rows(name):
    tokenizer = chat_tokenizer(name)
    finder, ids = encode(tokenizer)
    whole = finder.find(ids)
    cut = ids[: whole[-1].content_end - 2]
    last = finder.find(cut)[-1]
    assert (last.role, tokenizer.decode(cut[last.content_start : last.end])) == ("assistant", "In Japa")
    assert not last.complete
    first = next(turn for turn in whole if turn.role == "assistant")
    late = ids[first.content_start + 3 :]
    turns = finder.find(late)
    assert read(tokenizer, late, turns)[0] == ("assistant", "Spain: 🏖!")
    assert turns[0].start == turns[0].content_start == 0 and turns[0].complete


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_of_packed_rows(name):
    tokenizer = chat_tokenizer(name)
    finder, ids = encode(tokenizer)
    contents = read(tokenizer, ids, finder.find(ids))
    packed = finder.find(ids + ids)
    assert [one for one in read(tokenizer, ids + ids, packed) if one[0] != "system"] == [
        one for one in contents + contents if one[0] != "system"
    ]
    assert all(turn.complete for turn in packed)


def test_prompt_without_answer_has_an_open_turn():
    tokenizer = chat_tokenizer("chatml")
    finder = TurnFinder(tokenizer)
    text = finder.render(CHAT[:2], add_generation_prompt=True)
    turns = finder.find(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert [turn.role for turn in turns] == ["system", "user", "assistant"]
    assert not turns[-1].complete and turns[-1].content_start == turns[-1].content_end


def test_words_of_a_header_in_a_content_begin_no_turn():
    tokenizer = chat_tokenizer("deepseek 2")
    content = "The log says User: me, then Assistant: you"
    messages = [{"role": "user", "content": "Read it."}, {"role": "assistant", "content": content}]
    finder, ids = encode(tokenizer, messages)
    assert read(tokenizer, ids, finder.find(ids))[-2:] == [("user", "Read it."), ("assistant", content)]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ messages[5]['content'] }}",
        "{{ raise_exception('never') }}",
        "nothing",
        "{{ messages | tojson }}",
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "{% syntax error",
    ],
)
def test_odd_templates_have_no_turns(template):
    tokenizer = byte_tokenizer(chat_template=template)
    finder = TurnFinder(tokenizer)
    assert finder.find(tokenizer("a text of some words")["input_ids"]) == []
    assert finder.find([]) == []


def test_calls_and_results_of_tools():
    tokenizer = next(trl_tokenizer(path) for path in TRL_TEMPLATES if path.stem == "qwen2_5")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "It is two."},
    ]
    finder = TurnFinder(tokenizer)
    ids = tokenizer(finder.render(messages), add_special_tokens=False)["input_ids"]
    turns = finder.find(ids)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert read(tokenizer, ids, turns)[3:] == [("tool", "two"), ("assistant", "It is two.")]
    assert '"name": "add"' in read(tokenizer, ids, turns)[2][1]


def sentencepiece_tokenizer():
    """Returns a tokenizer as Llama 2 has it: spaces as ▁, unknown characters as bytes."""
    letters = sorted(chr(number) for number in range(33, 127))
    pieces = ["<pad>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), "▁", *letters, "▁I", "▁In"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[("▁", "I"), ("▁I", "n")],
            byte_fallback=True,
            unk_token="<pad>",
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATES["llama 2"][0]
    return tokenizer


def test_pieces_and_turns_of_a_sentencepiece_tokenizer():
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer("Málaga, 🏖", add_special_tokens=False)["input_ids"]
    pieces = decode_pieces(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == " Málaga, 🏖"
    finder, ids = encode(tokenizer)
    contents = [(role, text.strip()) for role, text in read(tokenizer, ids, finder.find(ids))]
    assert contents == [(one["role"], one["content"]) for one in CHAT]
    answer = next(turn for turn in finder.find(ids) if turn.role == "assistant")
    assert tokenizer.convert_ids_to_tokens(ids[answer.content_start]) == "▁In"  # the header's last space is in it


def test_pieces_of_bytes_and_special_tokens():
    tokenizer = byte_tokenizer()
    ids = tokenizer("<|im_start|>東é<|im_end|>", add_special_tokens=False)["input_ids"]
    assert decode_pieces(tokenizer, ids) == ["<|im_start|>", "", "", "東", "", "é", "<|im_end|>"]
    assert decode_pieces(tokenizer, ids[:2]) == ["<|im_start|>", "\ufffd"]
    assert decode_pieces(tokenizer, [len(tokenizer) + 5]) == ["\ufffd"]


def test_pieces_of_wordpiece():
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[CLS]", "a", "un", "##known", "word"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[CLS]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]")
    assert decode_pieces(tokenizer, [1, 3, 4, 5]) == ["[CLS]", " un", "known", " word"]
