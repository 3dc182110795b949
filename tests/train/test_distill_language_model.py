"""Language models learn from a teacher: the same run as pretraining, but for the loss."""

import json
import shutil

import distill
import pretrain_clm
import pytest
import torch
from pretraining_runs import TEXTS, arguments, assert_equal_weights, files  # noqa: F401
from tiny import build
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


TEACHERS = {"tfm": "decoder", "llama": "decoder", "gpt2": "decoder", "encoder": "encoder", "bert": "encoder"}


def build_teacher(kind: str, tokenizer):
    shape = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    shape |= {name: value for name, value in ids.items() if value is not None}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, **sizes))
    if kind == "gpt2":
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**shape, **still, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    if kind == "bert":
        return BertForMaskedLM(BertConfig(**shape, **sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    return build("TfmDecoderForCausalLM" if kind == "tfm" else "TfmEncoderForMaskedLM", **shape)


@pytest.fixture(scope="module")
def teachers(files):  # noqa: F811
    for kind, style in TEACHERS.items():
        tokenizer = AutoTokenizer.from_pretrained(files / style)
        build_teacher(kind, tokenizer).save_pretrained(files / f"teacher-{kind}")
        tokenizer.save_pretrained(files / f"teacher-{kind}")
    return files


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr("hf_tfm.artifacts.write.plot_curve", lambda *args: None)


def command(files, out, kind, **changes):  # noqa: F811
    fields = {"tokenizer": None, "teacher": files / f"teacher-{kind}", "top_k": 8, "compile": "off", **changes}
    return arguments(files, out, TEACHERS[kind], **fields)


def record(run):
    return json.loads((run / "run_record.json").read_text())


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(teachers, tmp_path, kind):
    """So the targets are those of the very tokens that a step predicts, in packed rows too."""
    fields = dict(
        model=teachers / f"teacher-{kind}", model_overrides="{}", soft_weight=1, top_k=400, block_length=64,
        max_steps=1, logging_steps=1, learning_rate=1e-9, embedding_learning_rate=1e-9,
    )  # fmt: skip
    assert distill.main(command(teachers, tmp_path / "same", kind, **fields)) == 0
    assert distill.main(command(teachers, tmp_path / "text", kind, **{**fields, "soft_weight": 0})) == 0
    same, text = (record(tmp_path / name)["curve"][0]["loss"] for name in ("same", "text"))
    # A few documents are cut to fill rows; there a causal teacher knows more.
    assert abs(same) < (0.03 if TEACHERS[kind] == "decoder" else 1e-4) * text
    assert record(tmp_path / "same")["results"] == pytest.approx(record(tmp_path / "text")["results"], rel=1e-4)


def test_without_a_weight_of_the_teacher_it_is_pretraining(teachers, tmp_path):
    # AdamW from normal weights: Muon turns rounding errors of a zero gradient into full steps.
    changes = {"optimizer": "adamw", "zero_init": "false"}
    assert distill.main(command(teachers, tmp_path / "distilled", "tfm", soft_weight=0, **changes)) == 0
    assert pretrain_clm.main(arguments(teachers, tmp_path / "plain", compile="off", **changes)) == 0
    assert_equal_weights(tmp_path / "plain", tmp_path / "distilled", rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def runs(teachers, tmp_path_factory):
    """A whole run from each kind of teacher, with a student of another size."""
    root = tmp_path_factory.mktemp("runs")
    for kind in ("tfm", "encoder"):
        assert distill.main(command(teachers, root / kind, kind)) == 0
    return root


@pytest.mark.parametrize("kind", ["tfm", "encoder"])
def test_a_resumed_run_ends_as_the_whole_one(teachers, runs, tmp_path, kind):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(runs / kind / ".recipe.json", out)
    shutil.copytree(runs / kind / "checkpoint-4", out / "checkpoint-4")
    assert distill.main(command(teachers, out, kind)) == 0
    assert_equal_weights(runs / kind, out)


def test_another_teacher_does_not_resume(teachers, runs, tmp_path, capsys):
    shutil.copytree(teachers / "teacher-tfm", tmp_path / "teacher-tfm")
    for name in ("train.jsonl", "held_out.jsonl"):
        shutil.copy(teachers / name, tmp_path)
    out = tmp_path / "run"
    assert distill.main(command(tmp_path, out, "tfm", max_steps=4)) == 0
    (out / "run_record.json").unlink()
    other = build("TfmDecoderForCausalLM", vocab_size=len(AutoTokenizer.from_pretrained(teachers / "decoder")))
    other.save_pretrained(tmp_path / "teacher-tfm")
    assert distill.main(command(tmp_path, out, "tfm", max_steps=4)) == 2
    assert "contents of teacher" in capsys.readouterr().err


def test_record_and_card_name_teacher_and_loss(runs):
    settings = {"top_k": 8, "temperature": 1.0, "soft_weight": 0.5}
    assert record(runs / "tfm")["teacher"] == {"name": "teacher-tfm", **settings, "teacher_length": 64}
    assert record(runs / "encoder")["teacher"] == {"name": "teacher-encoder", **settings}
    card = (runs / "encoder" / "README.md").read_text()
    assert "Teacher: `teacher-encoder` (top k 8, temperature 1, soft weight 0.5)" in card


@pytest.mark.parametrize("student", ["llama", "tfm"])
def test_layers_of_the_teacher_are_a_student(teachers, tmp_path, student):
    fields = dict(model=teachers / f"teacher-{student}", model_overrides="{}", keep_layers=1, max_steps=2)
    assert distill.main(command(teachers, tmp_path, student, **fields)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 1


MISTAKES = {
    "its tokenizer is another one": dict(tokenizer="encoder"),
    "--streaming: a teacher's probabilities are kept": dict(streaming="true"),
    "z_loss: goes without a teacher": dict(z_loss=1e-4),
    "keep_layers: keeps layers of a trained model": dict(keep_layers=1),
    "--top_k 0: must be at least 1": dict(top_k=0),
    "soft_weight 1.5: a share of the loss": dict(soft_weight=1.5),
    "--teacher_length 65: the teacher reads 64 tokens at most": dict(teacher_length=65),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_end_in_one_line(teachers, tmp_path, capsys, message):
    changes = dict(MISTAKES[message])
    if "tokenizer" in changes:
        changes["tokenizer"] = teachers / changes["tokenizer"]
    assert distill.main(command(teachers, tmp_path / "run", "tfm", **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
