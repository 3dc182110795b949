"""
Fine-tunes a model to find the answer to a question in a text, or that the text has none.

    python training/finetune_qa.py training/recipes/finetune_fairytaleqa.yaml

    python training/finetune_qa.py --model my-encoder --train_file a.jsonl b.jsonl --test_file test.jsonl \\
        --lora --output_dir runs/answers

Takes any model of the Auto classes, encoder or decoder, with a fast tokenizer, and files in the form of SQuAD 1.1 or
2.0: its own nested files, or rows with a question, a context, and `answers` with `text` and `answer_start`, both empty
where the context has no answer. Long contexts are read in windows that overlap. The best checkpoint, and the threshold
for "no answer", are chosen on the validation set; the test set is measured once, beside simple rules. The same command
resumes a stopped run.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.tasks.fine_tune import TaskRecipe, fine_tune
from hf_tfm.tasks.question_answering import QuestionAnswering
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import one_line_errors, parse_recipe


@dataclass
class QuestionRecipe(TaskRecipe):
    question_field: str | None = field(default=None, metadata={"help": "Field of the question."})
    context_field: str | None = field(default=None, metadata={"help": "Field of the text that has the answer."})
    answers_field: str | None = field(default=None, metadata={"help": "Field of the answers."})
    stride: int | None = field(
        default=None,
        metadata={"help": "Tokens that two windows of a context share; by default 64, or a quarter of max_length."},
    )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, QuestionRecipe, FinetuningArguments, __doc__)
    return fine_tune(QuestionAnswering.configure(vars(recipe)), recipe, args, job="finetune_qa")


if __name__ == "__main__":
    sys.exit(main())
