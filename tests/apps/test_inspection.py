"""`hf-tfm inspect` and `hf-tfm chat`: counts against those of the model itself, pictures, conversations."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from parity_table import native_model
from tiny import build_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from hf_tfm.apps.chat import Chat, talk
from hf_tfm.apps.cli import main
from hf_tfm.apps.inspect.architecture import (
    ATTENTION_FILE,
    NEIGHBOURS_FILE,
    draw_attention,
    inspect_model,
    nearest_tokens,
)
from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer


MODELS = {
    "decoder": lambda: tiny.build("TfmDecoderForCausalLM"),
    "own": lambda: tiny.build("TfmDecoderForCausalLM", attention_gate=True, value_residual=True),
    "untied": lambda: tiny.build("TfmDecoderForCausalLM", "llama"),
    "encoder": lambda: tiny.build("TfmEncoderForMaskedLM", "bert"),
    "classifier": lambda: tiny.build("TfmEncoderForSequenceClassification"),
    "base": lambda: tiny.build("TfmEncoderModel"),
    "gpt2": lambda: native_model("gpt2", "CausalLM", vocab_size=tiny.VOCAB_SIZE),
    "modernbert": lambda: native_model("modernbert", "MaskedLM", vocab_size=tiny.VOCAB_SIZE),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_hold_all_parameters(name):
    model = MODELS[name]()
    found = inspect_model(model)
    assert sum(found.parameters.values()) == model.num_parameters()
    assert "other" not in found.parameters, "a part has no name"
    embedding = model.get_input_embeddings().weight.numel()
    assert found.parameters["embeddings"] >= embedding
    if name == "own":  # the matrix that brings embeddings to the values is none of them
        assert found.parameters["embeddings"] == embedding and found.shape["gates on heads"] == "yes"
    assert ("head" in found.parameters) == (name not in ("decoder", "own", "base", "gpt2"))
    assert found.memory["weights, bf16"] == 2 * model.num_parameters()


@pytest.mark.parametrize("name", ["decoder", "own", "untied", "gpt2"])
def test_operations_equal_those_counted_while_it_runs(name):
    model, length = MODELS[name](), 32
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tiny.random_ids(1, length))
    found = inspect_model(model, length)
    # Rotary frequencies and the like are below a percent of a model this small.
    assert found.flops["forward"] * length == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found.flops["training step"] == 3 * found.flops["forward"]


def test_a_window_bounds_the_context():
    whole, half = (inspect_model(tiny.build("TfmDecoderForCausalLM", shape), 64) for shape in ("llama", "mistral"))
    assert half.flops["of these attention"] == whole.flops["of these attention"] * 4 // 64
    assert whole.memory["cache of a token, bf16"] == 2 * 2 * 2 * 8 * 1
    assert whole.memory["cache of 64 tokens"] == 64 * whole.memory["cache of a token, bf16"]
    assert half.memory["cache of 64 tokens"] == 4 * half.memory["cache of a token, bf16"]
    # Its configuration names no kinds of layers.
    slid, full = (
        inspect_model(native_model("mistral", "CausalLM", sliding_window=window), 64).flops["of these attention"]
        for window in (4, None)
    )
    assert slid == full * 4 // 64


def test_an_encoders_window_is_on_each_side():
    # One full layer of 64 tokens, and one of two on each side of a token.
    found = inspect_model(tiny.build("TfmEncoderModel", "modernbert"), 64)
    assert found.flops["of these attention"] == 4 * 32 * (64 + 5)


def test_nearest_tokens_are_by_cosine():
    model = tiny.build("TfmDecoderForCausalLM")
    weight = model.get_input_embeddings().weight.data
    weight[50] = 3 * weight[40]
    weight[60] = -weight[40]
    (near,) = nearest_tokens(model, [40])
    assert near[0][0] == 50 and near[0][1] == pytest.approx(1) and len(near) == 8
    assert 40 not in [token for token, _ in near] and 60 not in [token for token, _ in near]


@pytest.mark.parametrize("name", ["decoder", "encoder", "gpt2"])
def test_inspect_prints_and_draws(name, tmp_path, capsys):
    MODELS[name]().save_pretrained(tmp_path / name)
    build_tokenizer().save_pretrained(tmp_path / name)
    arguments = ["inspect", str(tmp_path / name), "--picture", str(tmp_path / "pictures"), "--text", "the cat sat"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for said in ("architecture", "parameters  ", "memory", "operations for a token", "attention"):
        assert said in printed
    for file in (ATTENTION_FILE, NEIGHBOURS_FILE):
        assert (tmp_path / "pictures" / file).read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(tiny.CORPUS, vocab_size=tiny.VOCAB_SIZE, num_spare_tokens=0)
    folder = tmp_path_factory.mktemp("speaker")
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=None)
    tiny.build("TfmDecoderForCausalLM", vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(folder: Path, monkeypatch, capsys, said: str, *options: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", str(folder), "--max-new-tokens", "5", *options]) == 0
    return capsys.readouterr().out


def test_chat_answers_until_the_end(speaker, monkeypatch, capsys):
    shown = chat(
        speaker, monkeypatch, capsys, "the cat\n\n/new\n/help\nthe cat\n/quit\nthe cat\n", "--temperature", "0"
    )
    first, second = (part for part in shown.split("> ") if part.strip() and "/new" not in part)
    assert first == second, "a new conversation begins as the first did"
    assert shown.count("/new begins a new conversation") == 2


def test_chat_draws_by_its_switches(speaker, monkeypatch, capsys):
    drawn = [
        chat(speaker, monkeypatch, capsys, "the cat\n", *options)
        for options in (("--temperature", "3"), ("--temperature", "3"), ("--temperature", "3", "--seed", "1"),
                        ("--temperature", "3", "--top-k", "1"), ("--temperature", "0"))
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2] and drawn[3] == drawn[4]


def test_chat_remembers_and_forgets(speaker):
    from hf_tfm.artifacts.open import open_model

    model, tokenizer = open_model(str(speaker))
    conversation = Chat(model, tokenizer, "be kind", max_new_tokens=4, do_sample=False)
    answer = conversation.ask("the cat")
    assert conversation.turns == [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": answer}]
    for _ in range(12):
        conversation.ask("the cat sat on")
    assert 2 <= len(conversation.turns) < 26, "the oldest turns make room"
    assert conversation.turns[-1]["role"] == "assistant"
    before = list(conversation.turns)
    with pytest.raises(InputError, match="the model reads 64"):
        conversation.ask("zq" * 100)
    assert conversation.turns == before, "a message that does not fit changes nothing"


def test_an_interrupted_answer_stays(speaker, monkeypatch):
    from hf_tfm.artifacts.open import open_model

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


def test_the_command_runs_the_package_and_says_nothing_else(tmp_path):
    command = [sys.executable, "-m", "hf_tfm_command", "inspect", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "nowhere: no such folder" in done.stderr


def test_bytes_that_are_no_text_are_one_line(speaker):
    """Piped in, they would raise where they are read."""
    from hf_tfm.artifacts.open import open_model

    piped = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    with pytest.raises(InputError, match="bytes that are not text in utf-8"):
        talk(Chat(*open_model(str(speaker))), read=lambda prompt: piped.readline())


def test_a_conversation_in_tokens_that_the_model_has_not(speaker):
    from hf_tfm.artifacts.open import open_model

    _, tokenizer = open_model(str(speaker))
    with pytest.raises(InputError, match="the model has embeddings of 20"):
        Chat(tiny.build("TfmDecoderForCausalLM", vocab_size=20), tokenizer).ask("the cat")


def test_a_picture_of_tokens_that_the_model_has_not(tmp_path):
    model = tiny.build("TfmEncoderForMaskedLM", vocab_size=200)
    with pytest.raises(InputError, match="the model has embeddings of 200"):
        draw_attention(model, build_tokenizer(), "the cat", tmp_path / ATTENTION_FILE)
