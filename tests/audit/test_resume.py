"""Resuming: the checkpoint is complete and of the same run as the trainer."""

import json
import shutil

import pytest
import torch
from audit_helpers import byte_tokenizer, tiny_llama
from run_logs import StopAt, tiny_run
from safetensors.torch import load_file, save_file

from hf_tfm import preflight


def stop(folder, step=10, **options):
    """Trains until a step, with a checkpoint there, and is killed two steps later."""
    trainer = tiny_run(folder, save_steps=step, **options)
    trainer.add_callback(StopAt(step + 2))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return folder / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The checkpoint of a run of 20 steps, killed behind step 10; an epoch has 16 steps."""
    return stop(tmp_path_factory.mktemp("stopped"))


@pytest.fixture
def checkpoint(stopped, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "checkpoint-10")


def check(trainer, checkpoint):
    """Returns the findings about resuming."""
    report = preflight(trainer, resume_from_checkpoint=checkpoint, show=None)
    assert not any("check_resume failed" in text for text in report.unseen), report.unseen
    return [one for one in report.findings if one.code in ("P704", "P711", "P712", "P713")]


def levels(findings):
    return {(one.code, str(one.level)) for one in findings}


def test_the_same_run_is_sound(stopped, tmp_path):
    trainer = tiny_run(tmp_path)
    assert check(trainer, stopped) == []
    assert trainer.optimizer is None and trainer.lr_scheduler is None
    trainer.train(resume_from_checkpoint=str(stopped))
    assert trainer.state.global_step == 20


def test_the_last_checkpoint_of_the_folder_is_taken(tmp_path):
    stop(tmp_path)
    assert check(tiny_run(tmp_path), True) == []


def test_half_the_batch_and_twice_the_accumulation_is_the_same_run(stopped, tmp_path):
    findings = check(tiny_run(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2), stopped)
    assert levels(findings) == {("P711", "note")}


def test_a_finished_run_has_nothing_left(stopped, tmp_path):
    assert levels(check(tiny_run(tmp_path, max_steps=10), stopped)) == {("P711", "note")}


@pytest.mark.parametrize(
    "options",
    [
        dict(per_device_train_batch_size=8),  # huggingface/transformers#43708
        dict(gradient_accumulation_steps=2),
        dict(seed=7),
        dict(data_seed=7),
        dict(max_steps=60),  # huggingface/transformers#27749
        dict(lr_scheduler_type="constant"),
        dict(optim="sgd"),
    ],
    ids=str,
)
def test_another_run_is_found(options, stopped, tmp_path):
    assert ("P711", "error") in levels(check(tiny_run(tmp_path, **options), stopped))


def test_other_data_are_found(stopped, tmp_path):
    """huggingface/accelerate#2016: batches that are skipped are not those that were seen."""
    trainer = tiny_run(tmp_path)
    trainer.train_dataset = trainer.train_dataset.select(range(50))
    assert ("P711", "error") in levels(check(trainer, stopped))


def test_settings_that_the_checkpoint_overrides_are_a_warning(stopped, tmp_path):
    assert levels(check(tiny_run(tmp_path, learning_rate=1e-3), stopped)) == {("P711", "warning")}
    assert levels(check(tiny_run(tmp_path, ignore_data_skip=True), stopped)) == {("P711", "warning")}


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors"])
def test_a_missing_part_is_found(name, checkpoint, tmp_path):
    """huggingface/transformers#33336: optimizer and schedule are made anew if one of the two files is missing."""
    (checkpoint / name).unlink()
    assert ("P712", "error") in levels(check(tiny_run(tmp_path), checkpoint))


def test_weights_that_are_not_finite_are_found(checkpoint, tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights = {name: weight.to(dtype) for name, weight in load_file(checkpoint / "model.safetensors").items()}
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        assert check(tiny_run(tmp_path), checkpoint) == []
        weights["model.norm.weight"][3] = float("nan")
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        assert levels(check(tiny_run(tmp_path), checkpoint)) == {("P713", "error")}
        weights["model.norm.weight"][3] = 1.0
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})


def test_a_file_that_was_cut_off_is_found(checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert ("P713", "error") in levels(check(tiny_run(tmp_path), checkpoint))


def test_names_of_a_compiled_model_are_found(checkpoint, tmp_path):
    """Names that begin with `_orig_mod.`: the Trainer loads with strict=False and trains on from the first weights."""
    weights = load_file(checkpoint / "model.safetensors")
    save_file({f"_orig_mod.{name}": weight for name, weight in weights.items()}, checkpoint / "model.safetensors")
    assert levels(check(tiny_run(tmp_path), checkpoint)) == {("P713", "error")}


def test_a_model_of_other_depth_is_found(stopped, tmp_path):
    trainer = tiny_run(tmp_path)
    trainer.model = tiny_llama(byte_tokenizer(), num_hidden_layers=3)
    assert {("P713", "error"), ("P711", "error")} == levels(check(trainer, stopped))


def test_a_schedule_of_another_run_is_found(checkpoint, tmp_path):
    path = checkpoint / "scheduler.pt"
    torch.save(torch.load(path) | {"last_epoch": 5000}, path)
    assert ("P711", "error") in levels(check(tiny_run(tmp_path), checkpoint))


def adapt(trainer, **options):
    """Puts LoRA around the trainer's model."""
    peft = pytest.importorskip("peft")
    settings = dict(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    trainer.model = trainer.model_wrapped = peft.get_peft_model(trainer.model, peft.LoraConfig(**settings | options))
    return trainer


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The checkpoint of a run with LoRA, killed behind step 10."""
    trainer = adapt(tiny_run(tmp_path_factory.mktemp("adapter")))
    trainer.add_callback(StopAt(12))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer.args.output_dir + "/checkpoint-10"


def test_the_same_adapter_is_sound(adapter, tmp_path):
    assert check(adapt(tiny_run(tmp_path)), adapter) == []


def test_other_adapters_are_found(adapter, stopped, tmp_path):
    assert levels(check(adapt(tiny_run(tmp_path), lora_alpha=16), adapter)) == {("P711", "error")}
    assert ("P713", "error") in levels(check(adapt(tiny_run(tmp_path), target_modules=["q_proj", "o_proj"]), adapter))
    assert ("P713", "error") in levels(check(tiny_run(tmp_path), adapter))
    # sentence-transformers#3402: a full checkpoint into a model with adapters loads nothing
    assert ("P713", "error") in levels(check(adapt(tiny_run(tmp_path)), stopped))


def test_an_adapter_that_was_not_trained_is_found(adapter, tmp_path):
    """huggingface/trl#3926: the adapter was frozen, so its second factors are zero as at the beginning."""
    checkpoint = shutil.copytree(adapter, tmp_path / "checkpoint-10")
    path = checkpoint / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: weight * 0 if "lora_B" in name else weight for name, weight in weights.items()}, path)
    assert levels(check(adapt(tiny_run(tmp_path)), checkpoint)) == {("P704", "error")}


def test_shards_of_deepspeed_are_not_compared(checkpoint, tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "model.safetensors"):
        (checkpoint / name).unlink()
    (checkpoint / "global_step10").mkdir()
    report = preflight(tiny_run(tmp_path), resume_from_checkpoint=checkpoint, show=None)
    assert not report.errors and any("DeepSpeed" in text for text in report.unseen)


def test_a_state_that_is_cut_off_is_found(checkpoint, tmp_path):
    path = checkpoint / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()))[:-20])
    assert levels(check(tiny_run(tmp_path), checkpoint)) == {("P712", "error")}
