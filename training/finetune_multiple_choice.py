"""
Fine-tunes a model to choose the right one of several options.

    python training/finetune_multiple_choice.py training/recipes/finetune_multiple_choice.yaml

    python training/finetune_multiple_choice.py --model my-encoder --train_file train.csv --test_file test.csv \\
        --options_fields a b c d --answer_field right --lora --output_dir runs/choices

Takes any encoder of `AutoModelForMultipleChoice`. A record has a question, perhaps a context, its options (their number
may differ from record to record) and the right one, as a number from 0, a letter from A, or its text. The best
checkpoint is chosen on the validation records; the test records are measured once, beside chance and two simple rules.
The same command goes on where a run was stopped.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field

from hf_tfm.core import limits
from hf_tfm.core.errors import InputError
from hf_tfm.data.batches import RightPadding, in_order
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks import multiple_choice as mc
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments, FinetuningTrainer
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

from transformers import AutoModelForMultipleChoice, EvalPrediction, set_seed


@dataclass
class ChoiceRecipe(FinetuningRecipe):
    question_field: str = field(default="question", metadata={"help": "Where a record has its question."})
    context_field: str | None = field(default=None, metadata={"help": "Where it has the text that this is about."})
    options_fields: list[str] = field(
        default_factory=lambda: ["options"], metadata={"help": "Where it has its options: a list, or a field for each."}
    )
    answer_field: str = field(default="answer", metadata={"help": "Where it says which option is right."})
    baselines: bool = field(default=True, metadata={"help": "Measure simple rules at the end."})

    def read(self, records: Records) -> list[mc.Choice]:
        return mc.read_choices(records, self.question_field, self.options_fields, self.answer_field, self.context_field)


def choice_keys(choices: list[mc.Choice]) -> list[tuple[str, str]]:
    """What two records have in common that ask the same."""
    return [(choice.context.casefold(), choice.question.casefold()) for choice in choices]


def read_splits(recipe: ChoiceRecipe, seed: int) -> tuple[dict[str, Records], dict[str, list[mc.Choice]]]:
    """The records and choices of the splits that there are, validation always among them."""
    train = read_records(recipe.train_file)
    choices = recipe.read(train)
    if len({choice.answer for choice in choices}) < 2:
        raise InputError(
            f"{train.path}: the right option has the same number, {choices[0].answer}, in all records: mix the options"
        )
    train, validation = finetune.carve_validation(recipe, train, seed, choice_keys(choices))
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    return splits, {name: recipe.read(records) for name, records in splits.items()}


def describe_options(choices: list[mc.Choice]) -> str:
    """How many records have how many options."""
    counts = sorted(Counter(len(choice.options) for choice in choices).items())
    return ", ".join(f"{records:,} of {options} options" for options, records in counts)


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, ChoiceRecipe, FinetuningArguments, __doc__)
    finetune.check_finetuning(args, recipe)
    set_seed(args.seed)

    splits, choices = read_splits(recipe, args.seed)

    tokenizer = finetune.load_tokenizer(recipe)
    model, new = finetune.load_model(AutoModelForMultipleChoice, recipe, tokenizer)
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    finetune.choose_attention(args, model, max_length)
    finetune.separate_pairs(tokenizer)
    data = {name: mc.encode_choices(tokenizer, several, max_length) for name, several in choices.items()}
    for name in splits:
        mc.add_labels(data[name], choices[name])
    if recipe.lora:
        model = add_adapter(model, recipe, None, new)
    record = report.begin_record("finetune_multiple_choice", recipe, args, model, splits)
    record["max_length"] = max_length

    args.label_names = ["labels"]
    finetune.resolve_arguments(args, recipe, model, mc.METRICS)

    report.report_model(model, recipe, new)
    for name, several in choices.items():
        print_line(name, f"{len(several):,} records: {describe_options(several)}")
    report.report_steps(args, data["train"], max_length)
    shown = choices["train"][0]
    ids = data["train"][0]["input_ids"][shown.answer]
    report.report_example(tokenizer, {"input_ids": ids}, f"right, of {len(shown.options)} options")
    record["overlap_with_train"] = report.report_overlap({name: choice_keys(choices[name]) for name in splits})

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        limits.refuse_diverged(prediction.predictions)
        logits = in_order(prediction.predictions, data["validation"])
        return mc.figures(mc.decide(logits, choices["validation"]), choices["validation"])

    trainer = FinetuningTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=RightPadding(tokenizer),
        compute_loss_func=mc.choice_loss(args.label_smoothing_factor),
        compute_metrics=compute_metrics,
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
    results = mc.estimates(mc.decide(logits, choices[split]), choices[split])
    beside = mc.baselines(choices[split]) if recipe.baselines else {}
    report.report_results(record, split, results, beside)
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
