"""
Fine-tunes a model to label texts: one label, several, or a number, for single texts or pairs.

    python training/finetune_classification.py training/recipes/finetune_banking77.yaml

    python training/finetune_classification.py --model my-encoder --train_file train.jsonl --test_file test.jsonl \\
        --text_field sentence1 --text_pair_field sentence2 --lora --output_dir runs/pairs

Reads texts and pairs with labels in CSV, TSV, JSON and Parquet, columns or lists of 0 and 1, fastText lines and a
folder for each class; `hf-tfm formats classification` shows each. `--columns text label` names the columns of a table
without a header, `--label_field toxic insult threat` several columns of 0 and 1.

Takes any model of the Auto classes, encoder or decoder. The labels show which kind of task it is. The best checkpoint
is chosen on the validation set; the test set is measured once, beside two baselines: the most frequent label, and a
linear model over TF-IDF. The same command resumes a stopped run.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.tasks.classification import Classification
from hf_tfm.tasks.fine_tune import TaskRecipe, fine_tune
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import one_line_errors, parse_recipe


@dataclass
class ClassificationRecipe(TaskRecipe):
    text_field: str | None = field(default=None, metadata={"help": "Field of the text; by default recognised."})
    text_pair_field: str | None = field(default=None, metadata={"help": "Field of the second text, for pairs."})
    label_field: list[str] | None = field(
        default=None,
        metadata={
            "help": "Field of the label, the labels or the number; several with 0 and 1 each. Numbers get names from "
            "labels.json beside the file, a field {label}_text, or the metadata of Parquet."
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification, multi_label_classification or regression; by default inferred from "
            "the labels."
        },
    )
    class_weights: bool = field(default=False, metadata={"help": "Let rare labels count as much as frequent ones."})
    pooling: str | None = field(
        default=None, metadata={"help": "cls or mean, for encoders that have this choice in place of a pooler."}
    )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, ClassificationRecipe, FinetuningArguments, __doc__)
    return fine_tune(Classification.configure(vars(recipe)), recipe, args, job="finetune_classification")


if __name__ == "__main__":
    sys.exit(main())
