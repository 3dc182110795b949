"""Two processes (gloo, on the CPU) train like one: equal losses and weights, with DDP and with FSDP2."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import distill
import finetune_checks
import pretrain_clm
import pretrain_mlm
import pytest
import torch
import yaml
from pretraining_runs import OVERRIDES, WHOLE_FOLDER, arguments
from safetensors.torch import load_file
from tiny import build, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.data.tokenizer import train_tokenizer


ROOT = Path(__file__).parents[2]
# AdamW from normal weights: Muon turns rounding errors of a zero gradient into full steps.
OPTIMIZERS = {
    "adamw": {"optimizer": "adamw", "zero_init": "false"},
    "muon": {"optimizer": "muon"},
    "normuon": {"optimizer": "normuon"},
}
SCRIPTS = {"clm": (pretrain_clm, "decoder"), "mlm": (pretrain_mlm, "encoder")}
CASES = [(script, optimizer) for script in SCRIPTS for optimizer in OPTIMIZERS]

pytestmark = pytest.mark.slow


def command(files, out, script, optimizer, processes):  # noqa: F811
    masking = {"causal_first": 0.125, "adaptive_masking": 3} if script == "mlm" else {}
    return arguments(
        files, out, SCRIPTS[script][1], **OPTIMIZERS[optimizer], per_device_train_batch_size=4 // processes,
        logging_steps=1, compile="off", **masking,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one(files, tmp_path_factory):  # noqa: F811
    """Run every case in one process."""
    root = tmp_path_factory.mktemp("one")
    for script, optimizer in CASES:
        assert SCRIPTS[script][0].main(command(files, root / f"{script}-{optimizer}", script, optimizer, 1)) == 0
    return root


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request, files, one, tmp_path_factory):  # noqa: F811
    """Run every case in two processes, and runs resumed from step 4 of others; return also their output."""
    root = tmp_path_factory.mktemp(request.param)
    jobs = [
        (f"pretrain_{script}", command(files, root / f"{script}-{optimizer}", script, optimizer, 2))
        for script, optimizer in CASES
    ]
    launch(request.param, jobs, root)
    if request.param == "ddp":
        begin_at_step_4(one / "clm-adamw", root / "resumed")
    else:
        begin_at_step_4(root / "clm-muon", root / "resumed")
    optimizer = "adamw" if request.param == "ddp" else "muon"
    printed = launch(request.param, [("pretrain_clm", command(files, root / "resumed", "clm", optimizer, 2))], root)
    return request.param, root, printed


def launch(config: str, jobs: list, root: Path) -> str:
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"training/launch/{config}.yaml",
         "--num_processes", "2", "--main_process_port", "0", "tests/helpers/run_scripts.py", root / "jobs.json"],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "training")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def begin_at_step_4(finished: Path, run: Path) -> None:
    """Copy a run as it was after its first checkpoint."""
    run.mkdir()
    shutil.copyfile(finished / ".recipe.json", run / ".recipe.json")
    shutil.copytree(finished / "checkpoint-4", run / "checkpoint-4")


def curve(run: Path) -> list[float]:
    record = json.loads((run / "run_record.json").read_text())
    return [entry["loss"] for entry in record["curve"]] + [record["results"]["loss"]]


def distance(one: Path, other: Path) -> float:
    """Return the distance of two models' weights as a share of the first one's norm."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    apart = sum((first[name] - second[name]).square().sum() for name in first)
    return float((apart / sum(weight.square().sum() for weight in first.values())).sqrt())


@pytest.mark.parametrize("script, optimizer", CASES)
def test_two_processes_train_as_one(one, two, script, optimizer):
    _, root, _ = two
    name, rough = f"{script}-{optimizer}", 1 if optimizer == "adamw" else 20
    assert curve(root / name) == pytest.approx(curve(one / name), rel=2e-5 * rough)
    assert distance(one / name, root / name) < 5e-4 * rough


def test_checkpoints_and_model_are_whole_folders(two):
    kind, root, _ = two
    run = root / "clm-muon"
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-4", "checkpoint-8"]
    for folder in (run, run / "checkpoint-4"):
        assert not set(WHOLE_FOLDER) - {path.name for path in folder.iterdir()}
        assert not list(folder.glob("_fsdp*"))
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_tfm_decoder.TfmDecoderForCausalLM"
        assert config["architectures"] == ["TfmDecoderForCausalLM"]
        _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (run / "checkpoint-4/pytorch_model_fsdp.bin").exists() == (kind == "fsdp2"), "FSDP2 was not used"


def test_a_run_resumes_in_two_processes(one, two):
    """From a checkpoint of one process (DDP) or of two (FSDP2)."""
    kind, root, printed = two
    name, rough = ("clm-adamw", 1) if kind == "ddp" else ("clm-muon", 20)
    assert "resuming from" in printed
    assert curve(root / "resumed") == pytest.approx(curve(one / name), rel=2e-5 * rough)
    assert distance(one / name, root / "resumed") < 5e-4 * rough


def test_two_processes_print_each_line_once(two):
    _, _, printed = two
    for line in ("model      TfmDecoder", "resuming from", "example    ", "\nresult     "):
        assert printed.count(line) == 1, printed


@pytest.mark.parametrize("two", ["ddp"], indirect=True)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_of_two_processes_resumes_in_one(files, one, two, tmp_path, optimizer):  # noqa: F811
    _, root, _ = two
    begin_at_step_4(root / f"clm-{optimizer}", tmp_path / "run")
    assert pretrain_clm.main(command(files, tmp_path / "run", "clm", optimizer, 1)) == 0
    rough = 1 if optimizer == "adamw" else 20
    assert curve(tmp_path / "run") == pytest.approx(curve(one / f"clm-{optimizer}"), rel=2e-5 * rough)
    assert distance(one / f"clm-{optimizer}", tmp_path / "run") < 5e-4 * rough


def tuning(root: Path, model: Path, records: list[dict], **changes) -> list[str]:
    """Return arguments of a short fine-tuning run over records in order: two processes share each batch of 8."""
    out = changes.pop("out")
    train, test = (finetune_checks.write(root / f"{out}-{name}.jsonl", records) for name in ("train", "test"))
    fields = {
        "validation_file": train, "test_file": test, "baselines": None, "per_device_train_batch_size": 4,
        "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "optim": "sgd", "train_sampling_strategy": "sequential", **changes,
    }  # fmt: skip
    return finetune_checks.arguments(model, train, root / out, **fields)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    build("TfmEncoderForMaskedLM", initializer_range=0.05).save_pretrained(root / "encoder")
    build_tokenizer().save_pretrained(root / "encoder")
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=64)).save_pretrained(root / "llama")
    build_tokenizer().save_pretrained(root / "llama")
    ids = dict(initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    build("TfmDecoderForCausalLM", **ids).save_pretrained(root / "decoder")
    train_tokenizer(kind="bytes").save_pretrained(root / "decoder")
    return root


LABELLED = [{"text": f"a {word} of {n}", "label": word} for n in range(8) for word in ("cat", "ship", "moon")]
PREFERRED = [{"prompt": f"say {n}", "chosen": f"{n}, please", "rejected": "duh"} for n in range(19)]
TRANSLATED = [{"translation": {"en": f"a cat of {n}", "fr": f"{n} cats"}} for n in range(11)]


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def tuned(request, bases, tmp_path_factory):
    """Fine-tune models of every kind that supports FSDP2 or DDP."""
    root = tmp_path_factory.mktemp(f"tuned-{request.param}")
    encoder, decoder = bases / "encoder", bases / "decoder"
    random_order = {"train_sampling_strategy": None, "optim": None}
    jobs = [
        ("finetune_classification", tuning(root, encoder, LABELLED, out="plain")),
        ("finetune_classification", tuning(root, encoder, LABELLED, out="adapter", lora="true")),
        ("finetune_classification", tuning(root, bases / "llama", LABELLED, out="foreign")),
        ("finetune_preference", tuning(root, decoder, PREFERRED, out="preferred", **random_order)),
    ]
    if request.param == "ddp":
        fields = dict(vocab_size=300, max_length=24, num_train_epochs=1, beams=1, model_overrides=OVERRIDES)
        jobs.append(
            ("finetune_translation", tuning(root, "nano", TRANSLATED, out="translated", **random_order, **fields))
        )
    launch(request.param, jobs, root)
    return request.param, root


def test_fine_tuned_folders_hold_the_best_checkpoint_whole(tuned):
    kind, root = tuned
    for out in ("plain", "adapter", "foreign", "preferred", *(["translated"] if kind == "ddp" else [])):
        record = finetune_checks.record_of(root / out)
        name = "adapter_model.safetensors" if out == "adapter" else "model.safetensors"
        best = load_file(root / out / f"checkpoint-{record['best']['step']}" / name)
        kept = load_file(root / out / name)
        assert kept.keys() == best.keys()
        for weight, tensor in kept.items():
            assert torch.equal(tensor, best[weight]), (out, weight)
        assert record["model"]["class"].startswith("Llama" if out == "foreign" else "Tfm") and record["results"]
        assert (root / out / "checkpoint-4" / "pytorch_model_fsdp.bin").exists() == (kind == "fsdp2")


def test_fine_tuning_in_two_processes_equals_one(tuned, bases, tmp_path):
    kind, root = tuned
    argv = tuning(tmp_path, bases / "encoder", LABELLED, out="plain", per_device_train_batch_size=8)
    assert importlib.import_module("finetune_classification").main(argv) == 0
    one, two = (finetune_checks.record_of(path / "plain") for path in (tmp_path, root))
    assert [entry["loss"] for entry in two["curve"]] == pytest.approx(
        [entry["loss"] for entry in one["curve"]], rel=1e-4
    )
    assert two["results"] == one["results"]
    assert distance(tmp_path / "plain", root / "plain") < 1e-5


def test_one_and_several_machines_shard_alike():
    one, several = (yaml.safe_load((ROOT / f"training/launch/{n}.yaml").read_text()) for n in ("fsdp2", "multi_node"))
    assert one["fsdp_config"] == several["fsdp_config"]


@pytest.mark.parametrize("script, model", [("finetune_embeddings", "encoder"), ("finetune_translation", "nano")])
def test_models_that_cannot_be_sharded_are_refused(script, model, bases, tmp_path):
    fields = {"train_sampling_strategy": None, "optim": None}
    if script == "finetune_translation":
        fields |= dict(vocab_size=300, max_length=24, model_overrides=OVERRIDES)
    else:
        fields |= dict(text_field="translation.en", text_pair_field="translation.fr")
    argv = tuning(tmp_path, model if model == "nano" else bases / model, TRANSLATED, out="out", **fields)
    with pytest.raises(AssertionError, match="training/launch/ddp.yaml"):
        launch("fsdp2", [(script, argv)], tmp_path)


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_distillation_in_two_processes_equals_one(files, tmp_path, config):  # noqa: F811
    """They share the teacher's reading of the text, too."""
    tokenizer = AutoTokenizer.from_pretrained(files / "decoder")
    build("TfmDecoderForCausalLM", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    changes = {"teacher": tmp_path / "teacher", "top_k": 8, "logging_steps": 1, "compile": "off", **OPTIMIZERS["adamw"]}
    one, two = (
        arguments(
            files, tmp_path / name, **changes, per_device_train_batch_size=rows, cache_dir=tmp_path / f"cache-{name}"
        )
        for name, rows in (("one", 4), ("two", 2))
    )
    assert distill.main(one) == 0
    launch(config, [("distill", two)], tmp_path)
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=2e-5)
    assert distance(tmp_path / "one", tmp_path / "two") < 5e-4
    targets = [next((tmp_path / name).glob("tokens/*/targets*/ids.bin")) for name in ("cache-one", "cache-two")]
    assert targets[0].read_bytes() == targets[1].read_bytes()
