"""A trimmed vocabulary: equal tokens, equal outputs, for every kind of tokenizer and head."""

import json

import pytest
import torch
from tiny import CORPUS, build
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_tfm.apps.cli import main
from hf_tfm.convert.trim_vocabulary import merged_from, trim_folder
from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer


WORDS = sorted({word for line in CORPUS for word in line.split()})
TEXT = [line for number, line in enumerate(CORPUS[:6]) if number % 2]
SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}


def wrapped(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = list(SPECIALS.values())
    return wrapped(tokenizer, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>"))


def metaspace_bpe():
    """Returns BPE as of Llama 2, which cuts unknown characters into bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [*SPECIALS.values(), *(f"<0x{number:02X}>" for number in range(256))]
    return wrapped(tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=special))


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(tokenizer, trainers.WordLevelTrainer(vocab_size=150, special_tokens=list(SPECIALS.values())))


def whole_words():
    """Returns BPE as of Llama 3, which takes a word of the vocabulary whole even if no merges lead to it."""
    tokenizer = train_tokenizer(CORPUS, vocab_size=400)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    state["model"]["merges"] = state["model"]["merges"][:60]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **{name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token", "unk_token")},
    )


TOKENIZERS = {
    "byte-level BPE": lambda: train_tokenizer(CORPUS, vocab_size=400),
    "WordPiece": lambda: train_tokenizer(CORPUS, "wordpiece", vocab_size=200, style="encoder"),
    "Unigram": unigram,
    "BPE with bytes": metaspace_bpe,
    "words": word_level,
    "BPE with whole words": whole_words,
}


def write_text(folder, lines=TEXT):
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def save_bert(folder, tokenizer, labels=0):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, num_labels=labels or 2,
    )  # fmt: skip
    model = BertForSequenceClassification(config) if labels else BertForMaskedLM(config)
    if not labels:
        torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_of_kept_tokens_are_cut_alike_and_other_texts_still_read(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    model = save_bert(tmp_path / "model", tokenizer)
    trimmed = trim_folder(str(tmp_path / "model"), [write_text(tmp_path)], tmp_path / "out")
    assert trimmed.difference == 0 and trimmed.tokens[1] < trimmed.tokens[0] == len(tokenizer)
    new = AutoTokenizer.from_pretrained(tmp_path / "out")
    numbers = {token: number for token, number in new.get_vocab().items()}
    assert sorted(numbers.values()) == list(range(len(numbers)))
    assert {new.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens} == set(new.all_special_ids)
    alike = 0
    for line in [*CORPUS[:6], *(f"{a} {b}" for a, b in zip(WORDS, reversed(WORDS)))]:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(line)["input_ids"])
        if set(tokens) <= set(numbers):
            assert new.convert_ids_to_tokens(new(line)["input_ids"]) == tokens
            alike += 1
        if kind != "words":
            assert new.decode(new(line)["input_ids"], skip_special_tokens=True) == tokenizer.decode(
                tokenizer(line)["input_ids"], skip_special_tokens=True
            )
    assert alike >= 3
    opened = BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    line = TEXT[0]
    with torch.no_grad():
        expected = model(**tokenizer(line, return_tensors="pt")).logits
        logits = opened(**new(line, return_tensors="pt")).logits
    columns = [tokenizer.convert_tokens_to_ids(token) for token, _ in sorted(numbers.items(), key=lambda item: item[1])]
    assert torch.equal(logits, expected[..., columns])


def test_a_generating_model_stops_at_the_same_token(tmp_path):
    tokenizer = train_tokenizer(CORPUS, vocab_size=320, num_spare_tokens=0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = build("TfmDecoderForCausalLM", **ids)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("s")]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trim_folder(str(tmp_path / "model"), [write_text(tmp_path)], tmp_path / "out")
    new = AutoTokenizer.from_pretrained(tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ends = new.convert_ids_to_tokens(opened.generation_config.eos_token_id)
    assert ends == [tokenizer.eos_token, "s"]
    assert (opened.config.pad_token_id, opened.config.bos_token_id) == (new.pad_token_id, new.bos_token_id)
    assert opened.get_input_embeddings().weight is opened.get_output_embeddings().weight
    assert new.chat_template == tokenizer.chat_template


def test_classifiers_and_encoder_decoders(tmp_path):
    tokenizer = TOKENIZERS["WordPiece"]()
    save_bert(tmp_path / "classifier", tokenizer, labels=3)
    text = write_text(tmp_path)
    assert trim_folder(str(tmp_path / "classifier"), [text], tmp_path / "out").difference == 0
    new = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert new("a", "b").keys() == tokenizer("a", "b").keys()
    tokenizer = unigram()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    assert trim_folder(str(tmp_path / "t5"), [text], tmp_path / "out5").difference == 0


def test_rare_tokens_are_left_out_on_request(tmp_path):
    tokenizer = TOKENIZERS["byte-level BPE"]()
    save_bert(tmp_path / "model", tokenizer)
    text = write_text(tmp_path, [*TEXT * 3, "a question about the moon"])
    counts = [
        trim_folder(str(tmp_path / "model"), [text], tmp_path / f"out{count}", min_count=count).tokens[1]
        for count in (1, 3)
    ]
    assert counts[1] < counts[0]


def test_merges_that_lead_to_a_token():
    ranks = {("a", "b"): 0, ("b", "c"): 1, ("ab", "c"): 2, ("x", "y"): 3}
    assert merged_from("abc", ranks) == {"a", "b", "c", "ab", "abc"}
    assert merged_from("xz", ranks) == {"x", "z"}


def test_other_files_stay_and_figures_of_the_old_model_do_not(tmp_path):
    save_bert(tmp_path / "model", TOKENIZERS["WordPiece"]())
    (tmp_path / "model" / "README.md").write_text("accuracy 0.9")
    (tmp_path / "model" / "modules.json").write_text("[]")
    trim_folder(str(tmp_path / "model"), [write_text(tmp_path)], tmp_path / "out")
    assert (tmp_path / "out" / "modules.json").is_file() and not (tmp_path / "out" / "README.md").exists()


def test_wrong_inputs_are_refused_by_name(tmp_path, capsys):
    tokenizer = TOKENIZERS["byte-level BPE"]()
    save_bert(tmp_path / "model", tokenizer)
    text = write_text(tmp_path)
    assert main(["trim-vocab", str(tmp_path / "model"), text, str(tmp_path / "model")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["trim-vocab", str(tmp_path / "model"), str(tmp_path / "none.txt"), str(tmp_path / "out")]) == 2
    assert "none.txt" in capsys.readouterr().err and not (tmp_path / "out").exists()
    state = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    state["model"]["end_of_word_suffix"] = "</w>"
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="marks at the ends of words"):
        trim_folder(str(tmp_path / "model"), [text], tmp_path / "out")


def test_the_command(tmp_path, capsys):
    save_bert(tmp_path / "model", TOKENIZERS["WordPiece"]())
    assert main(["trim-vocab", str(tmp_path / "model"), write_text(tmp_path), str(tmp_path / "out")]) == 0
    assert "its outputs on 3 of 3 documents equal" in capsys.readouterr().out
