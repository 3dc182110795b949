"""
Fine-tunes a model to tag words: named entities, parts of speech, anything with one tag a word.

    python training/finetune_tokens.py training/recipes/finetune_wnut17.yaml

    python training/finetune_tokens.py --model my-encoder --train_file train.jsonl --test_file test.jsonl \\
        --words_field tokens --tags_field upos --lora --output_dir runs/tags

Reads CoNLL-2003 and other columns, CoNLL-U, lists of words and tags in JSON, CSV and Parquet, and texts with spans
(doccano, Label Studio, spaCy, Prodigy); `hf-tfm formats tags` shows each. Of columns without a header, `--columns
tokens pos chunk ner --tags_field ner` names and chooses them.

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
    words_field: str | None = field(
        default=None, metadata={"help": "Field of the words, or name or number of their column; by default recognised."}
    )
    text_field: str | None = field(default=None, metadata={"help": "Field of the text, for spans in it."})
    tags_field: str | None = field(
        default=None,
        metadata={
            "help": "Field of the tags or spans, or name or number of their column; by default recognised. "
            "Numbers get names from labels.json beside the file, or the metadata of Parquet."
        },
    )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, TaggingRecipe, FinetuningArguments, __doc__)
    return fine_tune(Tagging.configure(vars(recipe)), recipe, args, job="finetune_tokens")


if __name__ == "__main__":
    sys.exit(main())
