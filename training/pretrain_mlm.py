"""
Pretrain an encoder: predict masked tokens, and optionally whether two segments follow one another.

    python training/pretrain_mlm.py training/recipes/pretrain_mlm.yaml --max_steps 2000 --output_dir runs/encoder
    python training/pretrain_mlm.py training/recipes/pretrain_mlm.yaml --sentence_task next_sentence --causal_first 0

Stop it with Ctrl-C at any time; the same command resumes it. `AutoModelForMaskedLM.from_pretrained` loads the output
folder (with a sentence task: `AutoModelForPreTraining`).
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm import InputError, TfmEncoderConfig
from hf_tfm.artifacts.record import RunRecord
from hf_tfm.artifacts.tokenizer_files import load_tokenizer
from hf_tfm.tasks.fill_mask import describe_masks
from hf_tfm.train.adaptive_masking import AdaptiveMasking
from hf_tfm.train.pretrain import PretrainingTrainer, report_end, report_start
from hf_tfm.train.pretrain_choice import choose_recipe
from hf_tfm.train.pretrain_data import prepare_data, prepare_pairs
from hf_tfm.train.pretrain_model import build_model
from hf_tfm.train.pretrain_objective import choose_masked_objectives
from hf_tfm.train.pretrain_recipe import (
    PretrainingArguments,
    PretrainingRecipe,
    check_pretraining,
    pretraining_identity,
)
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import report_stopped

from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, set_seed


SENTENCES = (
    "Once upon a {} there lived a king.",
    "The little girl went into the {} to pick flowers.",
    "She opened the {} and looked out.",
)


@dataclass
class MaskedRecipe(PretrainingRecipe):
    """Fields of this script alone."""

    masking_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Share of tokens masked: one rate, or several that the run passes through at equal distances, as "
            "0.3 0.15 0.05; evaluation always masks 0.15. Standard: 0.3 0.15."
        },
    )
    drawn_masking_rate: bool = field(
        default=False,
        metadata={"help": "Draw the masking rate of each row from 0 to 1, for an encoder that can `generate`."},
    )
    adaptive_masking: int = field(
        default=0,
        metadata={
            "help": "Steps, 200 or so, after which the tokens that the model predicts badly are masked more often than "
            "the others, at the same rate in all, and again after as many; 0 masks all alike."
        },
    )
    causal_first: float | None = field(
        default=None,
        metadata={
            "help": "Share of the steps, at the start, that predict the next token from the tokens to its left; "
            "standard: 0."
        },
    )
    masking_unit: str = field(default="token", metadata={"help": "token, word (all tokens of a word) or span."})
    sentence_task: str = field(
        default="none", metadata={"help": "none, next_sentence (BERT) or sentence_order (ALBERT)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sentence_task not in ("none", "next_sentence", "sentence_order"):
            raise InputError(f"sentence_task {self.sentence_task!r}: choose none, next_sentence or sentence_order")
        if self.length_schedule:
            raise InputError(
                "length_schedule is for decoders: an encoder's rows, cut short, would not begin with [CLS]"
            )
        if self.streaming and self.sentence_task != "none":
            raise InputError(
                "streaming goes without a sentence task, which draws its second segments from all of the text"
            )
        refuse_below(self, adaptive_masking=0)
        if self.causal_first is not None and not 0 <= self.causal_first < 1:
            raise InputError(f"causal_first {self.causal_first}: must be a share of the steps, 0 or more and below 1")
        if self.causal_first and self.sentence_task != "none":
            raise InputError("causal_first goes without a sentence task: give --causal_first 0")


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, MaskedRecipe, PretrainingArguments, __doc__)
    check_pretraining(recipe, args)
    tokenizer = load_tokenizer(recipe.tokenizer, advice="; training/train_tokenizer.py makes one")
    has_pairs = recipe.sentence_task != "none"
    auto_class = AutoModelForPreTraining if has_pairs else AutoModelForMaskedLM
    choice = choose_recipe(recipe, args, auto_class, TfmEncoderConfig, tokenizer, has_pairs)
    set_seed(args.seed)
    model, is_new = build_model(auto_class, TfmEncoderConfig, tokenizer, recipe)
    objectives = choose_masked_objectives(recipe, args, tokenizer, model, choice.plan)  # of training and of evaluation
    if has_pairs:
        data = prepare_pairs(recipe, args, tokenizer, model, *objectives, recipe.sentence_task)
    else:
        data = prepare_data(recipe, args, tokenizer, model, *objectives, choice.plan)
    record = RunRecord("pretrain_mlm", args.seed)
    adaptive = AdaptiveMasking(objectives[0], recipe.adaptive_masking) if recipe.adaptive_masking else None
    trainer = PretrainingTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        data=data,
        recipe=recipe,
        choice=choice,
        record=record,
        adaptive_masking=adaptive,
    )
    report_start(trainer, is_new)
    trainer.train_or_resume(pretraining_identity(recipe, args, data.passes))
    if trainer.stopped:
        return report_stopped(trainer)

    results = trainer.final_evaluation()
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    if not has_pairs:
        record["samples"] = describe_masks(model, tokenizer, SENTENCES)
    report_end(trainer, model, results)
    print("\n".join(["", *record.fields.get("samples", [])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
