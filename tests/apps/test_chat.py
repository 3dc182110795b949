"""`hf-tfm chat`: conversations, sampling options, interruption, and messages that a model cannot read."""

import io
from pathlib import Path

import pytest
import tiny
import torch
from tiny import build_tokenizer

from hf_tfm.apps.chat import Chat, talk
from hf_tfm.apps.cli import main
from hf_tfm.artifacts.open import open_model
from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(tiny.CORPUS, vocab_size=tiny.VOCAB_SIZE, num_spare_tokens=0)
    folder = tmp_path_factory.mktemp("speaker")
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=None)
    tiny.build("TfmDecoderForCausalLM", vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(folder: Path, monkeypatch, capsys, typed: str, *options: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", str(folder), "--max-new-tokens", "5", *options]) == 0
    return capsys.readouterr().out


def test_chat_answers_until_the_end(speaker, monkeypatch, capsys):
    shown = chat(
        speaker, monkeypatch, capsys, "the cat\n\n/new\n/help\nthe cat\n/quit\nthe cat\n", "--temperature", "0"
    )
    first, second = (part for part in shown.split("> ") if part.strip() and "/new" not in part)
    assert first == second, "a new conversation begins as the first did"
    assert shown.count("/new begins a new conversation") == 2


def test_chat_samples_by_its_options(speaker, monkeypatch, capsys):
    answers = [
        chat(speaker, monkeypatch, capsys, "the cat\n", *options)
        for options in (("--temperature", "3"), ("--temperature", "3"), ("--temperature", "3", "--seed", "1"),
                        ("--temperature", "3", "--top-k", "1"), ("--temperature", "0"))
    ]  # fmt: skip
    assert answers[0] == answers[1] != answers[2] and answers[3] == answers[4]


def test_chat_remembers_and_forgets(speaker):
    model, tokenizer = open_model(str(speaker))
    conversation = Chat(model, tokenizer, "be kind", max_new_tokens=4, do_sample=False)
    answer = conversation.ask("the cat")
    assert conversation.turns == [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": answer}]
    for _ in range(12):
        conversation.ask("the cat sat on")
    assert 2 <= len(conversation.turns) < 26, "the oldest turns make room"
    assert conversation.turns[-1]["role"] == "assistant"
    turns = list(conversation.turns)
    with pytest.raises(InputError, match="the model reads 64"):
        conversation.ask("zq" * 100)
    assert conversation.turns == turns, "a message that does not fit changes nothing"


def test_an_interrupted_answer_stays(speaker, monkeypatch):
    model, tokenizer = open_model(str(speaker))

    def generate(streamer, input_ids, **kwargs):
        streamer.put(input_ids[0])
        streamer.put(torch.tensor(tokenizer(" the cat sat", add_special_tokens=False)["input_ids"]))
        streamer.end()
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "generate", generate)
    assert Chat(model, tokenizer).ask("who?") == "the cat sat"


def test_chat_needs_a_template(tmp_path, capsys):
    tiny.build("TfmDecoderForCausalLM").save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert main(["chat", str(tmp_path)]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_bytes_that_are_not_text_are_one_line(speaker):
    """Reading them from a pipe raises a UnicodeDecodeError."""
    piped = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    with pytest.raises(InputError, match="bytes that are not text in utf-8"):
        talk(Chat(*open_model(str(speaker))), read=lambda prompt: piped.readline())


def test_a_message_with_tokens_without_embeddings_is_refused(speaker):
    _, tokenizer = open_model(str(speaker))
    with pytest.raises(InputError, match="the model has embeddings of 20"):
        Chat(tiny.build("TfmDecoderForCausalLM", vocab_size=20), tokenizer).ask("the cat")
