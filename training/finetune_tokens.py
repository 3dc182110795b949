"""
Fine-tunes a model to tag words: named entities, parts of speech, anything with one tag a word.

    python training/finetune_tokens.py training/recipes/finetune_wnut17.yaml

    python training/finetune_tokens.py --model my-encoder --train_file train.jsonl --test_file test.jsonl \\
        --words_field tokens --tags_field upos --lora --output_dir runs/tags

Takes any model of the Auto classes, encoder or decoder, with a fast tokenizer. Tags such as B-person and I-person mark
entities, which are counted whole; all others are counted word by word. The best checkpoint is chosen on the validation
records; the test records are measured once, beside a dictionary of the training words. The same command goes on where
a run was stopped.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field

from hf_tfm.artifacts.tokenizer_files import trim_offsets
from hf_tfm.core import limits
from hf_tfm.data.batches import RightPadding, in_order
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks import tagging
from hf_tfm.tasks.classification import describe_counts
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments, FinetuningTrainer
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

import torch
from transformers import AutoModelForTokenClassification, EvalPrediction, set_seed


@dataclass
class TaggingRecipe(FinetuningRecipe):
    words_field: str = field(
        default="tokens", metadata={"help": "Where a record has its words: a list, or a text with blanks between them."}
    )
    tags_field: str = field(default="ner_tags", metadata={"help": "Where it has as many tags."})
    baselines: bool = field(default=True, metadata={"help": "Measure a dictionary of the training words at the end."})


def read_splits(recipe: TaggingRecipe, seed: int) -> tuple[dict[str, Records], tagging.TagTask]:
    """The splits that there are, validation always among them, and the task that train poses."""
    train = read_records(recipe.train_file)
    sentences = tagging.read_words(train, recipe.words_field)
    task = tagging.read_task(train, sentences, recipe.tags_field)
    train, validation = finetune.carve_validation(recipe, train, seed, sentence_keys(sentences))
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    return splits, task


def sentence_keys(sentences: list[list[str]]) -> list[str]:
    """What two records have in common that say the same."""
    return [" ".join(words).casefold() for words in sentences]


def describe_tags(task: tagging.TagTask, tags: list[list[int]]) -> str:
    """How many words there are, and how many entities of each type or words of each tag."""
    kinds = dict(zip(task.kinds, task.count(tags, tags)[..., 0].sum(0).tolist()))
    unseen = [name for name, count in kinds.items() if not count]
    without = f"; none of {', '.join(unseen)}" if unseen else ""
    return f"{sum(map(len, tags)):,} words: {describe_counts({k: n for k, n in kinds.items() if n})}{without}"


def best_tags(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Ids instead of logits, so that an evaluation keeps one number a column."""
    limits.refuse_diverged(logits)
    return logits.argmax(-1)


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, TaggingRecipe, FinetuningArguments, __doc__)
    finetune.check_finetuning(args, recipe)
    set_seed(args.seed)

    splits, task = read_splits(recipe, args.seed)
    words = {name: tagging.read_words(records, recipe.words_field) for name, records in splits.items()}
    tags = {name: task.encode(records, words[name]) for name, records in splits.items()}

    tokenizer = finetune.load_tokenizer(recipe)
    trim_offsets(tokenizer)
    model, new = finetune.load_model(AutoModelForTokenClassification, recipe, tokenizer, **task.config_fields())
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    finetune.choose_attention(args, model, max_length)
    data, windows = {}, {}
    for name in splits:
        data[name], windows[name] = tagging.encode_words(tokenizer, max_length, words[name])
        tagging.add_labels(data[name], windows[name], tags[name])
    if recipe.lora:
        model = add_adapter(model, recipe, "TOKEN_CLS", new)
    record = report.begin_record("finetune_tokens", recipe, args, model, splits)
    record["max_length"] = max_length

    args.label_names = ["labels"]
    finetune.resolve_arguments(args, recipe, model, task.metrics)

    report.report_model(model, recipe, new)
    what = (
        f"{len(task.kinds)} types of entities in {len(task.names)} tags" if task.entities else f"{len(task.names)} tags"
    )
    print_line("task", f"{what} in {recipe.tags_field!r}")
    for name, encoded in tags.items():
        print_line(name, f"{len(encoded):,} records, {describe_tags(task, encoded)}")
        lost = sum(map(len, words[name])) - sum(len(window.words) for window in windows[name])
        if lost:
            print_line(
                "note", f"{lost:,} words of {name} have no pieces and always get the tag {task.names[task.default]}"
            )
    report.report_steps(args, data["train"], max_length)
    shown = max(range(min(50, len(tags["train"]))), key=lambda number: len(Counter(tags["train"][number])))
    tagged = zip(words["train"][shown], tags["train"][shown])
    print_line(
        "example", " ".join(f"{word}/{task.names[tag]}" if tag != task.default else word for word, tag in tagged)
    )
    record["overlap_with_train"] = report.report_overlap({name: sentence_keys(words[name]) for name in splits})

    def tags_of(predictions, name: str) -> list[list[int]]:
        return tagging.tags_of_words(predictions, windows[name], words[name], task.default)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions = in_order(prediction.predictions, data["validation"])
        return task.figures(task.count(tags_of(predictions, "validation"), tags["validation"]))

    trainer = FinetuningTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=RightPadding(tokenizer),
        compute_loss_func=task.loss(args.label_smoothing_factor),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=best_tags,
        record=record,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    split = "test" if "test" in splits else "validation"
    predictions = trainer.predict_in_order(data[split])
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    results, beside = task.estimates(tags_of(predictions, split), tags[split]), {}
    if recipe.baselines:
        tagger = tagging.dictionary_tagger(words["train"], tags["train"])
        beside["dictionary"] = task.estimates(tagger(words[split]), tags[split])
    report.report_results(record, split, results, beside)
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
