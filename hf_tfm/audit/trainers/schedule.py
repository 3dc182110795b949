"""Settings of the run: steps, rate, warm-up, which checkpoint is the best."""

import math
import re
from itertools import pairwise
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..report import Report
from .subject import TrainerSubject
from .weights import is_adam, learning_rate


SCHEDULE_POINTS = 100  # steps of the run at which a given scheduler is read
# Names of measures, as people write them behind `eval_` or the name of a dataset.
_LOWER_IS_BETTER = re.compile(r"(?:^|_)(?:loss|perplexity|ppl|error|wer|cer|ter|mse|rmse|mae|brier|nll|bits_per_\w+)$")
_HIGHER_IS_BETTER = re.compile(
    r"(?:^|_)(?:accuracy|acc|f1|precision|recall|auc|roc_auc|mcc|matthews_correlation|pearsonr?|spearmanr?|bleu|sacrebleu"
    r"|rouge\w*|meteor|exact_match|em|map|mrr|ndcg|reward|rewards_accuracies|rewards_margins)(?:@\d+)?$"
)


def check_settings(subject: TrainerSubject, report: Report) -> None:
    """Add findings about the arguments of the run, and its size as facts."""
    steps = check_steps(subject, report)
    check_rate(subject, report)
    check_warm_up(subject, report, steps)
    check_given_scheduler(subject, report, steps)
    check_best(subject.args, report)


def check_steps(subject: TrainerSubject, report: Report) -> int | None:
    """P801, P804: returns the steps that the trainer will make; None if they are unknown."""
    args, loader = subject.args, subject.loader
    try:
        batches = len(loader)
    except TypeError:
        batches = None
    records = len(loader.dataset) if hasattr(loader.dataset, "__len__") else None
    accumulation = args.gradient_accumulation_steps
    rows = args.train_batch_size * accumulation * args.world_size
    report.facts["records"] = "unknown" if records is None else f"{records:,}"
    report.facts["records per step"] = f"{args.train_batch_size * args.world_size} × {accumulation} = {rows}"
    if batches == 0:
        report.add("P801", f"{records} records make no batch of {args.train_batch_size} with dataloader_drop_last")
        return 0
    if batches is None:
        steps = args.max_steps
    else:
        per_epoch = math.ceil(batches / accumulation)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        report.facts["steps"] = f"{steps:,} ({steps / per_epoch:.2f} epochs of {per_epoch:,})"
        if batches < accumulation:
            report.add(
                "P801",
                f"an epoch has {batches} batches, fewer than {accumulation} that are accumulated",
                level="note",
                why="Each epoch is one step, of fewer records than meant.",
                mend="Lower gradient_accumulation_steps.",
            )
    if steps <= 0:
        report.add(
            "P801", f"max_steps={args.max_steps} and num_train_epochs={args.num_train_epochs} make {steps} steps"
        )
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and records is not None and batches and records > batches * size:
        lost = records - batches * size
        report.add("P804", f"{lost} of {records} records are left out in each epoch")
    return steps


def check_rate(subject: TrainerSubject, report: Report) -> None:
    """P802: a learning rate of zero, or outside of Adam's usual range."""
    rate = learning_rate(subject)
    if rate == 0:
        report.add("P802", "the learning rate is 0", level="error", why="The model learns nothing.")
    if rate == 0 or not is_adam(subject.trainer):
        return
    highest = highest_rate(subject)
    if not 1e-7 <= rate <= highest:
        report.add("P802", f"the learning rate is {rate:.1e}; usual for AdamW is 1e-6 to {min(highest, 1e-2):.0e}")


def highest_rate(subject: TrainerSubject) -> float:
    """Returns the highest usual rate of AdamW: 1e-3 for a trained model, 1e-2 for LoRA, 0.1 for a new model."""
    if subject.is_adapted:
        types = {str(getattr(config.peft_type, "value", "")) for config in subject.model.peft_config.values()}
        return 1e-2 if types <= {"LORA", "ADALORA"} else math.inf
    model = subject.pretrained
    weights = list(subject.model.parameters())
    learning = sum(weight.numel() for weight in weights if weight.requires_grad)
    is_trained = model is not None and bool(model.name_or_path)
    return 1e-3 if is_trained and learning > sum(map(torch.numel, weights)) / 2 else 0.1


def check_warm_up(subject: TrainerSubject, report: Report, steps: int | None) -> None:
    """P803: a warm-up that takes the whole run."""
    if not steps or subject.trainer.lr_scheduler is not None or str(subject.args.lr_scheduler_type) == "constant":
        return
    warm_up = subject.args.get_warmup_steps(steps)
    if warm_up >= steps:
        report.add("P803", f"the warm-up takes {warm_up} steps, the run {steps}")


def check_given_scheduler(subject: TrainerSubject, report: Report, steps: int | None) -> None:
    """P802, P803: a scheduler of the user whose rates are zero for the run or for most of it, or only rise."""
    scheduler = subject.trainer.lr_scheduler
    if not steps or not isinstance(scheduler, LambdaLR):
        return
    factor = scheduler.lr_lambdas[0]
    factors = [
        float(factor(step)) for step in sorted({steps * part // SCHEDULE_POINTS for part in range(SCHEDULE_POINTS)})
    ]
    zeros = sum(value == 0 for value in factors)
    if zeros == len(factors):
        report.add(
            "P802",
            f"the given scheduler's rate is 0 in all {steps:,} steps",
            level="error",
            why="The model learns nothing.",
        )
    elif factors[-1] == 0 and zeros > len(factors) / 4:
        report.add(
            "P802",
            f"the given scheduler's rate is 0 for {zeros / len(factors):.0%} of {steps:,} steps",
            why="The scheduler was made for fewer steps than the run has.",
            mend="Make the scheduler for the steps of the run.",
        )
    elif len(factors) > 3 and all(one < other for one, other in pairwise(factors)):
        report.add("P803", f"the given scheduler's rate rises to the end of {steps:,} steps")


def check_best(args: Any, report: Report) -> None:
    """P805: `greater_is_better` contradicts the name of the metric."""
    if not args.load_best_model_at_end and args.save_total_limit is None or args.metric_for_best_model is None:
        return
    name = args.metric_for_best_model.lower()
    wrong = _LOWER_IS_BETTER.search(name) if args.greater_is_better else _HIGHER_IS_BETTER.search(name)
    if wrong:
        level = "error" if args.load_best_model_at_end else "warning"
        report.add("P805", f"greater_is_better={args.greater_is_better} for {args.metric_for_best_model}", level=level)
