"""Reports of a fine-tuning run: printed lines before and after the training, and entries of the run record."""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..artifacts.head_table import is_adapter, opening_call
from ..artifacts.record import RECORD_FILE, RunRecord, base_model_name
from ..artifacts.write import write_model_folder
from ..core.errors import InputError
from ..core.inference import unwrap_adapter
from ..core.statistics import Estimate
from ..data.batches import length_of
from ..data.records import Records, data_facts
from .recipe import FinetuningRecipe


def begin_record(
    job: str, recipe: FinetuningRecipe, args: TrainingArguments, model: PreTrainedModel, splits: Mapping[str, Records]
) -> RunRecord:
    """Return the run record with what is known before the training: base model, data, adapter."""
    record = RunRecord(job, args.seed)
    record["loss_name"] = "loss"
    record["license"] = recipe.license
    record["base_model"] = recipe.base_model or base_model_name(recipe.model)
    # Predictions read the same fields.
    record["fields"] = {
        name: value
        for name, value in dataclasses.asdict(recipe).items()
        if name.endswith(("_field", "_fields")) and value
    }
    record["data"] = [data_facts(name, records) for name, records in splits.items()]
    if recipe.validation_file is None:
        record["data"][1]["name"] += " (carved out)"
    if recipe.lora:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        record["adapter"] = {
            "type": recipe.lora_variant,
            "rank": recipe.lora_rank,
            "alpha": recipe.lora_alpha,
            "parameters": trained,
            "share": trained / sum(p.numel() for p in model.parameters()),
        }
    return record


def print_line(name: str, text: Any) -> None:
    """Print a line of the report, from the first process only."""
    if PartialState().is_main_process:
        tqdm.write(f"{name:<10} {text}")  # above the bar of the training, if there is one
        sys.stdout.flush()


def report_reading(read: Any) -> None:
    """Print what was read of each file, of an object with `reports`: its form, its rows, fields used and not used."""
    for file in read.reports:
        first, *others = file.lines()
        print_line("read", first)
        for line in others:
            print_line("", line)


def report_model(model: PreTrainedModel, recipe: FinetuningRecipe, new_weights: Sequence[str]) -> None:
    """Print the model's class and size, how many parameters are trained, and which modules are new."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    adapter = f", {recipe.lora_variant} of rank {recipe.lora_rank}" if recipe.lora else ""
    base = unwrap_adapter(model)
    print_line(
        "model", f"{type(base).__name__}, {total:,} parameters, {trained:,} trained ({trained / total:.2%}{adapter})"
    )
    if new_weights:
        print_line("new", ", ".join(sorted({name.rpartition(".")[0] for name in new_weights})))


def count_steps(args: TrainingArguments, records: int) -> tuple[int, int]:
    """
    Return the number of steps of the run and of an epoch.

    Raises:
        InputError: there are fewer records than a batch, and such a batch is dropped, or the warm-up is longer than the
            run.
    """
    batches = records / (args.train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    if not batches:
        raise InputError(
            f"--dataloader_drop_last leaves no batch of {args.train_batch_size * args.world_size:,}, there are "
            f"{records:,} records: give a smaller --per_device_train_batch_size"
        )
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs)
    refuse_long_warmup(args, total)
    return total, per_epoch


def refuse_long_warmup(args: TrainingArguments, total: int) -> None:
    """Raise `InputError` if the learning rate would not reach its highest value in `total` steps."""
    if args.warmup_steps > total:
        raise InputError(
            f"--warmup_steps {args.warmup_steps:g}: the run has {total:,}; give fewer, or a share of the run below 1"
        )


def report_steps(
    args: TrainingArguments,
    records: list[dict[str, Any]],
    max_length: int,
    packed: list[dict[str, Any]] | None = None,
) -> None:
    """
    Print the number of steps, and the lengths of the records in tokens.

    Args:
        packed: rows with several records each, if these are trained.
    """
    total, per_epoch = count_steps(args, len(records if packed is None else packed))
    size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    unit = "records" if packed is None else "packed rows"
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    print_line(
        "steps", f"{total:,} of {size} {unit}, {per_epoch:,} an epoch, rate {args.learning_rate:.3g}, {precision}"
    )
    lengths = [length_of(record) for record in records]
    full = sum(length >= max_length for length in lengths)
    note = f", {full:,} of them cut or just fitting" if full else ""
    print_line("lengths", f"median {statistics.median(lengths):g} tokens, longest {max(lengths)} of {max_length}{note}")


def input_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], limit: int = 64) -> str:
    """Return the first tokens of a model's input as text, special tokens included."""
    return f"{tokenizer.decode(ids[:limit])}{' …' if len(ids) > limit else ''}"


def report_example(tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any], label: str) -> None:
    """Print a record as the model gets it, and its label."""
    print_line("example", f"{input_text(tokenizer, record['input_ids'])} → {label}")


def report_overlap(keys: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Print, and return for the run record, how many records of other splits have a text that train has too."""
    train_keys = set(keys["train"])
    overlap = {name: sum(key in train_keys for key in split) for name, split in keys.items() if name != "train"}
    for name, count in overlap.items():
        if count:
            print_line("note", f"{count:,} of {len(keys[name]):,} {name} records have a text that train has too")
    return overlap


def measure_step(trainer: Trainer, batch: Mapping[str, Any]) -> float:
    """Return the seconds of forward and backward of a step, measured on a batch; weights and random state stay."""
    model, random_state = trainer.model, torch.get_rng_state()
    inputs = send_to_device(dict(batch), trainer.args.device)
    model.train()
    for _ in range(2):  # the first step allocates memory
        started = time.time()
        with trainer.accelerator.autocast():
            trainer.compute_loss(model, dict(inputs)).backward()
        model.zero_grad()
    torch.set_rng_state(random_state)
    return (time.time() - started) * trainer.args.gradient_accumulation_steps


def report_time_estimate(trainer: Trainer) -> None:
    """Report how long the training will take, measured on the trainer's `median_batch()`."""
    if trainer.is_fsdp_enabled:  # before it is sharded, the model may fit on no device
        return
    seconds = measure_step(trainer, trainer.median_batch())
    minutes = count_steps(trainer.args, len(trainer.train_dataset))[0] * seconds / 60
    print_line("time", f"about {minutes:.1f} minutes at {seconds:.2f} s a step")


def report_stopped(trainer: Trainer) -> int:
    """Print that a signal stopped the run, and return the exit code."""
    print_line(
        "stopped", f"at step {trainer.state.global_step} of {trainer.state.max_steps}; the same command goes on there"
    )
    return 0


def report_results(
    record: RunRecord, split: str, results: Mapping[str, Estimate], baselines: Mapping[str, Mapping[str, Estimate]]
) -> None:
    """Print the figures and the baselines' as a table, with 95 % intervals, and put them into the record."""
    record["measured_on"], record["results"] = split, _as_dicts(results)
    record["baselines"] = {name: _as_dicts(figures) for name, figures in baselines.items()}
    columns = {"this model": results, **baselines}
    n = next(iter(results.values())).n
    longest = max(12, *map(len, results))
    widths = {
        name: max(len(name), *(len(str(figure)) for figure in figures.values())) for name, figures in columns.items()
    }
    lines = [f"result on {split} ({n:,} records, 95 % intervals)"]
    lines.append("  ".join([" " * longest, *(f"{name:<{width}}" for name, width in widths.items())]).rstrip())
    for metric in results:
        cells = (f"{str(figures.get(metric, '')):<{widths[name]}}" for name, figures in columns.items())
        lines.append("  ".join([f"{metric:<{longest}}", *cells]).rstrip())
    PartialState().print("\n".join(lines), flush=True)


def write_finished_model(trainer: Trainer, model: PreTrainedModel) -> None:
    """Write the folder of the finished model, with card and record, and print how to load it."""
    folder, record = Path(trainer.args.output_dir), trainer.record
    record.add_model(model)
    record.add_training(trainer.state)
    if trainer.args.load_best_model_at_end:
        record["best"] = {
            "step": trainer.state.best_global_step,
            trainer.args.metric_for_best_model: trainer.state.best_metric,
        }
    write_model_folder(folder, model, trainer.processing_class, record)
    print_line("model", f"{folder} (README.md is its card, {RECORD_FILE} has every figure)")
    adapter = is_adapter(record.fields)
    print_line("load it", "on its base model, as the card shows" if adapter else opening_call(record.fields, folder))
    if trainer.args.push_to_hub and (commit := trainer.push_to_hub()):
        print_line("pushed", commit.commit_url)


def _as_dicts(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Figures in the form of the run record."""
    return {name: estimate.as_dict() for name, estimate in estimates.items()}
