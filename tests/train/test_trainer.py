"""Trainer's private names in use stand in a table and have the signature used here; runs that end early are errors."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from tiny import build
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

import hf_tfm
from hf_tfm.core.errors import InputError
from hf_tfm.train.callbacks import StopWithoutGain
from hf_tfm.train.trainer import PRIVATE_NAMES, RunTrainer


PACKAGE = Path(hf_tfm.__file__).parent
# Parameters of the private methods in PRIVATE_NAMES, alike in transformers 5.19 to 5.24.
SIGNATURES = {
    "_save_checkpoint": ["self", "model", "trial"],
    "_get_output_dir": ["self", "trial"],
    "_save": ["self", "output_dir", "state_dict"],
    "_issue_warnings_after_load": ["self", "load_result"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_get_collator_with_removed_columns": ["self", "data_collator", "description"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_get_eval_sampler": ["self", "eval_dataset"],
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "_finish_current_push": ["self"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
}
# Private functions of torch in train/ and core/: torch.optim's own kernels, and the only questions about bf16 on CPUs.
TORCH = {
    "torch._foreach_lerp_": "momentum, averages",
    "torch._foreach_lerp": "Nesterov's momentum",
    "torch._foreach_copy_": "a batch of matrices",
    "torch._foreach_mul_": "weight decay",
    "torch._foreach_add_": "the update",
    "torch.cpu._is_amx_tile_supported": "bf16 in hardware",
    "torch.cpu._is_avx512_bf16_supported": "bf16 in hardware",
}


def private_names(path: Path) -> set[str]:
    """Return the private methods that a file defines, calls or passes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.keyword) and node.arg:
            names.add(node.arg)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_every_private_name_of_trainer_in_use_stands_in_the_table():
    attributes = {"_loss_shifts_labels", "_internal_call"}
    files = [path for folder in ("train", "tasks", "hub") for path in sorted((PACKAGE / folder).glob("*.py"))]
    names = set().union(*map(private_names, files))
    assert {name for name in names if hasattr(Trainer, name)} | attributes == set(PRIVATE_NAMES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_private_methods_of_trainer_have_the_signature_used(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == SIGNATURES[name]


def test_private_attributes_of_trainer_exist():
    assert set(SIGNATURES) | {"_loss_shifts_labels", "_internal_call"} == set(PRIVATE_NAMES)
    assert "self._loss_shifts_labels =" in inspect.getsource(Trainer)
    assert "_internal_call" in inspect.signature(Trainer.save_model).parameters


def test_private_functions_of_torch_exist_and_stand_in_the_table():
    files = [*(PACKAGE / "train").glob("*.py"), PACKAGE / "core" / "limits.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for name in TORCH:
        *modules, function = name.split(".")[1:]
        owner = torch
        for module in modules:
            owner = getattr(owner, module)
        assert callable(getattr(owner, function)) and f"{name}(" in text, name
    calls = {
        ast.unparse(node.func)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    assert {call for call in calls if call.startswith("torch.") and "._" in call} == set(TORCH)


@pytest.mark.parametrize("order, count", [([], 0), ([0, 1, 2], 3)])
def test_a_run_whose_data_end_early_is_an_error(order, count, tmp_path, monkeypatch):
    ids = torch.arange(4, 10)
    args = TrainingArguments(
        str(tmp_path), max_steps=5, per_device_train_batch_size=1, save_strategy="no", use_cpu=True
    )
    trainer = RunTrainer(build("TfmDecoderForCausalLM"), args, train_dataset=[{"input_ids": ids, "labels": ids}] * 9)
    drawn = iter(order)
    monkeypatch.setattr(trainer, "_get_train_sampler", lambda dataset=None: drawn)
    with pytest.raises(InputError, match=f"the training made {count} of 5 steps"):
        trainer.train_or_resume({})


def test_a_run_without_gain_ends_early(tmp_path):
    callback = StopWithoutGain(2)
    args = TrainingArguments(str(tmp_path), metric_for_best_model="f1", greater_is_better=True)
    state, stops = TrainerState(), []
    for value in (0.1, 0.3, 0.2, 0.3, 0.9):  # as good is not better
        state.log_history += [{"loss": 1.0}, {"eval_f1": value, "eval_loss": -value}]
        control = TrainerControl()
        callback.on_evaluate(args, state, control)
        stops.append(control.should_training_stop)
    assert stops == [False, False, False, True, False] and callback.has_stopped
    args.metric_for_best_model, args.greater_is_better = "loss", False
    callback.on_evaluate(args, state, control)
    assert not control.should_training_stop
