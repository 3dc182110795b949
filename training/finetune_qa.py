"""
Fine-tunes a model to find the answer to a question in a text, or to say that it is not there.

    python training/finetune_qa.py training/recipes/finetune_fairytaleqa.yaml

    python training/finetune_qa.py --model my-encoder --train_file a.jsonl b.jsonl --test_file test.jsonl \\
        --lora --output_dir runs/answers

Takes any model of the Auto classes, encoder or decoder, with a fast tokenizer. Records have the shape of SQuAD: a
question, a context, and `answers` with `text` and `answer_start`, both empty where the context does not answer. Long
contexts are read in windows that overlap. The best checkpoint, and how sure "no answer" must be, are chosen on the
validation records; the test records are measured once, beside baselines. The same command goes on where a run was
stopped.
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.artifacts.tokenizer_files import trim_offsets
from hf_tfm.core import limits
from hf_tfm.core.errors import InputError
from hf_tfm.data.batches import RightPadding, in_order
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks import question_answering as qa
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments, FinetuningTrainer
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, EvalPrediction, set_seed


@dataclass
class QuestionRecipe(FinetuningRecipe):
    train_file: list[str] = field(metadata={"help": "One or several files of records, also compressed."})
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Records to choose the best checkpoint by; carved out of train by default."}
    )
    test_file: list[str] | None = field(default=None, metadata={"help": "Records that are measured once, at the end."})
    question_field: str = field(default="question", metadata={"help": "Where a record has its question."})
    context_field: str = field(default="context", metadata={"help": "Where it has the text to look in."})
    answers_field: str = field(default="answers", metadata={"help": "Where it has its answers."})
    stride: int | None = field(
        default=None, metadata={"help": "Tokens that two windows of a context share; 64, or a quarter of max_length."}
    )
    skip_bad_answers: bool = field(
        default=False, metadata={"help": "Leave out records whose answer is not in its context, instead of stopping."}
    )
    baselines: bool = field(default=True, metadata={"help": "Measure simple rules at the end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # As with one file: `--test_file ""` takes back what a recipe says.
        self.validation_file, self.test_file = (
            [name for name in files or () if name] or None for files in (self.validation_file, self.test_file)
        )

    @property
    def fields(self) -> tuple[str, str, str]:
        return self.question_field, self.context_field, self.answers_field


def read_splits(recipe: QuestionRecipe, seed: int) -> tuple[dict[str, Records], dict[str, list[qa.Question]]]:
    """The records and questions of the splits that there are, validation always among them."""
    everything = qa.unfold(read_records(recipe.train_file))
    train, questions = qa.read_questions(everything, recipe.fields, recipe.skip_bad_answers)
    if not any(question.answers for question in questions):
        raise InputError(f"{train.path}: no question has an answer, so there is nothing to learn")
    contexts = [question.context for question in questions]
    skipped = {"train": len(everything) - len(train)}
    train, validation = finetune.carve_validation(recipe, train, seed, contexts)
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    asked = {}
    for name, records in splits.items():
        records = qa.unfold(records)
        splits[name], asked[name] = qa.read_questions(records, recipe.fields, recipe.skip_bad_answers)
        skipped[name] = skipped.get(name, 0) + len(records) - len(splits[name])
        if skipped[name]:
            print_line("skipped", f"{skipped[name]:,} {name} records whose answer is not where it should be")
    return splits, asked


def both_ends(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Start and end logits in one tensor `(rows, length, 2)`."""
    limits.refuse_diverged(logits[0] + logits[1])
    return torch.stack(logits[:2], -1).float()


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, QuestionRecipe, FinetuningArguments, __doc__)
    finetune.check_finetuning(args, recipe)
    set_seed(args.seed)

    splits, questions = read_splits(recipe, args.seed)

    tokenizer = finetune.load_tokenizer(recipe)
    model, new = finetune.load_model(AutoModelForQuestionAnswering, recipe, tokenizer)
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    finetune.choose_attention(args, model, max_length)
    finetune.separate_pairs(tokenizer)
    trim_offsets(tokenizer)
    stride = min(64, max_length // 4) if recipe.stride is None else recipe.stride
    data, windows = {}, {}
    for name, several in questions.items():
        data[name], windows[name] = qa.encode_questions(tokenizer, model, several, max_length, stride)
        qa.add_labels(data[name], windows[name], several)
    if recipe.lora:
        model = add_adapter(model, recipe, "QUESTION_ANS", new)
    record = report.begin_record("finetune_qa", recipe, args, model, splits)
    record["max_length"], record["stride"] = max_length, stride

    args.label_names = ["labels"]
    finetune.resolve_arguments(args, recipe, model, qa.METRICS)

    report.report_model(model, recipe, new)
    for name, several in questions.items():
        answered = sum(bool(question.answers) for question in several)
        without = f", {len(several) - answered:,} of them without an answer" if answered < len(several) else ""
        print_line(name, f"{len(several):,} questions in {len(data[name]):,} windows{without}")
    report.report_steps(args, data["train"], max_length)
    shown = next(question for question in questions["train"] if question.answers)
    print_line("example", f"{shown.question} → {shown.answers[0]}")
    record["overlap_with_train"] = report.report_overlap(
        {name: [(q.context, q.question.casefold()) for q in several] for name, several in questions.items()}
    )

    def answers_of(logits: np.ndarray, name: str) -> list[qa.Answer]:
        return qa.find_answers(logits, windows[name], [question.context for question in questions[name]])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers = answers_of(in_order(prediction.predictions, data["validation"]), "validation")
        threshold = qa.choose_threshold(answers, questions["validation"])
        texts = [answer.text(threshold) for answer in answers]
        return qa.figures(qa.score_answers(texts, questions["validation"]))

    trainer = FinetuningTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=RightPadding(tokenizer),
        compute_loss_func=qa.span_loss(args.label_smoothing_factor),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=both_ends,
        record=record,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    answers = {
        name: answers_of(trainer.predict_in_order(data[name]), name)
        for name in ("validation", "test")
        if name in splits
    }
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    split = "test" if "test" in splits else "validation"
    threshold = qa.choose_threshold(answers["validation"], questions["validation"])
    results, beside = qa.estimates([answer.text(threshold) for answer in answers[split]], questions[split]), {}
    if recipe.baselines:
        guesses = qa.baselines(questions[split], questions["train"], args.seed)
        beside = {name: qa.estimates(texts, questions[split]) for name, texts in guesses.items()}
    report.report_results(record, split, results, beside)
    first = answers[split][0]
    nearest = [f"{span.text} ({share:.0%})" for span, share in zip(first.spans[:3], first.probabilities())]
    print_line("sample", f"{questions[split][0].question} → {', '.join(nearest)}")
    record["no_answer_threshold"] = threshold
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
