"""The objective of a pretraining run, from the fields of its recipe."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..artifacts.packing_support import takes_causal_mask
from ..core.errors import InputError
from ..data.denoisers import Denoisers, parse_shares
from ..data.objectives import CausalFirst, DrawnRate, Hybrid, Masked, RateSchedule, TokenNoise, causal
from ..models.configuration_tfm import TfmDecoderConfig
from .pretrain_data import Objective
from .pretrain_recipe import rows_per_step
from .schedule import RunPlan


def choose_causal_objective(
    recipe: Any, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, plan: RunPlan
) -> Objective:
    """
    Return the objective of `pretrain_clm.py` for its recipe.

    Raises:
        InputError: the fields contradict one another, or the model cannot learn the objective.
    """
    objective = _choose_mixture(recipe, args, tokenizer, model, plan)
    return TokenNoise(objective, tokenizer, recipe.token_noise, args.seed) if recipe.token_noise else objective


def _choose_mixture(
    recipe: Any, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, plan: RunPlan
) -> Objective:
    """Return next-token prediction, alone or mixed with masked tokens or denoisers."""
    if not recipe.masked_share and not recipe.denoisers:
        return causal
    if recipe.masked_share and recipe.denoisers:
        raise InputError("masked_share and denoisers are two ways to train one model: choose one of them")
    if recipe.masked_share and recipe.length_schedule and len(recipe.masking_rates) > 1:
        raise InputError(
            "masked_share with a length_schedule: the masking rate follows the number of rows, which is higher while "
            "rows are short, and would reach its end too soon: give one rate, --masking_rates 0.3"
        )
    if not isinstance(model.config, TfmDecoderConfig):
        name = "masked_share" if recipe.masked_share else "denoisers"
        raise InputError(f"{name} needs this package's decoder, not {type(model).__name__}")
    if recipe.denoisers:
        return Denoisers(tokenizer, parse_shares(recipe.denoisers), args.seed)
    rate = plan_rate(recipe, args, plan)
    # All rows of a step have one objective, over all processes and accumulated batches that share the step.
    parts = args.world_size * args.gradient_accumulation_steps
    return Hybrid(Masked(tokenizer, rate, seed=args.seed), recipe.masked_share, parts)


def plan_rate(recipe: Any, args: TrainingArguments, plan: RunPlan) -> Callable[[np.ndarray], np.ndarray]:
    """Return the masking rate by rows, which goes with the run where its decay begins early."""
    rows = rows_per_step(args)
    rate = RateSchedule(recipe.masking_rates, rows * args.max_steps)
    return lambda numbers: rate(plan.planned_step(numbers, rows))


def choose_masked_objectives(
    recipe: Any, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, plan: RunPlan
) -> tuple[Masked | CausalFirst, Masked]:
    """
    Return the objectives of training and evaluation of `pretrain_mlm.py` for its recipe.

    Raises:
        InputError: the model's attention cannot be made causal, or `adaptive_masking` would never change anything.
    """
    if recipe.adaptive_masking >= args.max_steps:
        raise InputError(
            f"adaptive_masking {recipe.adaptive_masking}: the first change would come after the run's {args.max_steps} "
            "steps: give fewer, or 0"
        )
    # Models of this package compute logits at the masked positions only.
    compact = "masked_positions" in inspect.signature(model.forward).parameters
    evaluation = Masked(tokenizer, 0.15, seed=0, compact=compact)
    rows = rows_per_step(args)
    rate: Any = plan_rate(recipe, args, plan)
    if recipe.drawn_masking_rate:
        rate = DrawnRate(seed=args.seed)
    masked = Masked(tokenizer, rate, recipe.masking_unit, seed=args.seed, compact=compact)
    if not recipe.causal_first:
        return masked, evaluation
    if not takes_causal_mask(model):
        raise InputError(
            f"causal_first: {type(model).__name__} (attention {model.config._attn_implementation}) cannot hide later "
            "tokens and other texts: give --causal_first 0"
        )
    return CausalFirst(masked, rows * round(recipe.causal_first * args.max_steps)), evaluation
