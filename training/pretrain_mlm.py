"""
Pretrain an encoder: predict masked tokens, and on request whether two segments follow one another.

    python training/pretrain_mlm.py training/recipes/pretrain_mlm.yaml --max_steps 2000 --output_dir runs/encoder
    python training/pretrain_mlm.py training/recipes/pretrain_mlm.yaml --sentence_task next_sentence --causal_first 0

Stop it with Ctrl-C at any time; the same command goes on from there. The output folder is a model repository that
`AutoModelForMaskedLM.from_pretrained` loads (with a sentence task: `AutoModelForPreTraining`).
"""

import contextlib
import inspect
import sys
from dataclasses import dataclass, field

from hf_tfm import InputError, TfmEncoderConfig
from hf_tfm.artifacts.record import RunRecord
from hf_tfm.data.objectives import CausalFirst, DrawnRate, Masked, RateSchedule
from hf_tfm.tasks.fill_mask import fill_masks
from hf_tfm.train.pretrain import (
    PretrainArguments,
    PretrainTrainer,
    PretrainTrainingArguments,
    build_model,
    check_pretraining,
    load_tokenizer,
    prepare_data,
    prepare_pairs,
    report_end,
    report_start,
    run_identity,
)
from hf_tfm.train.recipe import one_line_errors, parse_recipe

from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, set_seed


SENTENCES = (
    "Once upon a {} there lived a king.",
    "The little girl went into the {} to pick flowers.",
    "She opened the {} and looked out.",
)


@dataclass
class MaskedArguments(PretrainArguments):
    """Fields of this script alone."""

    masking_rate: float = field(default=0.3, metadata={"help": "share of the tokens to predict at the start"})
    final_masking_rate: float = field(default=0.15, metadata={"help": "and at the end; evaluation is always at 0.15"})
    drawn_masking_rate: bool = field(
        default=False,
        metadata={"help": "draw the rate of each row from 0 to 1 instead, for an encoder that writes by `generate`"},
    )
    causal_first: float = field(
        default=0.0,
        metadata={"help": "share of the steps, the first ones, that predict the next token from those to its left"},
    )
    masking_unit: str = field(default="token", metadata={"help": "token, word (all pieces of a word) or span"})
    sentence_task: str = field(
        default="none", metadata={"help": "none, next_sentence (BERT) or sentence_order (ALBERT)"}
    )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    script, args = parse_recipe(argv, MaskedArguments, PretrainTrainingArguments, __doc__)
    check_pretraining(script, args)
    if script.sentence_task not in ("none", "next_sentence", "sentence_order"):
        raise InputError(f"sentence_task {script.sentence_task!r}: choose none, next_sentence or sentence_order")
    if script.length_schedule:
        raise InputError("length_schedule is for decoders: an encoder's rows, cut short, would not begin with [CLS]")
    if script.streaming and script.sentence_task != "none":
        raise InputError("streaming goes without a sentence task, which draws its second segments from all of the text")
    if not 0 <= script.causal_first < 1:
        raise InputError(f"causal_first {script.causal_first}: must be a share of the steps, 0 or more and below 1")
    if script.causal_first and script.sentence_task != "none":
        raise InputError("causal_first goes without a sentence task: give --causal_first 0")
    set_seed(args.seed)
    record = RunRecord("pretrain_mlm", args.seed)
    tokenizer = load_tokenizer(script.tokenizer)
    pairs = script.sentence_task != "none"
    model, is_new = build_model(
        AutoModelForPreTraining if pairs else AutoModelForMaskedLM, TfmEncoderConfig, tokenizer, script
    )
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rate = RateSchedule(script.masking_rate, script.final_masking_rate, rows_per_step * args.max_steps)
    if script.drawn_masking_rate:
        rate = DrawnRate(seed=args.seed)
    compact = "masked_positions" in inspect.signature(model.forward).parameters
    objective = Masked(tokenizer, rate, script.masking_unit, seed=args.seed, compact=compact)
    if script.causal_first:
        if model.config._attn_implementation not in ("sdpa", "blockwise"):
            raise InputError("causal_first: takes sdpa attention; this model's config asks for another")
        objective = CausalFirst(objective, rows_per_step * round(script.causal_first * args.max_steps))
    evaluation = Masked(tokenizer, 0.15, seed=0, compact=compact)
    prepare = prepare_pairs if pairs else prepare_data
    data = prepare(script, args, tokenizer, model, objective, evaluation)
    trainer = PretrainTrainer(
        model=model, args=args, processing_class=tokenizer, data=data, script=script, record=record
    )
    report_start(trainer, is_new, tokenizer)
    trainer.train_or_resume(run_identity(script, args))
    if trainer.stopped:
        print(f"stopped at step {trainer.state.global_step} of {args.max_steps}; the same command goes on from there")
        return 0

    results = dict(trainer.final_evaluation())
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    if not pairs:
        record["samples"] = []
        for sentence in SENTENCES:
            with contextlib.suppress(InputError):  # too long for a model of few positions
                record["samples"].append(fill(model, tokenizer, sentence))
    report_end(trainer, model, tokenizer, results)
    print("\n".join(["", *record.fields.get("samples", [])]))
    return 0


def fill(model, tokenizer, sentence: str) -> str:
    """The sentence with its gap, and the three likeliest fillings."""
    masked = sentence.format(tokenizer.mask_token)
    [found] = fill_masks(model.eval(), tokenizer, masked, 3)
    return f"{masked}  →  " + ", ".join(f"{token.strip()} ({share:.0%})" for token, share in found)


if __name__ == "__main__":
    sys.exit(main())
