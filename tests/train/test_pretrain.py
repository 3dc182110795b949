"""The pretraining scripts: their output folders, exact resume, and errors for mistakes."""

import copy
import io
import json
import logging
import math
import os
import re
import shutil
import signal
import zipfile
from pathlib import Path

import pretrain_clm
import pretrain_mlm
import pytest
import quickstart
import torch
import yaml
from pretraining_runs import OVERRIDES, TEXTS, WHOLE_FOLDER, arguments, assert_equal_weights, weights
from tiny import build
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from hf_tfm import TfmDecoderConfig, TfmEncoderConfig
from hf_tfm.artifacts.open import open_model
from hf_tfm.artifacts.packing_support import PackedRows
from hf_tfm.artifacts.tokenizer_files import load_tokenizer
from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.limits import has_fast_bf16
from hf_tfm.cpu.attention import WindowedAttention
from hf_tfm.data.objectives import Masked, causal
from hf_tfm.data.records import Records
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.evaluate.language_model import bits_per_byte
from hf_tfm.evaluate.predict import open_predictor
from hf_tfm.tasks.likelihood import LanguageModel
from hf_tfm.train.callbacks import ProgressLine
from hf_tfm.train.initialization import zero_init_output_projections
from hf_tfm.train.pretrain import PretrainingTrainer, z_loss
from hf_tfm.train.pretrain_choice import choose_recipe
from hf_tfm.train.pretrain_data import describe_text, masked_evaluation, prepare_data
from hf_tfm.train.pretrain_model import build_model
from hf_tfm.train.pretrain_recipe import PretrainingArguments, PretrainingRecipe, pretraining_identity
from hf_tfm.train.recipe import parse_recipe
from hf_tfm.train.run_identity import write_identity
from hf_tfm.train.trainer import RunMixin


RECIPES = [
    path
    for pattern in ("pretrain_*.yaml", "quickstart_?lm.yaml", "released_??coder.yaml")
    for path in sorted((Path(quickstart.__file__).parent / "recipes").glob(pattern))
]


@pytest.fixture(autouse=True)
def _quick(quick_runs):
    """Tests of samples and plot use `whole_run`, a module's fixture and therefore made before this one."""


@pytest.fixture(scope="module")
def whole_run(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain_clm.main(arguments(files, out)) == 0
    return out


def test_run_writes_a_whole_folder_and_whole_checkpoints(whole_run):
    assert [path.name for path in complete_checkpoints(whole_run)] == ["checkpoint-4", "checkpoint-8"]
    for folder in (whole_run, whole_run / "checkpoint-4"):
        for name in WHOLE_FOLDER:
            assert (folder / name).is_file(), name
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=4).shape[1] >= 3
    assert (whole_run / "loss_curve.png").stat().st_size > 1000
    record = json.loads((whole_run / "run_record.json").read_text())
    assert record["steps"] == 8 and 0.97 * 8 * 4 * 32 < record["tokens"] <= 8 * 4 * 32 and len(record["curve"]) == 4
    assert len(record["evaluations"]) == 2, "the evaluation after the last step is not repeated"
    assert record["results"]["bits_per_byte"] < 8 and len(record["samples"]) == 3
    assert record["data"][0]["documents"] == len(TEXTS)
    assert str(whole_run.parent) not in json.dumps(record), "the record has paths of this machine"


def test_bits_per_byte_count_all_the_text_and_no_special_token(files, whole_run):
    """Also for documents that continue in another row, whose first token cannot be predicted."""
    results = json.loads((whole_run / "run_record.json").read_text())["results"]
    ids = AutoTokenizer.from_pretrained(whole_run)(TEXTS[:8], add_special_tokens=False)["input_ids"]
    tokens, text_bytes = sum(map(len, ids)), sum(len(text.encode()) for text in TEXTS[:8])
    assert results["predicted_tokens"] < tokens  # each text, except the first tokens of continued rows
    assert results["bits_per_byte"] == pytest.approx(results["loss"] / math.log(2) * tokens / text_bytes)


def test_a_run_and_an_evaluation_have_the_same_bits_per_byte(files, tmp_path):
    """Of short texts, in which an end token would be a large share."""
    texts = [f"The {animal} sleeps." for animal in ("cat", "old dog", "small bird", "fox", "grey mouse", "hen")]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "run"
    assert pretrain_clm.main(arguments(files, out, validation_data=tmp_path / "short.jsonl")) == 0
    recorded = json.loads((out / "run_record.json").read_text())["results"]
    model, tokenizer = open_model(str(out))
    measured = bits_per_byte(LanguageModel(model, tokenizer, causal=True), [("all", text) for text in texts])
    assert recorded["bits_per_byte"] == pytest.approx(measured["all"]["bits_per_byte"].value, rel=1e-4)
    assert math.exp(recorded["loss"]) == pytest.approx(measured["all"]["perplexity"].value, rel=1e-4)
    rows = open_predictor(str(out))(Records([{"text": text} for text in texts], list("123456"), "texts"))
    nats = -sum(row["log_likelihood"] for row in rows)
    assert nats / math.log(2) / sum(len(text) for text in texts) == pytest.approx(recorded["bits_per_byte"], rel=1e-4)


def test_a_finished_run_is_not_overwritten(files, whole_run, capsys):
    written_at = (whole_run / "model.safetensors").stat().st_mtime_ns
    assert pretrain_clm.main(arguments(files, whole_run)) == 2
    assert "finished run already" in capsys.readouterr().err
    assert (whole_run / "model.safetensors").stat().st_mtime_ns == written_at


def test_stopped_by_a_signal_and_resumed_equals_straight_through(files, whole_run, tmp_path, monkeypatch, capsys):
    stop_at = 3
    real = ProgressLine.on_step_end

    def signalled(self, args, state, control, **kwargs):
        if state.global_step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLine, "on_step_end", signalled)
    out = tmp_path / "run"
    assert pretrain_clm.main(arguments(files, out)) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert not (out / "model.safetensors").exists()
    stopped_at = int(complete_checkpoints(out)[-1].name.split("-")[1])
    assert stop_at <= stopped_at <= stop_at + 1
    monkeypatch.undo()
    warned = io.StringIO()
    transformers_logging.add_handler(handler := logging.StreamHandler(warned))
    transformers_logging.get_logger("transformers").warning_once.cache_clear()
    assert pretrain_clm.main(arguments(files, out, eval_steps=0.5, save_steps=0.5)) == 0
    transformers_logging.remove_handler(handler)
    assert "do not match" not in warned.getvalue()  # steps given as a share of the run
    assert f"resuming from {out}/checkpoint-{stopped_at}" in capsys.readouterr().out
    assert_equal_weights(whole_run, out)
    for name in ("optimizer.pt", "scheduler.pt"):
        mine, theirs = (torch.load(run / "checkpoint-8" / name) for run in (out, whole_run))
        assert str(mine) == str(theirs)


@pytest.mark.parametrize("when, code", [("build_model", 130), ("report_end", 0)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_the_training_ends_in_one_line(files, tmp_path, monkeypatch, capsys, when, code, number):
    """Before the first checkpoint a run cannot be resumed; after the last one it can."""
    real = getattr(pretrain_clm, when)

    def signalled(*args):
        os.kill(os.getpid(), number)
        return real(*args)

    sigint_handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes
    handler = signal.getsignal(number)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(pretrain_clm, when, signalled)
            assert pretrain_clm.main(arguments(files, tmp_path / "run")) == code
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(signal.SIGINT, sigint_handler)
    message = "stopped; the same command goes on from" if code == 0 else "stopped"
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(message)
    assert not (tmp_path / "run" / "run_record.json").exists()
    if code == 0:
        assert pretrain_clm.main(arguments(files, tmp_path / "run")) == 0
        assert (tmp_path / "run" / "run_record.json").exists()


def test_a_crash_during_a_save_loses_only_the_steps_since_the_last_one(files, whole_run, tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    real = RunMixin._move_up

    def crash(self, written):
        if written.name == "checkpoint-8":
            raise Crash
        real(self, written)

    monkeypatch.setattr(RunMixin, "_move_up", crash)
    out = tmp_path / "run"
    with pytest.raises(Crash):
        pretrain_clm.main(arguments(files, out))
    monkeypatch.undo()
    assert [path.name for path in complete_checkpoints(out)] == ["checkpoint-4"]
    assert pretrain_clm.main(arguments(files, out)) == 0
    assert_equal_weights(whole_run, out)


OTHER_RECIPES = {
    "another recipe (max_steps: 8, now 9)": {"max_steps": 9},
    "another recipe (learning_rate: None, now 0.001)": {"learning_rate": 1e-3},
    "another recipe (rows_per_step: 4, now 8)": {"per_device_train_batch_size": 8},
    "another recipe (z_loss: 0.0, now 0.1)": {"z_loss": 0.1},
    "--save_only_model leaves out the optimizer's state": {"save_only_model": "true"},
}


@pytest.mark.parametrize("complaint", OTHER_RECIPES)
def test_another_recipe_does_not_resume(files, whole_run, tmp_path, capsys, complaint):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(whole_run / ".recipe.json", out)
    shutil.copytree(whole_run / "checkpoint-4", out / "checkpoint-4")
    assert pretrain_clm.main(arguments(files, out, **OTHER_RECIPES[complaint])) == 2
    assert complaint in capsys.readouterr().err


def test_a_run_of_an_older_version_can_be_resumed(files, whole_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    recipe = json.loads((whole_run / ".recipe.json").read_text())
    (out / ".recipe.json").write_text(
        json.dumps(
            {
                "script": {"z_loss": recipe["z_loss"], "masking_rate": 0.3, "final_masking_rate": 0.15},
                "max_steps": 8,
                "seed": recipe["seed"],
            }
        )
    )
    shutil.copytree(whole_run / "checkpoint-4", out / "checkpoint-4")
    monkeypatch.setattr("hf_tfm.artifacts.record._commit", lambda: "f" * 40)
    assert pretrain_clm.main(arguments(files, out)) == 0
    assert_equal_weights(whole_run, out)
    # The time of a run is the sum over its parts.
    first, second, whole = (
        json.loads((folder / "run_record.json").read_text()) for folder in (out / "checkpoint-4", out, whole_run)
    )
    assert second["started"] == first["started"] == whole["started"]
    assert second["seconds"] > first["seconds"] + 0.1
    assert second["commit"] == whole["commit"] and second["ended_with_commit"] == "f" * 40


def test_a_run_of_an_older_version_does_not_resume_in_a_later_pass(files, whole_run, tmp_path, capsys):
    """Older versions repeated the blocks of the first pass."""
    out = tmp_path / "run"
    changes = {"max_steps": 500}
    recipe, args = parse_recipe(arguments(files, out, **changes), PretrainingRecipe, PretrainingArguments)
    write_identity(out, pretraining_identity(recipe, args))
    shutil.copytree(whole_run / "checkpoint-4", out / "checkpoint-4")
    assert pretrain_clm.main(arguments(files, out, **changes)) == 2
    assert "packed anew in each pass'): choose another --output_dir" in capsys.readouterr().err
    identities = [pretraining_identity(recipe, args, passes) for passes in ([], [1.0], [0.4, 1.1], [None])]
    assert identities[0] == identities[1] != identities[2] == identities[3]


def test_a_data_seed_of_0_is_used(files, tmp_path):
    first_rows = []
    for seed, data_seed in ((5, 0), (0, 0), (5, 5)):
        recipe, args = parse_recipe(
            arguments(files, tmp_path, seed=seed, data_seed=data_seed), PretrainingRecipe, PretrainingArguments
        )
        tokenizer = load_tokenizer(recipe.tokenizer)
        model, _ = build_model(AutoModelForCausalLM, TfmDecoderConfig, tokenizer, recipe)
        first_rows.append(prepare_data(recipe, args, tokenizer, model, causal).train[0]["input_ids"])
    assert torch.equal(first_rows[0], first_rows[1]) and not torch.equal(first_rows[0], first_rows[2])


def test_notes_report_text_left_out_repeated_or_measured_and_trained_on(files, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl", "test-of-courage.jsonl", "notes.doc"):
        (folder / name).write_text((files / "train.jsonl").read_text())
    assert pretrain_clm.main(arguments(files, tmp_path / "run", data=folder, validation_data=folder / "a.jsonl")) == 0
    output = capsys.readouterr().out
    assert "1 left out of" in output and "named for another split: test-of-courage.jsonl" in output
    assert "of another kind: notes.doc" in output and "a file of the training text is in it twice" in output
    assert "a file of the validation text is trained on" in output
    assert pretrain_clm.main(arguments(files, tmp_path / "other")) == 0
    output = capsys.readouterr().out
    assert not any(words in output for words in ("left out of", "in it twice", "is trained on"))


def test_passes_padding_and_measured_tokens_are_reported(files, tmp_path, capsys):
    (tmp_path / "few.jsonl").write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    changes = {"data": tmp_path / "few.jsonl", "validation_tokens": 100, "max_steps": 2}
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **changes)) == 0
    output = capsys.readouterr().out
    tokens = len(AutoTokenizer.from_pretrained(files / "decoder")(TEXTS[0], add_special_tokens=False).input_ids) + 2
    record = json.loads((tmp_path / "run" / "run_record.json").read_text())
    assert record["tokens"] <= 2 * 4 * 32 and f"{1 - record['tokens'] / 256:.1%} of it padding" in output
    passes = float(re.search(r"(\S+) passes over", output)[1])
    assert passes == pytest.approx(record["tokens"] / tokens, rel=0.1)
    measured = record["data"][-1]["measured_tokens"]
    assert f"{measured:,} tokens of it measured" in output and 80 < measured < 140 < record["data"][-1]["tokens"]


def test_many_files_are_counted_and_a_stream_is_not_hashed(files, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS[:40]):
        (folder / f"{number}.txt").write_text(text)
    for streaming in ("false", "true"):
        out = tmp_path / streaming
        assert pretrain_clm.main(arguments(files, out, data=folder, streaming=streaming, max_steps=2)) == 0
        facts = json.loads((out / "run_record.json").read_text())["data"][0]
        assert facts["name"] == "texts (40 files)" and ("sha256" in facts) == (streaming == "false")
        assert "17.txt" not in (out / "README.md").read_text()


def test_an_archive_is_named_once(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            archive.write(files / "train.jsonl", name)
    recipe, _ = parse_recipe(
        arguments(files, tmp_path, data=tmp_path / "texts.zip"), PretrainingRecipe, PretrainingArguments
    )
    [facts] = describe_text("train", recipe.training_sources(), [], recipe)
    assert len(facts["sha256"]) == 64 and facts["name"] == "texts.zip"


BERT = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0}  # fmt: skip


CASES = pytest.mark.parametrize(
    "script, style, changes",
    [
        (pretrain_clm, "decoder", {}),
        (pretrain_clm, "decoder", {"masked_share": 0.5, "compile": "off"}),
        (pretrain_mlm, "encoder", {}),
        (pretrain_mlm, "encoder", {"model": "bert.json", "model_overrides": "{}"}),  # its loss is a mean
        (pretrain_mlm, "encoder", {"model": "bert.json", "model_overrides": "{}", "sentence_task": "next_sentence"}),
    ],
)


@CASES
def test_the_evaluation_loss_does_not_depend_on_its_batches(files, tmp_path, monkeypatch, script, style, changes):
    (tmp_path / "bert.json").write_text(json.dumps(BERT))
    monkeypatch.chdir(tmp_path)
    losses = []
    for size in (64, 3, 1):
        fields = {**changes, "max_steps": 1, "optimizer": "adamw", "per_device_eval_batch_size": size}
        assert script.main(arguments(files, tmp_path / str(size), style, **fields)) == 0
        losses.append(json.loads((tmp_path / str(size) / "run_record.json").read_text())["results"]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@CASES
def test_accumulated_batches_equal_whole_ones(files, tmp_path, monkeypatch, script, style, changes):
    (tmp_path / "bert.json").write_text(json.dumps(BERT))
    monkeypatch.chdir(tmp_path)
    # AdamW from normal weights: Muon turns rounding errors of a zero gradient into full steps.
    plain = {"optimizer": "adamw", "zero_init": "false", **changes}
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    runs = {"whole": plain, "halves": {**plain, **halves}}
    curves = {}
    for name, changes in runs.items():
        assert script.main(arguments(files, tmp_path / name, style, **changes)) == 0
        record = json.loads((tmp_path / name / "run_record.json").read_text())
        curves[name] = [entry["loss"] for entry in record["curve"]] + [record["results"]["loss"]]
    assert curves["halves"] == pytest.approx(curves["whole"], rel=1e-5)


def change_text(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[::-1]))


def change_tokenizer(folder):
    other = train_tokenizer([text.upper() for text in TEXTS], vocab_size=320, style="decoder", num_spare_tokens=0)
    other.save_pretrained(folder / "decoder")


def change_model(folder):
    (folder / "llama.json").write_text(json.dumps({**LLAMA, "rope_theta": 77.0}))


LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        (change_text, "another recipe (contents of data: "),
        (change_tokenizer, "another recipe (contents of tokenizer: "),
        (change_model, "another recipe (contents of model: "),
    ],
)
def test_a_run_does_not_resume_with_changed_files(files, tmp_path, capsys, change, message):
    for name in ("train.jsonl", "held_out.jsonl"):
        shutil.copy(files / name, tmp_path / name)
    shutil.copytree(files / "decoder", tmp_path / "decoder")
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    fields = {"model": tmp_path / "llama.json", "model_overrides": "{}", "max_steps": 4}
    command = arguments(tmp_path, tmp_path / "run", **fields)
    assert pretrain_clm.main(command) == 0
    for name in ("run_record.json", "config.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()  # as if it had been killed after its last checkpoint
    change(tmp_path)
    assert pretrain_clm.main(command) == 2
    assert message in capsys.readouterr().err


ROW = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
       "max_position_embeddings": 66, "initializer_range": 0.3, "pad_token_id": 1}  # fmt: skip


@pytest.mark.parametrize("zero_init", [False, True])
@pytest.mark.parametrize(
    "name, auto, fields, apart",
    [
        ("llama", AutoModelForCausalLM, {}, True),
        ("opt", AutoModelForCausalLM, {"ffn_dim": 48, "word_embed_proj_dim": 32}, True),
        ("mamba", AutoModelForCausalLM, {}, False),
        ("bert", AutoModelForMaskedLM, {}, True),
        ("roberta", AutoModelForMaskedLM, {}, True),
        ("electra", AutoModelForMaskedLM, {"embedding_size": 16}, True),
        ("modernbert", AutoModelForMaskedLM, {"local_attention": 6}, True),
    ],
)
def test_packed_texts_are_independent_in_any_architecture(name, auto, fields, apart, zero_init):
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(name, **{**ROW, **fields})).eval()
    model.config.use_cache = False  # as Trainer does
    trained = copy.deepcopy(model)
    if zero_init:
        zero_init_output_projections(model)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    rows = PackedRows.of(model)
    assert rows.supports_packing == apart
    assert all(torch.equal(value, initial[key]) for key, value in model.state_dict().items())
    ids, lengths = torch.randint(2, 99, (2, 32)), (14, 12, 6)
    inputs = rows.fit({"input_ids": ids, "position_ids": torch.cat([torch.arange(n) for n in lengths]).repeat(2, 1)})
    together = trained(**inputs).logits.split(lengths, dim=1)
    alone = [trained(input_ids=part).logits for part in ids.split(lengths, dim=1)]
    near = [torch.allclose(one, other, atol=1e-4) for one, other in zip(together, alone, strict=True)]
    assert all(near) == apart


@pytest.mark.parametrize("warmup", [0, 0.2])
def test_a_decay_of_1_lasts_the_whole_run(files, tmp_path, warmup):
    changes = {"warmup": warmup, "decay": 1.0, "logging_steps": 1}
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **changes)) == 0
    curve = json.loads((tmp_path / "run" / "run_record.json").read_text())["curve"]
    rates = [entry["learning_rate"] for entry in curve][round(8 * warmup) :]
    assert rates == sorted(set(rates), reverse=True) and rates[-1] < rates[0] / 5


def test_a_tokenizer_without_a_pad_token_trains(files, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(files / "decoder")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert pretrain_clm.main(arguments(files, tmp_path / "run", tokenizer=tmp_path / "tokenizer")) == 0


@pytest.mark.parametrize("task", ["causal", "masked", "next_sentence"])
def test_validation_text_is_held_out_by_default(files, tmp_path, task):
    changes = {"validation_data": None, "validation_fraction": 0.2, "max_steps": 4}
    fields = arguments(files, tmp_path / "run", "decoder" if task == "causal" else "encoder", **changes)
    if task == "next_sentence":
        fields += ["--sentence_task", task]
    main = pretrain_clm.main if task == "causal" else pretrain_mlm.main
    assert main(fields) == 0
    record = json.loads((tmp_path / "run" / "run_record.json").read_text())
    train, held_out = record["data"]
    assert 0 < held_out["documents"] < 0.5 * len(TEXTS)
    assert train["documents"] + held_out["documents"] == len(TEXTS)
    assert held_out["name"] == "train.jsonl (0.2 of the documents)"


def test_validation_text_without_masked_tokens(files, tmp_path, capsys):
    """Such a batch is skipped; if there is no other, it is an error."""
    long, short = json.dumps({"text": "the miller asked the river for a story " * 3}), json.dumps({"text": "a"})
    for name, text in (("both", f"{long}\n{short}\n"), ("short", short)):
        (tmp_path / f"{name}.jsonl").write_text(text)
        changes = {"validation_data": tmp_path / f"{name}.jsonl", "per_device_eval_batch_size": 1, "max_steps": 2}
        capsys.readouterr()
        done = pretrain_mlm.main(arguments(files, tmp_path / name, "encoder", **changes))
        assert done == (0 if name == "both" else 2)
    assert "short.jsonl: too little text, nothing is predicted" in capsys.readouterr().err


def test_z_loss_weighs_as_much_in_any_number_of_processes(files, tmp_path, monkeypatch):
    fields = arguments(files, tmp_path, z_loss=0.1)
    recipe, args = parse_recipe(fields, PretrainingRecipe, PretrainingArguments)
    tokenizer = load_tokenizer(recipe.tokenizer)
    choice = choose_recipe(recipe, args, AutoModelForCausalLM, TfmDecoderConfig, tokenizer)
    model, _ = build_model(AutoModelForCausalLM, TfmDecoderConfig, tokenizer, recipe)
    data = prepare_data(recipe, args, tokenizer, model, causal)
    trainer = PretrainingTrainer(
        model=model, args=args, processing_class=tokenizer, data=data, recipe=recipe, choice=choice
    )
    losses = []
    for processes in (1, 2):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", processes)
        loss = trainer.compute_loss(model, dict(data.train[0]), num_items_in_batch=torch.tensor(200))
        losses.append(loss.item())
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)  # the mean over the processes' gradients undoes it


def test_z_loss_counts_predicted_positions_only():
    logits = torch.zeros(2, 3, 8)
    logits[0, 0] = 100.0
    labels = torch.tensor([[-100, 1, 2], [3, -100, 4]])
    assert z_loss(logits, labels).item() == pytest.approx(math.log(8) ** 2)


def test_masked_run(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain_mlm.main(arguments(files, out, "encoder", masking_unit="word", optimizer="adamw")) == 0
    assert "[MASK] → " in capsys.readouterr().out
    assert AutoModelForMaskedLM.from_pretrained(out).config.mask_token_id is not None
    assert len(json.loads((out / "run_record.json").read_text())["samples"]) == 3


def test_an_encoder_can_predict_next_tokens_first(files, tmp_path, capsys):
    records = {}
    for name, changes in {
        "whole": {},
        "halves": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    }.items():
        fields = {"causal_first": 0.5, "per_device_train_batch_size": 4, "optimizer": "adamw", **changes}
        assert pretrain_mlm.main(arguments(files, tmp_path / name, "encoder", **fields)) == 0
        records[name] = json.loads((tmp_path / name / "run_record.json").read_text())
    assert records["halves"]["results"]["loss"] == pytest.approx(records["whole"]["results"]["loss"], rel=1e-5)
    assert "→" in capsys.readouterr().out  # the example: the input and the token after it
    wrong = {"causal_first": 0.5, "sentence_task": "next_sentence"}
    assert pretrain_mlm.main(arguments(files, tmp_path / "wrong", "encoder", **wrong)) != 0
    assert "causal_first goes without a sentence task" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["next_sentence", "sentence_order"])
def test_masked_run_with_sentence_task(files, tmp_path, task):
    out = tmp_path / "run"
    switches = '{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "type_vocab_size": 2}'
    changes = {"sentence_task": task, "model_overrides": switches, "block_length": 48}
    assert pretrain_mlm.main(arguments(files, out, "encoder", **changes)) == 0
    model = AutoModelForPreTraining.from_pretrained(out)
    assert type(model).__name__ == "TfmEncoderForPreTraining" and model.model.embed_token_types is not None


@pytest.mark.parametrize(
    "kind, fields, complaint",
    [
        ("bert", {}, None),
        ("albert", {"embedding_size": 16}, None),  # calls the label by another name
        ("electra", {"embedding_size": 16}, "ElectraForPreTraining has no head for it"),  # would tell tokens apart
        ("roberta", {}, "RobertaForMaskedLM has no head for it"),  # would heed no label
        ("modernbert", {}, "for this kind of AutoModel: AutoModelForPreTraining."),
    ],
)
def test_a_sentence_task_needs_a_head_for_it(files, tmp_path, capsys, kind, fields, complaint):
    config = {**ROW, **fields, "model_type": kind, "pad_token_id": 0}
    (tmp_path / "model.json").write_text(json.dumps(config))
    changes = {"model": tmp_path / "model.json", "model_overrides": "{}", "sentence_task": "sentence_order"}
    code = pretrain_mlm.main(arguments(files, tmp_path / "run", "encoder", **changes))
    error = capsys.readouterr().err
    if complaint is None:
        assert code == 0, error
    else:
        assert code == 2 and complaint in error and "Gpt" not in error and "GPT" not in error


@pytest.mark.parametrize("script, style", [(pretrain_clm, "decoder"), (pretrain_mlm, "encoder")])
def test_a_model_with_few_positions_is_written(files, tmp_path, monkeypatch, script, style):
    """The samples at the end are longer than the model's positions, which must not lose the run."""
    monkeypatch.undo()  # samples as in a real run
    if script is pretrain_clm:
        config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    else:
        config = {**ROW, "model_type": "bert", "max_position_embeddings": 16, "pad_token_id": 0}
    (tmp_path / "model.json").write_text(json.dumps(config))
    changes = {"model": tmp_path / "model.json", "model_overrides": "{}", "block_length": 16, "max_steps": 2}
    assert script.main(arguments(files, tmp_path / "run", style, **changes)) == 0
    assert (tmp_path / "run" / "run_record.json").exists()


def test_any_architecture_trains_and_continues_from_a_folder(files, tmp_path):
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = tmp_path / "first"
    fields = {"model": tmp_path / "config.json", "model_overrides": "{}"}
    assert pretrain_clm.main(arguments(files, first, **fields)) == 0
    assert json.loads((first / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    second = tmp_path / "second"
    fields = arguments(files, second, model=first, model_overrides="{}")
    del fields[(given := fields.index("--tokenizer")) : given + 2]  # the folder has one
    assert pretrain_clm.main(fields) == 0
    records = [json.loads((run / "run_record.json").read_text()) for run in (first, second)]
    assert records[1]["results"]["loss"] < records[0]["results"]["loss"]
    assert records[1]["base_model"] == "first" and "base_model" not in records[0]


@pytest.mark.parametrize("use_cache", [False, True])
def test_causal_models_of_any_name_mask_later_tokens(use_cache):
    """GPT2LMHeadModel with a cache ignores positions, and needs a mask to keep texts apart."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=32, n_head=4, vocab_size=99, initializer_range=0.3)
    config.use_cache = use_cache
    rows = PackedRows.of(AutoModelForCausalLM.from_config(config).eval())
    assert rows.supports_packing and rows.is_causal and rows.mask == ("all" if use_cache else None)


def test_a_configuration_in_bf16_is_trained_in_fp32(files):
    tokenizer = load_tokenizer(str(files / "decoder"))
    path = files / "bf16.json"
    path.write_text(json.dumps({**LLAMA, "dtype": "bfloat16"}))
    model, _ = build_model(
        AutoModelForCausalLM,
        TfmDecoderConfig,
        tokenizer,
        PretrainingRecipe([], [], "", model=str(path), block_length=32),
    )
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_an_encoder_architecture_becomes_causal_in_causal_pretraining(files, tmp_path, kind):
    tokenizer = load_tokenizer(str(files / "decoder"))
    config = AutoConfig.for_model(kind, **{**ROW, "vocab_size": len(tokenizer)})
    config.save_pretrained(tmp_path / "config")
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "weights")
    for folder in (tmp_path / "config" / "config.json", tmp_path / "weights"):
        recipe = PretrainingRecipe([], [], "", model=str(folder), block_length=16, zero_init=False)
        model, is_new = build_model(AutoModelForCausalLM, TfmDecoderConfig, tokenizer, recipe)
        assert is_new == folder.is_file() and model.config.is_decoder
        ids = torch.arange(5, 17)[None]
        others = ids.clone()
        others[:, 8:] += 1
        one, other = (model.eval()(input_ids=rows).logits[:, :8] for rows in (ids, others))
        torch.testing.assert_close(one, other)


def test_causal_lms_of_any_name_have_bits_per_byte(files, tmp_path):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fields = {"model": tmp_path / "config.json", "model_overrides": "{}", "z_loss": 1e-3}
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **fields)) == 0
    assert 0 < json.loads((tmp_path / "run" / "run_record.json").read_text())["results"]["bits_per_byte"] < 8


def test_pickled_weights_of_an_older_folder_are_loaded(files, tmp_path):
    tokenizer = load_tokenizer(str(files / "decoder"))
    config = AutoConfig.for_model(**{**LLAMA, "vocab_size": len(tokenizer)})
    original = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    recipe = PretrainingRecipe([], [], "", model=str(tmp_path), block_length=32)
    model, is_new = build_model(AutoModelForCausalLM, TfmDecoderConfig, tokenizer, recipe)
    assert not is_new
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, original.model.layers[0].mlp.up_proj.weight)


def damage(files, tmp_path, whole_run, what):
    """Return arguments with one mistake, and the words that the error must have."""
    broken = tmp_path / "broken"
    broken.mkdir()
    if what == "missing file":
        return {"data": broken / "none.jsonl"}, "none.jsonl"
    if what == "empty file":
        (broken / "empty.jsonl").write_text("")
        return {"data": broken / "empty.jsonl"}, "empty.jsonl"
    if what == "wrong field":
        return {"text_field": "body"}, "body"
    if what == "binary junk":
        (broken / "junk.jsonl").write_bytes(bytes(range(256)) * 20)
        return {"data": broken / "junk.jsonl"}, "junk.jsonl"
    if what == "another tokenizer":
        other = train_tokenizer(TEXTS, vocab_size=400, num_spare_tokens=100)
        other.save_pretrained(broken / "other")
        return {"model": whole_run, "model_overrides": "{}", "tokenizer": broken / "other"}, "another model's"
    if what == "too long":
        return {"model_overrides": '{"max_position_embeddings": 16}'}, "16 positions"
    if what == "unknown field":
        return {"block_lenght": 32}, "did you mean block_length?"
    if what == "unknown preset":
        return {"model": "colossal"}, "unknown preset 'colossal'"
    if what == "no tokenizer":
        return {"tokenizer": broken}, "; training/train_tokenizer.py makes one"
    if what == "bad override":
        return {"model_overrides": '{"hidden_act": "swoosh"}'}, "hidden_act 'swoosh' is unknown"
    if what == "unknown field of an architecture":
        (broken / "llama.json").write_text(json.dumps(LLAMA))
        return {"model": broken / "llama.json", "model_overrides": '{"hiden_size": 64}'}, "no field 'hiden_size'"
    if what == "windows of another architecture":
        (broken / "llama.json").write_text(json.dumps(LLAMA))
        fields = {"model": broken / "llama.json", "model_overrides": "{}", "window": 4}
        return fields, "--window shapes new models of this package"
    if what == "unknown field of a model":
        return {"model": whole_run, "model_overrides": '{"nope": 1}'}, "unexpected keyword argument 'nope'"
    return SETTINGS[what]


SETTINGS = {
    "not a number": ({"max_steps": "many"}, "max_steps"),
    "overrides in a list": ({"model_overrides": "[1]"}, "model_overrides: must be a mapping"),
    "epochs": ({"num_train_epochs": 2}, "--num_train_epochs has no effect in this script: a run is counted in steps"),
    "epochs as by default": ({"num_train_epochs": 3}, "--num_train_epochs has no effect in this script"),
    "negative seed": ({"seed": -1}, "--seed -1: must be at least 0"),
    "negative z-loss": ({"z_loss": -1}, "--z_loss -1.0: must be at least 0"),
    "no steps": ({"max_steps": -1}, "--max_steps -1: must be at least 1"),
    "windows twice": (
        {"window": 4, "model_overrides": '{"sliding_window": 8}'}, "--window and sliding_window of --model_overrides"
    ),
    "negative window": ({"window": -1}, "--window -1: must be at least 0"),
    "no rows": ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0"),
    "held out of a stream": ({"validation_data": None, "streaming": "true"}, "--streaming: give --validation_data"),
    "all held out": ({"validation_fraction": 1}, "validation_fraction 1.0 must lie between 0 and 1"),
    "nothing to measure": ({"validation_tokens": 0}, "--validation_tokens 0"),
    "another schedule": ({"lr_scheduler_type": "cosine"}, "--lr_scheduler_type has no effect in this script"),
    "decay over more than the run": ({"decay": 3}, "decay 3: a share of the run"),
    "loading ahead": ({"dataloader_num_workers": 2}, "--dataloader_num_workers has no effect in this script"),
    "data read again": ({"ignore_data_skip": "true"}, "--ignore_data_skip has no effect in this script"),
    "another warm-up": ({"warmup_steps": 10}, "give --warmup"),
    "another optimizer": ({"adam_beta2": 0.95}, "--adam_beta2 has no effect in this script"),
    "smoothing": ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no effect"),
    "no such tracker": ({"report_to": "clearml"}, "--report_to clearml: there is no such package here"),
    "no such checkpoint": ({"resume_from_checkpoint": "true"}, "--resume_from_checkpoint true: no checkpoint"),
    "rate by rows of any length": (
        {"masked_share": 0.5, "length_schedule": "0:16,0.5:32"}, "masked_share with a length_schedule"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "what",
    ["missing file", "empty file", "wrong field", "binary junk", "another tokenizer", "too long", "unknown field",
     "unknown preset", "no tokenizer", "bad override", "unknown field of a model", "unknown field of an architecture",
     "windows of another architecture", *SETTINGS],
)  # fmt: skip
def test_mistakes_get_one_line_and_write_nothing(files, tmp_path, whole_run, capsys, what):
    changes, expected = damage(files, tmp_path, whole_run, what)
    capsys.readouterr()
    out = tmp_path / "run"
    assert pretrain_clm.main(arguments(files, out, **changes)) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and expected in lines[0], error
    assert not out.exists()


def test_a_new_model_needs_a_tokenizer(files, tmp_path, capsys):
    fields = arguments(files, tmp_path / "run")
    del fields[(given := fields.index("--tokenizer")) : given + 2]
    assert pretrain_clm.main(fields) == 2
    assert "error: --tokenizer: where is it?" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"length_schedule": "0:16,0.5:32"}, "length_schedule is for decoders"),
        ({"streaming": "true", "sentence_task": "next_sentence"}, "streaming goes without a sentence task"),
        ({"masking_rate": 0.3}, "unknown field 'masking_rate'; did you mean masking_rates?"),
        ({"final_masking_rate": 0.15}, "unknown field 'final_masking_rate'; did you mean masking_rates?"),
        ({"masking_rates": 1.5}, "masking rates must lie between 0 and 1, not 1.5"),
    ],
)
def test_options_that_an_encoder_does_not_support_are_refused(files, tmp_path, capsys, changes, complaint):
    assert pretrain_mlm.main(arguments(files, tmp_path / "run", "encoder", **changes)) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_that_diverges_ends_in_one_line(files, tmp_path, capsys):
    fields = {"optimizer": "adamw", "learning_rate": 1e25, "max_grad_norm": 0, "eval_steps": 2}
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **fields)) == 2
    assert "error: the loss is not finite, the training diverged" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "signal handlers are restored"
    assert not (tmp_path / "run" / "run_record.json").exists()


def test_a_folder_with_another_model_is_not_overwritten(files, tmp_path, capsys):
    """Not even if it is the model to train."""
    build("TfmDecoderForCausalLM").save_pretrained(tmp_path / "mine")
    content = (tmp_path / "mine" / "model.safetensors").read_bytes()
    for model in ("nano", tmp_path / "mine"):
        fields = {"model": model, "model_overrides": "{}"}
        assert pretrain_clm.main(arguments(files, tmp_path / "mine", **fields)) == 2
        assert "holds another model" in capsys.readouterr().err
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == content


def test_the_quickstart_writes_relative_to_the_working_directory(tmp_path, monkeypatch):
    commands, finished = [], [file for *_, file in quickstart.steps("mine")]
    monkeypatch.chdir(tmp_path)

    def run(arguments):
        file = Path(finished[len(commands)])
        commands.append(" ".join(arguments))
        file.parent.mkdir(parents=True)
        file.touch()

    monkeypatch.setattr(quickstart, "hf_tfm", run)
    assert quickstart.main(["--output_dir", "mine"]) == 0
    assert len(commands) == len(finished) == 7 and all("mine/" in command for command in commands)
    assert quickstart.main(["--output_dir", "mine"]) == 0 and len(commands) == 7, "what is finished stays"


@pytest.mark.parametrize(
    "auto_class, config_class, model",
    [
        (AutoModelForCausalLM, TfmDecoderConfig, "nano"),
        (AutoModelForCausalLM, TfmDecoderConfig, "gpt2/nano"),
        (AutoModelForMaskedLM, TfmEncoderConfig, "modernbert/nano"),  # its own pattern of windows differs
    ],
)
def test_window_applies_to_all_layers_but_the_last(files, auto_class, config_class, model):
    tokenizer = load_tokenizer(str(files / "decoder"))
    shape = json.dumps({"num_hidden_layers": 4})
    recipe = PretrainingRecipe([], [], "", model=model, model_overrides=shape, block_length=32, window=5)
    config = build_model(auto_class, config_class, tokenizer, recipe)[0].config
    assert config.sliding_window == 5 and config.layer_types == ["sliding_attention"] * 3 + ["full_attention"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_model_of_every_recipe_can_be_made(files, path):
    given = yaml.safe_load(path.read_text())
    fields = {name: given[name] for name in ("model", "window", "block_length") if name in given}
    recipe = PretrainingRecipe([], [], "", model_overrides=json.dumps(given.get("model_overrides", {})), **fields)
    if "mlm" in path.stem or "encoder" in path.stem:
        style, auto_class, config_class = "encoder", AutoModelForMaskedLM, TfmEncoderConfig
    else:
        style, auto_class, config_class = "decoder", AutoModelForCausalLM, TfmDecoderConfig
    model, is_new = build_model(auto_class, config_class, load_tokenizer(str(files / style)), recipe)
    assert is_new and model.config.sliding_window == given.get("window", model.config.sliding_window)


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_windows_are_trained_with_our_attention_on_a_cpu(files, tmp_path, monkeypatch, bf16):
    calls, plain = [], WindowedAttention.forward
    monkeypatch.setattr(WindowedAttention, "forward", staticmethod(lambda *args: calls.append(1) or plain(*args)))
    windows = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    changes = dict(model_overrides=json.dumps({**json.loads(OVERRIDES), **windows}), block_length=128, max_steps=2)
    assert pretrain_clm.main(arguments(files, tmp_path / "run", bf16=bf16, **changes)) == 0
    assert len(calls) >= 2  # at least once per step, in one layer


def test_bf16_is_used_where_the_hardware_has_it(monkeypatch):
    """A T4 can emulate it, slowly, and says that it supports it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_fast_bf16()


def test_a_hybrid_run_gives_a_causal_and_a_masked_lm(files, tmp_path):
    changes = {"masked_share": 0.5, "compile": "off"}
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **changes)) == 0
    results = json.loads((tmp_path / "run" / "run_record.json").read_text())["results"]
    assert {"bits_per_byte", "masked_loss"} <= results.keys()
    evaluations = json.loads((tmp_path / "run" / "run_record.json").read_text())["evaluations"]
    assert [entry["step"] for entry in evaluations if "eval_loss" in entry] == [4, 8]  # the curve's
    # The masks do not depend on the batch size of evaluation.
    recipe, args = parse_recipe(arguments(files, tmp_path), PretrainingRecipe, PretrainingArguments)
    tokenizer, masks = load_tokenizer(recipe.tokenizer), []
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    for args.per_device_eval_batch_size in (2, 3, 16):
        data = prepare_data(recipe, args, tokenizer, model, causal)
        batches = masked_evaluation(data, Masked(tokenizer, 0.15))
        masks.append(torch.cat([batch["labels"] for batch in batches]))
    assert len(masks[0]) % 3 and torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    causal_model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    masked, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, weight in causal_model.state_dict().items():
        assert torch.equal(weight, masked.state_dict()[name]), name
    # Half of the steps were not causal, so the model differs from one of the causal objective alone.
    assert pretrain_clm.main(arguments(files, tmp_path / "causal")) == 0
    assert any(not torch.equal(w, weights(tmp_path / "causal")[n]) for n, w in weights(tmp_path / "run").items())


def test_the_decision_to_compile_is_reported_and_kept(files, tmp_path, capsys):
    assert pretrain_clm.main(arguments(files, tmp_path / "run", compile="perhaps")) == 2
    assert "choose auto, on or off" in capsys.readouterr().err
    assert pretrain_clm.main(arguments(files, tmp_path / "run")) == 0
    assert "no (the run is too short to repay it)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / ".recipe.json").read_text())["compile"] == "off"


def test_a_run_ends_with_averaged_weights_and_resumes_exactly(files, tmp_path, monkeypatch):
    changes = {"ema_decay": 0.5, "z_loss": 1e-3}
    assert pretrain_clm.main(arguments(files, tmp_path / "plain", z_loss=1e-3)) == 0
    assert pretrain_clm.main(arguments(files, tmp_path / "whole", **changes)) == 0
    # The training is the same; the final model is the average of its last steps.
    for step in (4, 8):
        assert_equal_weights(tmp_path / "plain" / f"checkpoint-{step}", tmp_path / "whole" / f"checkpoint-{step}")
    differs = [n for n, w in weights(tmp_path / "plain").items() if not torch.equal(w, weights(tmp_path / "whole")[n])]
    assert differs
    state = torch.load(tmp_path / "whole" / "checkpoint-8" / "averages.pt")
    assert state["updates"] == 8
    for name, average in state["averages"].items():
        assert torch.equal(average, weights(tmp_path / "whole")[name]), name

    # Evaluations use the average too: the one after the last step is of the final model.
    assert pretrain_clm.main(arguments(files, tmp_path / "late", eval_strategy="no", **changes)) == 0
    late, whole, plain = (
        json.loads((tmp_path / n / "run_record.json").read_text()) for n in ("late", "whole", "plain")
    )
    assert late["results"] == whole["results"] and late["evaluations"][0]["eval_loss"] == whole["results"]["loss"]
    for at in (0, 1):
        assert whole["evaluations"][at]["eval_loss"] != plain["evaluations"][at]["eval_loss"]

    update = ProgressLine.on_step_end

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", kill)
        assert pretrain_clm.main(arguments(files, tmp_path / "resumed", **changes)) == 0
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    assert pretrain_clm.main(arguments(files, tmp_path / "resumed", **changes)) == 0
    assert_equal_weights(tmp_path / "whole", tmp_path / "resumed")


def test_z_loss_is_part_of_the_loss_and_accumulates(files, tmp_path):
    plain = {"optimizer": "adamw", "zero_init": "false"}
    quarters = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    runs = {"without": plain, "whole": {**plain, "z_loss": 0.1}, "quarters": {**plain, **quarters, "z_loss": 0.1}}
    for name, changes in runs.items():
        assert pretrain_clm.main(arguments(files, tmp_path / name, **changes)) == 0
    assert any(not torch.equal(w, weights(tmp_path / "whole")[n]) for n, w in weights(tmp_path / "without").items())
    assert_equal_weights(tmp_path / "whole", tmp_path / "quarters", atol=1e-4, rtol=1e-3)
