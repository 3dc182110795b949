"""
Pretrain a causal LM: predict the next token.

    python training/pretrain_clm.py training/recipes/pretrain_clm.yaml --max_steps 2000 --output_dir runs/decoder
    python training/pretrain_clm.py --data texts/ --tokenizer my-tokenizer --model small --output_dir runs/mine

Stop it with Ctrl-C at any time; the same command goes on from there. The output folder is a model repository that
`AutoModelForCausalLM.from_pretrained` loads. With `--masked_share` some steps predict masked tokens instead, and it
loads as `AutoModelForMaskedLM` too. With `--denoisers` part of the text becomes gaps to fill and beginnings to go on
from (training/recipes/pretrain_ul2.yaml), and `hf_tfm.data.denoisers.infill` fills gaps with the model.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from hf_tfm import TfmDecoderConfig, cpu
from hf_tfm.artifacts.record import RunRecord
from hf_tfm.core.errors import InputError
from hf_tfm.data.denoisers import Denoisers, infill, parse_shares
from hf_tfm.data.objectives import Hybrid, Masked, RateSchedule, causal
from hf_tfm.tasks.generation import encode_prompt
from hf_tfm.train.pretrain import (
    PretrainArguments,
    PretrainTrainer,
    PretrainTrainingArguments,
    build_model,
    check_pretraining,
    load_tokenizer,
    masked_evaluation,
    prepare_data,
    report_end,
    report_start,
    run_identity,
)
from hf_tfm.train.recipe import one_line_errors, parse_recipe

import torch
from transformers import AutoModelForCausalLM, set_seed


PROMPTS = ("Once upon a time", "The old woman said", "In the middle of the forest")
GAPPED = "Once upon a time there was ___ who lived in the forest. One day ___, and he never came back."


@dataclass
class CausalArguments(PretrainArguments):
    """Fields of this script alone."""

    masked_share: float = field(
        default=0.0,
        metadata={"help": "share of the steps that predict masked tokens instead; the model is then a masked LM too"},
    )
    masking_rate: float = field(default=0.3, metadata={"help": "share of the tokens masked in these at the start"})
    final_masking_rate: float = field(default=0.15, metadata={"help": "and at the end; evaluation is always at 0.15"})
    denoisers: str = field(
        default="",
        metadata={
            "help": 'shares of the text as JSON, {"causal": 0.5, "R": 0.25, "S": 0.125, "X": 0.125}: R is for filling '
            "short gaps, X for long and many ones, S for going on from a beginning read in both directions"
        },
    )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    script, args = parse_recipe(argv, CausalArguments, PretrainTrainingArguments, __doc__)
    check_pretraining(script, args)
    set_seed(args.seed)
    record = RunRecord("pretrain_clm", args.seed)
    tokenizer = load_tokenizer(script.tokenizer)
    model, is_new = build_model(AutoModelForCausalLM, TfmDecoderConfig, tokenizer, script)
    objective = choose_objective(script, args, tokenizer, model)
    data = prepare_data(script, args, tokenizer, model, objective, causal)
    if isinstance(objective, Denoisers):
        record["denoisers"] = objective.shares
    if objective is not causal:
        data.bytes_per_token = None  # not every token is predicted, so the loss in training has no bits per byte
    trainer = PretrainTrainer(
        model=model, args=args, processing_class=tokenizer, data=data, script=script, record=record
    )
    report_start(trainer, is_new, tokenizer)
    trainer.train_or_resume(run_identity(script, args))
    if trainer.stopped:
        print(f"stopped at step {trainer.state.global_step} of {args.max_steps}; the same command goes on from there")
        return 0

    results = dict(trainer.final_evaluation())
    if script.masked_share:
        masked = masked_evaluation(data, Masked(tokenizer, 0.15, seed=0))
        results |= trainer.evaluate(masked, metric_key_prefix="eval_masked")
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    model.generation_config.update(max_new_tokens=128, do_sample=True, temperature=0.8, top_p=0.95)
    record["samples"] = [continue_text(model, tokenizer, prompt, args.seed) for prompt in PROMPTS]
    report_end(trainer, model, tokenizer, results)
    print("\n".join(["", *record["samples"]]))
    if isinstance(objective, Denoisers) and "R" in objective.shares:
        with contextlib.suppress(InputError):  # too long for a model of few positions
            print("\n".join(["", *infill(model, tokenizer, [GAPPED], gap="___", max_gap_tokens=8)]))
    return 0


def choose_objective(script: CausalArguments, args, tokenizer, model) -> Callable:
    """What is predicted in training. Raises `InputError` where that is said twice or the model cannot learn it."""
    if not script.masked_share and not script.denoisers:
        return causal
    if script.masked_share and script.denoisers:
        raise InputError("masked_share and denoisers are two ways to train one model: choose one of them")
    if script.masked_share and script.length_schedule and script.masking_rate != script.final_masking_rate:
        raise InputError(
            "masked_share with a length_schedule: the masking rate goes by rows, of which there are more while they "
            "are short, and would reach its end too soon: give one rate as masking_rate and final_masking_rate"
        )
    if not isinstance(model.config, TfmDecoderConfig):
        name = "masked_share" if script.masked_share else "denoisers"
        raise InputError(f"{name} needs this package's decoder, not {type(model).__name__}")
    if script.denoisers:
        return Denoisers(tokenizer, parse_shares(script.denoisers), args.seed)
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * args.max_steps
    rate = RateSchedule(script.masking_rate, script.final_masking_rate, rows)
    # All rows of a step are of one kind, over however many processes and accumulated batches they are shared.
    parts = args.world_size * args.gradient_accumulation_steps
    return Hybrid(Masked(tokenizer, rate, seed=args.seed), script.masked_share, parts)


def continue_text(model, tokenizer, prompt: str, seed: int) -> str:
    """The prompt with 80 sampled tokens behind it, or as many as the model has positions for."""
    set_seed(seed)
    try:
        ids, room = encode_prompt(model, tokenizer, prompt)
    except InputError:  # nothing can stand behind it
        return prompt
    written = cpu.generate(model, ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(80, room))
    return tokenizer.decode(written[0], skip_special_tokens=True)


if __name__ == "__main__":
    sys.exit(main())
