"""
Fine-tunes a model to find the answer to a question in a text, or that the text has none.

    python training/finetune_qa.py training/recipes/finetune_fairytaleqa.yaml

    python training/finetune_qa.py --model my-encoder --train_file a.jsonl b.jsonl --test_file test.jsonl \\
        --lora --output_dir runs/answers

Takes any model of the Auto classes, encoder or decoder, with a fast tokenizer. Records have the shape of SQuAD: a
question, a context, and `answers` with `text` and `answer_start`, both empty where the context has no answer. Long
contexts are read in windows that overlap. The best checkpoint, and the threshold for "no answer", are chosen on the
validation set; the test set is measured once, beside simple rules. The same command resumes a stopped run.
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.tasks.fine_tune import TaskRecipe, fine_tune
from hf_tfm.tasks.question_answering import QuestionAnswering
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import one_line_errors, parse_recipe


@dataclass
class QuestionRecipe(TaskRecipe):
    train_file: list[str] = field(metadata={"help": "One or several files of records, also compressed."})
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Records of the validation set; by default carved out of the training records."}
    )
    test_file: list[str] | None = field(default=None, metadata={"help": "Records that are measured once, at the end."})
    question_field: str = field(default="question", metadata={"help": "Field of a record that has its question."})
    context_field: str = field(default="context", metadata={"help": "Field of the text that has the answer."})
    answers_field: str = field(default="answers", metadata={"help": "Field of the answers."})
    stride: int | None = field(
        default=None,
        metadata={"help": "Tokens that two windows of a context share; by default 64, or a quarter of max_length."},
    )
    skip_bad_answers: bool = field(
        default=False, metadata={"help": "Leave out records whose answer is not in its context, instead of stopping."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # As with one file, `--test_file ""` takes back a recipe's file.
        self.validation_file, self.test_file = (
            [name for name in files or () if name] or None for files in (self.validation_file, self.test_file)
        )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, QuestionRecipe, FinetuningArguments, __doc__)
    return fine_tune(QuestionAnswering.configure(vars(recipe)), recipe, args, job="finetune_qa")


if __name__ == "__main__":
    sys.exit(main())
