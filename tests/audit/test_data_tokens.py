"""The preflight of data with a tokenizer: scripts it does not know, and characters it does not know."""

import pytest
from audit_helpers import SENTENCES, byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_tfm.audit.records.scripts import check_scripts, count_letters, script_of
from hf_tfm.audit.records.subject import DataSubject
from hf_tfm.audit.records.tokens import check_tokens, open_tokenizer
from hf_tfm.audit.report import Report
from hf_tfm.core.errors import InputError
from hf_tfm.data.records import Records


RUSSIAN = [
    "кошка сидела на коврике у двери и смотрела на дождь",
    "семь кораблей ушли на юг, и никто не знал почему",
    "маленькая модель учит то, чему может научить маленький текст",
    "луна далеко, а чайник поёт на кухне",
]
CHINESE = ["猫坐在门口的垫子上看着外面的雨", "七艘船向南航行没有人知道为什么", "月亮很远水壶在厨房里唱歌"]


def bpe(texts: list[str], size: int = 1000) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE that knows these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def subject_of(texts: list[str]) -> DataSubject:
    rows = [{"text": text} for text in texts]
    return DataSubject("text", {"train": Records(rows, [f"line {number}" for number in range(len(rows))], "x")})


ENGLISH_WORDS = [*SENTENCES, "Every tokenizer knows some script well, and this sentence measures how many tokens it"]


@pytest.mark.parametrize("foreign", [RUSSIAN, CHINESE])
def test_scripts_that_are_cut_into_bytes(foreign):
    report = Report()
    check_scripts(subject_of(SENTENCES * 3 + foreign), bpe(ENGLISH_WORDS), report)
    assert report.codes == {"P609"}


@pytest.mark.parametrize("foreign", [RUSSIAN, CHINESE])
def test_scripts_that_the_tokenizer_knows_and_bytes_on_purpose(foreign):
    for tokenizer in (bpe(ENGLISH_WORDS + foreign), byte_tokenizer()):
        report = Report()
        check_scripts(subject_of(SENTENCES * 3 + foreign), tokenizer, report)
        assert report.findings == []


def test_letters_have_scripts():
    assert [script_of(letter) for letter in "aж漢ا1 "] == ["LATIN", "CYRILLIC", "CJK", "ARABIC", None, None]
    assert count_letters(["ab ж", "c"]) == {"LATIN": 3, "CYRILLIC": 1}


def test_unknown_characters():
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "the", "cat", "sat"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    report = Report()
    check_tokens(subject_of(["the cat sat", "the dog sat"]), wrapped, None, report)
    assert report.codes == {"P011"} and "'dog'" in report.warnings[0].what
    assert "limit" in report.unseen[0]


def test_tokenizers_are_opened_by_file_and_folder(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert open_tokenizer(place, tmp_path / "own.jinja").chat_template == "{{ messages }}"
    with pytest.raises(InputError, match="missing.jinja"):
        open_tokenizer(tmp_path, tmp_path / "missing.jinja")
    with pytest.raises(InputError, match="nothing.json"):
        open_tokenizer(tmp_path / "nothing.json", None)
