"""
Pretrain a causal LM: predict the next token.

    python training/pretrain_clm.py training/recipes/pretrain_clm.yaml --max_steps 2000 --output_dir runs/decoder
    python training/pretrain_clm.py --data texts/ --tokenizer my-tokenizer --model small --output_dir runs/mine

Stop it with Ctrl-C at any time; the same command resumes it. `AutoModelForCausalLM.from_pretrained` loads the output
folder. With `--masked_share` some steps predict masked tokens instead, and `AutoModelForMaskedLM` loads the folder too.
With `--denoisers` a part of the text becomes gaps to fill and beginnings to continue
(training/recipes/pretrain_ul2.yaml), and `hf_tfm.data.denoisers.infill` fills gaps with the model.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import contextlib
import sys
from dataclasses import dataclass, field

from hf_tfm import TfmDecoderConfig
from hf_tfm.artifacts.record import RunRecord
from hf_tfm.artifacts.tokenizer_files import load_tokenizer
from hf_tfm.core.errors import InputError
from hf_tfm.data.denoisers import Denoisers, infill
from hf_tfm.data.objectives import Masked, causal
from hf_tfm.tasks.generation import sample_continuation
from hf_tfm.train.pretrain import PretrainingTrainer, report_end, report_start
from hf_tfm.train.pretrain_choice import choose_recipe
from hf_tfm.train.pretrain_data import masked_evaluation, prepare_data
from hf_tfm.train.pretrain_model import build_model
from hf_tfm.train.pretrain_objective import choose_causal_objective
from hf_tfm.train.pretrain_recipe import (
    PretrainingArguments,
    PretrainingRecipe,
    check_pretraining,
    pretraining_identity,
)
from hf_tfm.train.recipe import one_line_errors, parse_recipe
from hf_tfm.train.report import report_stopped

from transformers import AutoModelForCausalLM, set_seed


PROMPTS = ("Once upon a time", "The old woman said", "In the middle of the forest")
TEXT_WITH_GAPS = "Once upon a time there was ___ who lived in the forest. One day ___, and he never came back."


@dataclass
class CausalRecipe(PretrainingRecipe):
    """Fields of this script alone."""

    masked_share: float = field(
        default=0.0, metadata={"help": "Share of the steps that predict masked tokens; the model is a masked LM too."}
    )
    masking_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Share of tokens masked in these steps: one rate, or several that the run passes through at equal "
            "distances; evaluation always masks 0.15. Standard: 0.3 0.15."
        },
    )
    token_noise: float | None = field(
        default=None,
        metadata={
            "help": "Share of the input tokens that random ones replace, while the right ones are predicted: against "
            "overfitting in many passes over little text; else by --recipe, in standard 0."
        },
    )
    denoisers: str = field(
        default="",
        metadata={
            "help": 'Shares of the text as JSON, {"causal": 0.5, "R": 0.25, "S": 0.125, "X": 0.125}: R trains to fill '
            "short gaps, X long or many gaps, S to continue a beginning that is read in both directions."
        },
    )


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, CausalRecipe, PretrainingArguments, __doc__)
    check_pretraining(recipe, args)
    tokenizer = load_tokenizer(recipe.tokenizer, advice="; training/train_tokenizer.py makes one")
    choice = choose_recipe(recipe, args, AutoModelForCausalLM, TfmDecoderConfig, tokenizer)
    set_seed(args.seed)
    model, is_new = build_model(AutoModelForCausalLM, TfmDecoderConfig, tokenizer, recipe)
    objective = choose_causal_objective(recipe, args, tokenizer, model, choice.plan)
    if recipe.token_noise:  # the preflight would report labels that differ from the inputs
        args.preflight_ignore = [*(args.preflight_ignore or ()), "P107"]
    data = prepare_data(recipe, args, tokenizer, model, objective, causal, choice.plan)
    record = RunRecord("pretrain_clm", args.seed)
    if isinstance(objective, Denoisers):
        record["denoisers"] = objective.shares
    trainer = PretrainingTrainer(
        model=model, args=args, processing_class=tokenizer, data=data, recipe=recipe, choice=choice, record=record
    )
    report_start(trainer, is_new)
    trainer.train_or_resume(pretraining_identity(recipe, args, data.passes))
    if trainer.stopped:
        return report_stopped(trainer)

    results = trainer.final_evaluation()
    if recipe.masked_share:
        masked = masked_evaluation(data, Masked(tokenizer, 0.15, seed=0))
        results |= trainer.evaluate(masked, metric_key_prefix="eval_masked")
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    model.generation_config.update(max_new_tokens=128, do_sample=True, temperature=0.8, top_p=0.95)
    record["samples"] = [sample_continuation(model, tokenizer, prompt, args.seed) for prompt in PROMPTS]
    report_end(trainer, model, results)
    print("\n".join(["", *record["samples"]]))
    if isinstance(objective, Denoisers) and "R" in objective.shares:
        with contextlib.suppress(InputError):  # too long for a model of few positions
            print("\n".join(["", *infill(model, tokenizer, [TEXT_WITH_GAPS], gap="___", max_gap_tokens=8)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
