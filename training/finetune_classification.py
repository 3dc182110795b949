"""
Fine-tunes a model to label texts: one label, several, or a number, for single texts or pairs.

    python training/finetune_classification.py training/recipes/finetune_banking77.yaml

    python training/finetune_classification.py --model my-encoder --train_file train.jsonl --test_file test.jsonl \\
        --text_field sentence1 --text_pair_field sentence2 --lora --output_dir runs/pairs

Takes any model of the Auto classes, encoder or decoder. What the task is comes from the labels; what is chosen (the
best checkpoint) is chosen on the validation records; the test records are measured once, beside two baselines. The
same command goes on where a run was stopped.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_tfm.core.errors import InputError
from hf_tfm.data.batches import PAD_TO_MULTIPLE_OF
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks.classification import Task, baselines, confusion_matrix, describe_counts, plot_confusion, read_task
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments, FinetuningTrainer
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

import numpy as np
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction, set_seed


CONFUSION_FILE = "confusion_matrix.png"


@dataclass
class ClassificationRecipe(FinetuningRecipe):
    text_field: str = field(default="text", metadata={"help": "Where a record has its text."})
    text_pair_field: str | None = field(default=None, metadata={"help": "Where it has the second text, for pairs."})
    label_field: str = field(default="label", metadata={"help": "Where it has its label, labels or number."})
    problem_type: str | None = field(
        default=None,
        metadata={"help": "single_label_classification, multi_label_classification or regression; seen in the labels."},
    )
    class_weights: bool = field(default=False, metadata={"help": "Let rare labels count as much as frequent ones."})
    pooling: str | None = field(
        default=None, metadata={"help": "cls or mean, for encoders with a choice, in place of a pooler."}
    )
    baselines: bool = field(default=True, metadata={"help": "Measure majority and TF-IDF baselines at the end."})


def read_texts(records: Records, recipe: ClassificationRecipe) -> list[list[str]]:
    """One column of texts, or two."""
    columns = [records.texts(recipe.text_field, "text_field")]
    if recipe.text_pair_field:
        columns.append(records.texts(recipe.text_pair_field, "text_pair_field"))
    return columns


def text_keys(columns: list[list[str]]) -> list[tuple[str, ...]]:
    """What two records have in common that say the same."""
    return [tuple(" ".join(text.casefold().split()) for text in texts) for texts in zip(*columns)]


def read_splits(recipe: ClassificationRecipe, seed: int) -> tuple[dict[str, Records], Task]:
    """The splits that there are, validation always among them, and the task that train poses."""
    train = read_records(recipe.train_file)
    keys = text_keys(read_texts(train, recipe))
    task = read_task(train, recipe.label_field, recipe.problem_type)
    strata = task.encode(train) if task.problem_type == "single_label_classification" else None
    train, validation = finetune.carve_validation(recipe, train, seed, keys, strata)
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    return splits, task


def measure(
    task: Task,
    recipe: ClassificationRecipe,
    texts: dict[str, Any],
    labels: dict[str, Any],
    logits: np.ndarray,
    split: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the model and of the baselines on one split."""
    results = task.estimates(task.decide(logits), labels[split])
    if not recipe.baselines:
        return results, {}
    joined = {name: ["\n".join(several) for several in zip(*columns)] for name, columns in texts.items()}
    guesses = baselines(task, joined["train"], labels["train"], joined[split])
    return results, {name: task.estimates(guess, labels[split]) for name, guess in guesses.items()}


def only_logits(outputs: Any, labels: Any) -> Any:
    """Logits without what some models put behind them, as BART its encoder's states."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, ClassificationRecipe, FinetuningArguments, __doc__)
    finetune.check_finetuning(args, recipe)
    set_seed(args.seed)

    splits, task = read_splits(recipe, args.seed)
    texts = {name: read_texts(records, recipe) for name, records in splits.items()}
    labels = {name: task.encode(records) for name, records in splits.items()}

    tokenizer = finetune.load_tokenizer(recipe)
    tokenizer.padding_side = "right"  # some models, such as GPT-2, count positions from the left whatever stands there
    config_fields = task.config_fields()
    if recipe.pooling:
        config_fields["classifier_pooling"] = recipe.pooling
    model, new = finetune.load_model(AutoModelForSequenceClassification, recipe, tokenizer, **config_fields)
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    finetune.choose_attention(args, model, max_length)
    if recipe.text_pair_field:
        finetune.separate_pairs(tokenizer)
    data = {name: finetune.encode_texts(tokenizer, max_length, *texts[name], labels=labels[name]) for name in splits}
    if recipe.lora:
        model = add_adapter(model, recipe, "SEQ_CLS", new)
    record = report.begin_record("finetune_classification", recipe, args, model, splits)
    record["max_length"] = max_length
    if recipe.pooling:
        record["pooling"] = recipe.pooling

    finetune.resolve_arguments(args, recipe, model, task.metrics)
    weights = task.class_weights(labels["train"]) if recipe.class_weights else None
    if args.label_smoothing_factor and task.problem_type != "single_label_classification":
        raise InputError(f"--label_smoothing_factor is for one label a record; this task is a {task.problem_type}")

    report.report_model(model, recipe, new)
    print_line(
        "task", f"{task.problem_type}: {len(task.names)} label{'s' * (len(task.names) > 1)} in {recipe.label_field!r}"
    )
    for name, encoded in labels.items():
        print_line(name, f"{len(encoded):,} records: {describe_counts(task.counts(encoded))}")
    report.report_steps(args, data["train"], max_length)
    report.report_example(tokenizer, data["train"][0], task.name_of(labels["train"][0]))
    record["overlap_with_train"] = report.report_overlap({name: text_keys(texts[name]) for name in splits})

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return task.figures(task.decide(prediction.predictions), prediction.label_ids)

    trainer = FinetuningTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO_MULTIPLE_OF),
        compute_loss_func=task.loss(weights, args.label_smoothing_factor),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=only_logits,
        record=record,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    split = "test" if "test" in splits else "validation"
    logits = trainer.predict_in_order(data[split])
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    results, beside = measure(task, recipe, texts, labels, logits, split)
    report.report_results(record, split, results, beside)
    if task.problem_type == "single_label_classification":
        matrix = confusion_matrix(task.decide(logits), labels[split], len(task.names))
        plot_confusion(matrix, task.names, Path(args.output_dir) / CONFUSION_FILE)
        record["confusion_matrix"] = {"labels": task.names, "actual_by_predicted": matrix.tolist()}
        record["pictures"] = {CONFUSION_FILE: f"Confusion matrix on the {split} records"}
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
