"""
Fine-tuning to a folder with a model, its card and its figures: on any task, or with any Trainer.

`fine_tune` does all of it for a [`Task`], whose records have labels. `train_and_report` is for scripts with a Trainer
and figures of their own: conversations, preferences, rewards, embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import EvalPrediction, set_seed

from ..core.statistics import Estimate
from ..data.batches import in_order
from ..data.conversations import Message
from ..train import finetune, report
from ..train.adapters import add_adapter
from ..train.base_model import load_base_model, load_base_tokenizer
from ..train.finetune import FinetuningArguments
from ..train.finetuning_trainer import FinetuningTrainer
from ..train.recipe import FinetuningRecipe
from ..train.report import print_line
from .distillation import DistillationTrainer, Teacher, select_outputs
from .generation import Reply
from .task import Split, Task


@dataclass
class TaskRecipe(FinetuningRecipe):
    """What a recipe says about any task."""

    baselines: bool = field(default=True, metadata={"help": "Measure simple baselines at the end."})


def fine_tune(
    task: Task[Any], recipe: TaskRecipe, args: FinetuningArguments, job: str, teacher: Teacher | None = None
) -> int:
    """
    Fine-tune a model on a task: read, encode, train, measure, and write the folder of the finished model.

    The best checkpoint is chosen on the validation set. The test set (without one, the validation set) is measured once
    at the end, beside the baselines. A stopped run goes on from its newest checkpoint.

    Args:
        job: name of the script, for the run record.
        teacher: a model that the trained one learns from besides the labels.

    Returns: the exit code of the script.

    Raises:
        InputError: the arguments, the model or the records cannot be used.
    """
    finetune.check_finetuning(args, recipe)
    set_seed(args.seed)
    if teacher:
        teacher.open()
    splits = read_examples(task, recipe, args.seed, teacher)
    train, validation = splits["train"], splits["validation"]

    tokenizer = load_base_tokenizer(recipe)
    model, new_weights = load_base_model(task.model_class, recipe, tokenizer, **task.config_fields())
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    finetune.choose_attention(args, model, max_length)
    task.prepare(tokenizer, max_length)
    for split in splits.values():
        task.encode(split, model, tokenizer, max_length)
        task.add_labels(split)
    rows = teacher.teach(model, tokenizer, max_length, splits) if teacher else train.rows
    if recipe.lora:
        model = add_adapter(model, recipe, task.adapter_type, new_weights)

    sources = {name: split.records for name, split in splits.items()}
    if teacher and teacher.unlabelled:
        sources["unlabelled"] = teacher.unlabelled.records
    record = report.begin_record(job, recipe, args, model, sources)
    record["fields"] = task.recognised_fields(train.records) | record["fields"]
    for name, value in {"max_length": max_length, **task.record_fields()}.items():
        record[name] = value
    args.label_names = ["labels"]
    finetune.resolve_arguments(args, recipe, model, task.metrics)
    loss = task.loss(train, args.label_smoothing_factor)

    report.report_model(model, recipe, new_weights)
    if line := task.describe():
        print_line("task", line)
    for name, split in splits.items():
        print_line(name, task.describe_split(split))
        for note in task.notes(name, split):
            print_line("note", note)
    if teacher:
        teacher.report()
    report.report_steps(args, rows, max_length)
    print_line("example", task.describe_example(tokenizer, train))
    record["overlap_with_train"] = report.report_overlap({name: task.keys(split) for name, split in splits.items()})

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        outputs = in_order(prediction.predictions, validation.rows)
        task.calibrate(outputs, validation)
        return task.figures(task.decide(outputs, validation), validation)

    trainer_class = partial(DistillationTrainer, teacher=teacher) if teacher else FinetuningTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=validation.rows,
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer),
        compute_loss_func=loss,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda outputs, labels: select_outputs(task, outputs),
        record=record,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.finetuning_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    measured = finetune.measured_split(splits)
    names = ["validation", measured] if task.calibrates else [measured]
    outputs = {name: trainer.predict_in_order(splits[name].rows) for name in dict.fromkeys(names)}
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    if task.calibrates:
        task.calibrate(outputs["validation"], validation)
    split = splits[measured]
    results = task.estimates(task.decide(outputs[measured], split), split)
    baselines = task.baselines(train, split, args.seed) if recipe.baselines else {}
    if teacher:
        baselines = {"teacher": teacher.figures, **baselines}
    report.report_results(record, measured, results, baselines)
    if teacher:
        teacher.compare(record, model, tokenizer, results)
    for line in task.add_details(record, measured, outputs[measured], split, Path(str(args.output_dir))):
        print_line("sample", line)
    report.write_finished_model(trainer, model)
    return 0


def read_examples(
    task: Task[Any], recipe: TaskRecipe, seed: int, teacher: Teacher | None = None
) -> dict[str, Split[Any]]:
    """
    Read the splits that there are; the validation set is carved out of the training records if it has no file.

    Args:
        teacher: a model whose labels the records have; without one the training records show the labels.

    Raises:
        InputError: a file cannot be read, or its records do not fit the task.
    """
    reading = task.reading(recipe.reading_options())
    records = finetune.read_split(recipe.train_file, reading)
    if teacher:
        teacher.adopt_labels(records)
    else:
        task.learn_labels(records)
    dataset = task.read(records)
    train_records, validation_records = finetune.carve_validation(
        recipe, reading, dataset.records, seed, task.carving_keys(dataset), task.strata(dataset)
    )
    splits = {"train": task.read(train_records), "validation": task.read(validation_records)}
    if recipe.test_file:
        splits["test"] = task.read(finetune.read_split(recipe.test_file, reading, "test"))
    return splits


@dataclass
class Measurement:
    """
    A model's figures on the measured split.

    Attributes:
        replies: replies to the first prompts, to print as samples.
        scores: numbers that a later measurement is compared with.
    """

    figures: dict[str, Estimate]
    replies: Sequence[Reply] = ()
    scores: Any = None


# Takes the model, and the measurement before the training if it is over.
Measure = Callable[[Any, Measurement | None], Measurement]


def train_and_report(
    trainer: Any,
    recipe: FinetuningRecipe,
    split: str,
    measure: Measure,
    prompts: Sequence[Sequence[Message]] | None = None,
    measure_before: bool = True,
    baselines: Mapping[str, Mapping[str, Estimate]] | None = None,
) -> int:
    """
    Measure the model, train or resume, measure it again, and write the folder with card and record.

    Args:
        trainer: a Trainer with this package's `RunMixin`.
        split: name of the measured split.
        prompts: the prompts of the replies in a `Measurement`.
        measure_before: measure the untrained model, to report its figures beside those of the trained one.
        baselines: figures of other models, by their names.

    Returns: the exit code of the script.
    """
    record = trainer.record
    before = measure(trainer.model, None) if measure_before else None
    if before:
        figures = ", ".join(f"{name} {figure}" for name, figure in before.figures.items())
        report.print_line("before", f"{figures} on {split}")
    trainer.train_or_resume(finetune.finetuning_identity(recipe, trainer.args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    after = measure(model, before)
    before_figures = {"before": before.figures} if before else {}
    report.report_results(record, split, after.figures, {**(baselines or {}), **before_figures})
    if prompts is not None:
        replies = {"before": before.replies if before else (), "after": after.replies}
        record["samples"] = format_dialogues(prompts, replies)
        record["chat"] = prompts[0][-1]["content"] if prompts else None
        print("\n\n".join(["", *record["samples"]]))
    report.write_finished_model(trainer, model)
    return 0


def format_dialogues(prompts: Sequence[Sequence[Message]], replies: Mapping[str, Sequence[Reply]]) -> list[str]:
    """Return the first three prompts as text, each with the replies of every model under the model's name."""
    dialogues = []
    for number, messages in enumerate(prompts[:3]):
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        for name, of_model in replies.items():
            if of_model:
                text, finished = of_model[number]
                lines.append(f"{name} → {text}{'' if finished else ' …'}")
        dialogues.append("\n".join(lines))
    return dialogues
