"""Fill in what the user of a pretraining script left open: from the table of regimes, or from the standard recipe."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..core.errors import InputError
from ..models.configuration_tfm import TfmConfig
from .dropout import dropout_fields
from .pretrain_model import build_meta_model, model_config
from .pretrain_recipe import PretrainingRecipe, rows_per_step
from .regime import Regime, measure_regime
from .regime_table import CAUSAL, FIELDS, MASKED, STANDARD, TOKENS_OF_RATES, Row, choose_row
from .schedule import RunPlan


# Evaluations take at most about so much of the time of a run. An evaluation is a forward pass, a third of the work of
# training on as many tokens.
_EVALUATION_SHARE = 0.1

# The loss of a single evaluation may be worse than the one before by chance.
_LEAST_PATIENCE = 2

# Settings that a run may be unable to have, with the values of those that go without.
_ABSENT: dict[str, Any] = {
    "dropout": None,
    "token_noise": 0.0,
    "causal_first": 0.0,
    "early_decay_patience": 0,
    "load_best_model_at_end": False,
}

_RATES = ("learning_rate", "embedding_learning_rate")


@dataclass(frozen=True)
class RecipeChoice:
    """
    The settings of a run and where they come from.

    Attributes:
        name: auto or standard.
        reason: why the row of the table is taken.
        settings: values of the fields of the table, by name.
        given: names of those that the user set.
        notes: settings of the row that this run cannot have, and why.
        plan: the steps of the run.
        saved_config: fields of the model's configuration that the run changes, with the values that saved models get.
    """

    name: str
    reason: str
    regime: Regime
    settings: dict[str, Any]
    given: list[str]
    notes: list[str]
    plan: RunPlan
    saved_config: dict[str, Any]

    def describe(self) -> list[str]:
        """Return lines on the recipe: its name and reason, its settings, those of the user, those left out."""
        open_names = [name for name, value in self.settings.items() if name not in self.given and value is not None]
        chosen = self._list_settings(open_names)
        given = [f"as given: {self._list_settings(self.given)}"] if self.given else []
        return [f"{self.name}: {self.reason}", chosen, *given, *self.notes]

    def _list_settings(self, names: list[str]) -> str:
        return ", ".join(f"{name} {_text(self.settings[name])}" for name in names)


def choose_recipe(
    recipe: PretrainingRecipe,
    args: TrainingArguments,
    auto_class: Any,
    config_class: type[TfmConfig],
    tokenizer: PreTrainedTokenizerBase,
    has_pairs: bool = False,
) -> RecipeChoice:
    """
    Fill in the fields of `recipe` and `args` that the user left open, and return the choice.

    Args:
        auto_class, config_class, tokenizer: see `build_model`.
        has_pairs: whether rows are pairs of segments.

    Raises:
        InputError: the text cannot be read, the model is unknown, or the user set what the run cannot have.
    """
    holders = {name: recipe if hasattr(recipe, name) else args for name in FIELDS}
    holders = {name: holder for name, holder in holders.items() if hasattr(holder, name)}
    given = [name for name, holder in holders.items() if getattr(holder, name) is not None]
    is_causal = auto_class is AutoModelForCausalLM
    recipe.recipe = recipe.recipe or ("standard" if set(given) - {"load_best_model_at_end"} else "auto")
    if args.per_device_train_batch_size is None:  # the rows of the table are for passes with so large batches
        args.per_device_train_batch_size = STANDARD.per_device_train_batch_size
    config = model_config(config_class, tokenizer, recipe)
    model = build_meta_model(auto_class, config, recipe)
    regime = measure_regime(recipe, args, tokenizer, model, wrap=tokenizer.cls_token_id is None and not has_pairs)
    row = STANDARD
    if recipe.recipe == "auto":
        row = choose_row(CAUSAL if is_causal else MASKED, regime)
    if "per_device_train_batch_size" not in given:
        args.per_device_train_batch_size = row.per_device_train_batch_size
        regime = dataclasses.replace(regime, tokens_per_step=rows_per_step(args) * recipe.block_length)

    if args.eval_steps is None:
        args.eval_steps = 1 / count_evaluations(row, regime)
    evaluations = 1 / args.eval_steps if args.eval_steps < 1 else args.max_steps / args.eval_steps
    settings = fit_row(row, regime, args.learning_rate, evaluations)
    if "optimizer" in given and recipe.optimizer != row.optimizer:  # the row's values mean nothing to another one
        settings |= dict.fromkeys((*_RATES, "weight_decay"))
    for name in holders.keys() - set(given):
        setattr(holders[name], name, settings[name])
    notes = []
    for name, obstacle in _obstacles(recipe, args, model, has_pairs):
        if name in holders and getattr(holders[name], name):
            if name in given:
                raise InputError(f"--{name}: {obstacle}")
            setattr(holders[name], name, _ABSENT[name])
            notes.append(f"without {name}: {obstacle}")
    if args.load_best_model_at_end and args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = "loss", False
    settings = {name: getattr(holder, name) for name, holder in holders.items()}
    unused = {"masking_rates"} if is_causal and not getattr(recipe, "masked_share", 0) else set()
    return RecipeChoice(
        name=recipe.recipe,
        reason=row.reason,
        regime=regime,
        settings={name: value for name, value in settings.items() if name not in unused},
        given=[name for name in given if name not in unused],
        notes=notes,
        plan=plan_run(settings, args.max_steps),
        saved_config={} if recipe.dropout is None else dropout_fields(config),
    )


def fit_row(row: Row, regime: Regime, learning_rate: float | None, evaluations: float) -> dict[str, Any]:
    """
    Return the settings of a row for a regime.

    Args:
        learning_rate: the user's, if there is one.
        evaluations: number of evaluations of the run.
    """
    settings = {name: getattr(row, name) for name in FIELDS if name != "early_decay_patience"}
    settings["masking_rates"] = list(row.masking_rates)
    settings["early_decay_patience"] = max(_LEAST_PATIENCE, round(row.patience * evaluations)) if row.patience else 0
    scale = math.sqrt(regime.tokens_per_step / TOKENS_OF_RATES)
    settings |= {name: _round(settings[name] * scale) for name in _RATES if settings[name] is not None}
    if row.memory_passes is not None and regime.text_tokens is not None:
        pass_steps = max(1, regime.text_tokens / regime.tokens_per_step)
        rate = learning_rate or settings["learning_rate"]
        settings["weight_decay"] = _round(1 / (row.memory_passes * pass_steps * rate))
    return settings


def _text(value: Any) -> str:
    """Return a setting in words."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return (
        {None: "its own", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _obstacles(
    recipe: PretrainingRecipe, args: TrainingArguments, model: PreTrainedModel, has_pairs: bool
) -> Iterator[tuple[str, str]]:
    """Yield the names of settings that a run cannot have, each with the reason."""
    if not dropout_fields(model.config):
        yield "dropout", f"{type(model.config).__name__} has no dropout after layers or embeddings"
    if getattr(recipe, "denoisers", ""):
        yield "token_noise", "it is for next tokens and masked_share, not for denoisers"
    if has_pairs:
        yield "causal_first", "it goes without a sentence task"
    if args.eval_strategy != "steps":
        yield "early_decay_patience", "validation decides in a run that evaluates: --eval_strategy steps"
        yield "load_best_model_at_end", "the best checkpoint is that of the best evaluation: --eval_strategy steps"
    elif args.save_strategy == "no":
        yield "load_best_model_at_end", "the best checkpoint has to be saved: --save_strategy steps or best"
    if recipe.schedule != "wsd":
        yield "early_decay_patience", "only the schedule wsd has a decay that can begin early"


def count_evaluations(row: Row, regime: Regime) -> int:
    """Return the number of evaluations of a run that does not set it."""
    affordable = int(_EVALUATION_SHARE * 3 * regime.tokens / max(regime.validation_tokens, 1))
    return max(STANDARD.evaluations, min(row.evaluations, affordable))


def plan_run(settings: Mapping[str, Any], max_steps: int) -> RunPlan:
    """Return the planned steps of a run, of which all but the warm-up decay if the share of the decay is 1."""
    warmup, decay = settings["warmup"], settings["decay"]
    warmup_steps = round(warmup * max_steps) if warmup < 1 else round(warmup)
    decay_steps = max_steps - warmup_steps if decay == 1 else round(decay * max_steps)
    return RunPlan(max_steps, decay_steps if settings["schedule"] == "wsd" else 0)
