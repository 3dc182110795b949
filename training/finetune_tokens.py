"""
Fine-tunes a model to tag words: named entities, parts of speech, anything with one tag a word.

    python training/finetune_tokens.py training/recipes/finetune_wnut17.yaml

    python training/finetune_tokens.py --model my-encoder --train_file train.jsonl --test_file test.jsonl \\
        --words_field tokens --tags_field upos --lora --output_dir runs/tags

Takes any model of the Auto classes, encoder or decoder, with a fast tokenizer. Tags such as B-person and I-person mark
entities, which are counted whole; all other tags are counted word by word. The best checkpoint is chosen on the
validation set; the test set is measured once, beside a dictionary of the training words. The same command resumes a
stopped run.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.tasks.fine_tune import TaskRecipe, fine_tune
from hf_tfm.tasks.tagging import Tagging
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import one_line_errors, parse_recipe


@dataclass
class TaggingRecipe(TaskRecipe):
    words_field: str | None = field(default=None, metadata={"help": "Field of the words; by default recognised."})
    tags_field: str | None = field(default=None, metadata={"help": "Field of as many tags; by default recognised."})


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, TaggingRecipe, FinetuningArguments, __doc__)
    return fine_tune(Tagging.configure(vars(recipe)), recipe, args, job="finetune_tokens")


if __name__ == "__main__":
    sys.exit(main())
