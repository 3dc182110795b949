"""
Fine-tunes a model to choose the right one of several options.

    python training/finetune_multiple_choice.py training/recipes/finetune_multiple_choice.yaml

    python training/finetune_multiple_choice.py --model my-encoder --train_file train.csv --test_file test.csv \\
        --options_fields a b c d --answer_field right --lora --output_dir runs/choices

Takes any encoder of `AutoModelForMultipleChoice`, and files in the forms of SWAG, HellaSwag, RACE, ARC, CommonsenseQA,
PIQA, COPA, MMLU and alike. A record has a question, perhaps a context, its options (their number may differ from record
to record) and the right one, as a number from 0, a letter from A, or its text. The best checkpoint is chosen on the
validation set; the test set is measured once, beside chance and two simple rules. The same command resumes a stopped
run.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.tasks.fine_tune import TaskRecipe, fine_tune
from hf_tfm.tasks.multiple_choice import MultipleChoice
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import one_line_errors, parse_recipe


@dataclass
class ChoiceRecipe(TaskRecipe):
    question_field: str | None = field(default=None, metadata={"help": "Field of the question."})
    context_field: str | None = field(default=None, metadata={"help": "Field of the text that the question is about."})
    options_fields: list[str] | None = field(
        default=None, metadata={"help": "One field with a list of options, or a field for each option."}
    )
    answer_field: str | None = field(default=None, metadata={"help": "Field of the right option."})


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, ChoiceRecipe, FinetuningArguments, __doc__)
    return fine_tune(MultipleChoice.configure(vars(recipe)), recipe, args, job="finetune_multiple_choice")


if __name__ == "__main__":
    sys.exit(main())
