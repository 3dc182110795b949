"""
Distils a fine-tuned model into a smaller and faster one, the student.

    python training/distill.py training/recipes/distill.yaml

    python training/distill.py --teacher runs/trec --keep_layers 3 --train_file train.jsonl --test_file test.jsonl \\
        --unlabelled questions.jsonl --output_dir runs/trec-small

    python training/distill.py --teacher runs/embedder --keep_layers 3 --unlabelled texts/ --output_dir runs/small

The student is some layers of the teacher (--keep_layers), or another model (--model). It learns the teacher's outputs
for labelled and unlabelled records, the teacher's hidden states where both have the same tokens and width, and the
labels. The teacher's outputs are computed once and kept on disk. The test set is measured once, for both models, and so
is their speed. The same command resumes a stopped run.

A language model learns from one that shares its tokenizer, on plain text; all else is as in pretraining:

    hf-tfm trim-vocab HuggingFaceTB/SmolLM2-135M texts/ runs/teacher
    python training/distill.py --task causal_lm --teacher runs/teacher --model tiny --data texts/ --output_dir runs/mine

The teacher shows the task; --task names another one: classification (of texts and pairs, also regression), tokens, qa,
multiple_choice, causal_lm, masked_lm, or embeddings (needs hf-tfm[embed]; texts alone are enough: the student learns
the directions and the order of similarity of the teacher's vectors). `--task tokens --help` shows the fields of a task.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from finetune_classification import ClassificationRecipe
from finetune_multiple_choice import ChoiceRecipe
from finetune_qa import QuestionRecipe
from finetune_tokens import TaggingRecipe
from hf_tfm.artifacts.open import auto_class_of
from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.core.recipe_file import read_recipe
from hf_tfm.tasks.classification import Classification
from hf_tfm.tasks.distillation import DistillationArguments, SoftLabelRecipe, Teacher
from hf_tfm.tasks.fine_tune import fine_tune
from hf_tfm.tasks.language_model_distillation import distill_language_model
from hf_tfm.tasks.multiple_choice import MultipleChoice
from hf_tfm.tasks.question_answering import QuestionAnswering
from hf_tfm.tasks.tagging import Tagging
from hf_tfm.train.distill_language_model import LanguageModelDistillation
from hf_tfm.train.pretrain_recipe import PretrainingArguments
from hf_tfm.train.recipe import one_line_errors, parse_recipe


@dataclass
class ClassificationDistillation(SoftLabelRecipe, ClassificationRecipe):
    """Fields of the distillation of a classifier."""


@dataclass
class TaggingDistillation(SoftLabelRecipe, TaggingRecipe):
    """Fields of the distillation of a tagger."""


@dataclass
class QuestionDistillation(SoftLabelRecipe, QuestionRecipe):
    """Fields of the distillation of a model that answers questions."""


@dataclass
class ChoiceDistillation(SoftLabelRecipe, ChoiceRecipe):
    """Fields of the distillation of a model that chooses."""


# Tasks by the Auto class of the teacher.
TASKS = {
    "AutoModelForSequenceClassification": "classification",
    "AutoModelForTokenClassification": "tokens",
    "AutoModelForQuestionAnswering": "qa",
    "AutoModelForMultipleChoice": "multiple_choice",
    "AutoModelForCausalLM": "causal_lm",
    "AutoModelForMaskedLM": "masked_lm",
    "AutoModel": "embeddings",
}


def choose_task(argv: list[str]) -> str:
    """Return the task that the arguments name, else that of the teacher's head. Raises `InputError` if it is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--task", "--teacher"):
        parser.add_argument(name, nargs="?")
    recipe = read_recipe(Path(argv[0])) if argv and not argv[0].startswith("-") else {}
    options = vars(parser.parse_known_args(argv)[0])
    named, teacher = (options[name] or recipe.get(name) for name in ("task", "teacher"))
    task = named or (TASKS.get(auto_class_of(teacher), "") if teacher else "classification")
    if task not in TASKS.values():
        given = f"task {named!r}" if named else f"{teacher}: its head is for none of the tasks; --task"
        raise InputError(f"{given} must be one of {', '.join(TASKS.values())}")
    return task


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    match choose_task(argv):
        case "embeddings":
            with needs_extra("embed"):
                from hf_tfm.tasks.embedding_distillation import EmbeddingDistillationRecipe, distill_embeddings
                from hf_tfm.tasks.embeddings import EmbeddingArguments
            recipe, args = parse_recipe(argv, EmbeddingDistillationRecipe, EmbeddingArguments, __doc__)
            return distill_embeddings(recipe, args)
        case "classification":
            recipe, args = parse_recipe(argv, ClassificationDistillation, DistillationArguments, __doc__)
            task = Classification.configure(vars(recipe))
        case "tokens":
            recipe, args = parse_recipe(argv, TaggingDistillation, DistillationArguments, __doc__)
            task = Tagging.configure(vars(recipe))
        case "qa":
            recipe, args = parse_recipe(argv, QuestionDistillation, DistillationArguments, __doc__)
            task = QuestionAnswering.configure(vars(recipe))
        case "multiple_choice":
            recipe, args = parse_recipe(argv, ChoiceDistillation, DistillationArguments, __doc__)
            task = MultipleChoice.configure(vars(recipe))
        case "causal_lm" | "masked_lm" as name:
            named = [*argv, "--task", name]
            recipe, args = parse_recipe(named, LanguageModelDistillation, PretrainingArguments, __doc__)
            return distill_language_model(recipe, args)
    return fine_tune(task, recipe, args, "distill", Teacher(recipe, task, args))


if __name__ == "__main__":
    sys.exit(main())
