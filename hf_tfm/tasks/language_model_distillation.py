"""A run that distils a language model, as the pretraining scripts train one."""

import inspect
from dataclasses import replace

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, TrainingArguments, set_seed

from ..artifacts.open import fingerprint
from ..artifacts.record import RunRecord
from ..artifacts.tokenizer_files import load_tokenizer
from ..core.errors import InputError
from ..data.objectives import Masked, causal
from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from ..train.distill_language_model import DistillingTrainer, LanguageModelDistillation, soft_batches
from ..train.kept_layers import choose_layers, keep_layers
from ..train.pretrain import report_end, report_start
from ..train.pretrain_choice import choose_recipe
from ..train.pretrain_data import prepare_data
from ..train.pretrain_model import build_model
from ..train.pretrain_objective import plan_rate
from ..train.pretrain_recipe import check_pretraining, pretraining_identity
from ..train.report import report_stopped
from ..train.teacher import load_teacher


def distill_language_model(recipe: LanguageModelDistillation, args: TrainingArguments) -> int:
    """
    Distil a teacher into a student that shares its tokenizer; return the exit code.

    Raises:
        InputError: the options contradict one another or the files, or the two models do not fit together.
    """
    check_pretraining(recipe, args)
    is_causal = recipe.task == "causal_lm"
    auto_class, config_class = (
        (AutoModelForCausalLM, TfmDecoderConfig) if is_causal else (AutoModelForMaskedLM, TfmEncoderConfig)
    )
    tokenizer = load_tokenizer(recipe.tokenizer or recipe.teacher)
    teacher: PreTrainedModel | None = load_teacher(recipe.teacher, auto_class.__name__, tokenizer)
    choice = choose_recipe(recipe, args, auto_class, config_class, tokenizer)
    set_seed(args.seed)
    model, is_new = build_model(auto_class, config_class, tokenizer, recipe)
    if recipe.keep_layers:
        if is_new:
            raise InputError(f"keep_layers: keeps layers of a trained model, and --model {recipe.model} is new")
        model = keep_layers(auto_class, model, choose_layers(model.config, recipe.keep_layers), False)
        choice = replace(choice, regime=choice.regime.of_model(model))
    identity = pretraining_identity(recipe, args) | {"contents of teacher": fingerprint(teacher, tokenizer)}
    objective = evaluation = causal
    if not is_causal:
        # Models of this package compute logits at the masked positions only.
        compact = "masked_positions" in inspect.signature(model.forward).parameters
        objective = Masked(
            tokenizer, plan_rate(recipe, args, choice.plan), recipe.masking_unit, seed=args.seed, compact=compact
        )
        evaluation = Masked(tokenizer, 0.15, seed=0, compact=compact)
    data = prepare_data(recipe, args, tokenizer, model, objective, evaluation, choice.plan)
    if is_causal:
        train = soft_batches(data.train, data.stores, teacher, tokenizer, recipe, args.bf16)
        data, teacher = replace(data, train=train), None
    trainer = DistillingTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        data=data,
        recipe=recipe,
        choice=choice,
        record=RunRecord("distill", args.seed),
        teacher=teacher,
    )
    report_start(trainer, is_new)
    trainer.train_or_resume(identity)
    if trainer.stopped:
        return report_stopped(trainer)
    results = trainer.final_evaluation()
    model = trainer.finished_model()
    if trainer.is_world_process_zero():
        report_end(trainer, model, results)
    return 0
