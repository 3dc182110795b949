"""Backward passes of the trainer's own loss, which show the trainable weights without a gradient."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...core.errors import reason_of
from ...data.conversations import texts_in
from ..report import Report
from .model_parts import head_weights, input_embeddings, layer_prefixes, plain_name
from .subject import TrainerSubject, has_trained_token, shorten


# Private names that a pass with activation checkpointing changes, and that are put back behind it.
# tests/audit/test_gradients.py fails when one of them is gone.
PRIVATE_NAMES = {
    "gradient_checkpointing": "attribute of layers: whether they are computed twice",
    "_gradient_checkpointing_func": "attribute of layers: the function that does so",
    "_require_grads_hook": "attribute of models: the handle of the hook on the input embeddings",
    "_require_grads_hooks": "attribute of models: all such handles",
    "_forward_hooks": "attribute of torch's modules: the hooks themselves",
}
PASS_TOKENS = 48  # of each row of the first pass
PASSES = 3
PASS_ROWS = 8  # of the third pass, for losses that compare rows
DROPPED_PASSES = 8  # where layers are dropped at random
# Weights that most losses do not use: the loss of a run either has a use for them or not.
_UNUSED = re.compile(
    r"pooler|seq_relationship|nsp|logit_scale|experts\.\d+\.|vision|visual|image|audio|position|token_type"
    r"|trainable_tokens_delta"
)
# The softmax does not depend on what is added to all keys.
_WITHOUT_EFFECT = re.compile(r"(?:^|[._])k(?:ey|_proj)?\.bias$")


def check_gradients(subject: TrainerSubject, report: Report) -> None:
    """P401: trainable weights get no gradient from the loss of a few rows."""
    with subject.few_layers() as layers, checkpointing_as_in_training(subject), without_zeros(subject.model):
        trainable = {name: weight for name, weight in subject.model.named_parameters() if weight.requires_grad}
        if not trainable:
            return
        silent, computed = set(trainable), 0
        for number in range(DROPPED_PASSES if drops_layers(subject) else PASSES):
            try:
                loss = compute_loss(subject, number)
            except Exception as error:
                report_failure(subject, error, report)
                return
            if not torch.isfinite(loss.detach()).all():
                continue
            computed += 1
            if not loss.requires_grad:
                report.add("P401", f"the loss depends on none of {len(trainable)} trainable tensors")
                return
            loss.mean().backward()
            silent = {name for name in silent if not has_gradient(trainable[name])}
            if not silent:
                break
        if not computed:
            report.cannot_see("gradients of weights: the loss of a few rows is not finite")
            return
        report.facts["gradients"] = f"{len(trainable) - len(silent)} of {len(trainable)} tensors, {layers} layers"
        damaged = [name for name, weight in trainable.items() if not is_finite(weight)]
        if damaged:
            report.add("P401", f"gradients of {len(damaged)} of {len(trainable)} tensors are not finite", damaged[0])
        report_silent(subject, report, trainable, silent)


def report_failure(subject: TrainerSubject, error: Exception, report: Report) -> None:
    """P200 if a whole batch of the trainer fails as well as rows that were cut."""
    reason = f"{type(error).__name__}: {reason_of(error)}"
    try:
        subject.loss(subject.batches[0], train=True)
    except Exception:
        report.add("P200", f"the loss of a training step fails: {reason}")
    else:
        report.cannot_see(f"gradients of weights: the loss of shortened rows fails: {reason}")


def drops_layers(subject: TrainerSubject) -> bool:
    """Whether whole layers are left out at random in training (LayerDrop, arXiv:1909.11556)."""
    config = getattr(subject.base, "config", None)
    return config is not None and any(value for name, value in vars(config).items() if name.endswith("layerdrop"))


def report_silent(
    subject: TrainerSubject, report: Report, trainable: Mapping[str, nn.Parameter], silent: set[str]
) -> None:
    """Add findings about weights without a gradient: errors for whole parts of the model, else a warning or a note."""
    harmless = {name for name in silent if _UNUSED.search(name) or _WITHOUT_EFFECT.search(plain_name(name))}
    rest = sorted(silent - harmless)
    if rest and len(rest) == len(set(trainable) - harmless):
        report.add("P401", f"none of {len(trainable)} trainable tensors gets a gradient", rest[0])
        return
    ids = {id(trainable[name]) for name in rest}
    lost: dict[str, list[str]] = {}
    for part, weights in large_parts(subject).items():
        names = [name for name, weight in trainable.items() if id(weight) in weights and name not in harmless]
        if names and all(id(trainable[name]) in ids for name in names):
            lost[part] = names
    if lost:
        parts = ", ".join(list(lost)[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
        count = len(set().union(*lost.values()))
        report.add("P401", f"{parts}: none of {count} tensors gets a gradient", next(iter(lost.values()))[0])
    if single := [name for name in rest if not any(name in names for names in lost.values())]:
        level = "error" if len(single) > len(trainable) / 2 else "warning"
        report.add("P401", f"{len(single)} of {len(trainable)} tensors get no gradient", single[0], level=level)
    if harmless:
        report.add(
            "P401",
            f"{len(harmless)} tensors get no gradient, as is usual for them",
            sorted(harmless)[0],
            level="note",
            why="The loss of these rows does not use them.",
            mend="Nothing, or freeze them.",
        )


def large_parts(subject: TrainerSubject) -> dict[str, set[int]]:
    """Returns the identities of the weights of each layer, of the input embeddings and of the head, by their names."""
    model = subject.pretrained or subject.model
    weights = dict(model.named_parameters(remove_duplicate=False))
    parts = {
        prefix.rstrip("."): {id(weight) for name, weight in weights.items() if name.startswith(prefix)}
        for prefix in layer_prefixes(model)
    }
    if subject.pretrained is None:
        return parts
    embeddings = input_embeddings(model)
    if embeddings is not None:
        parts["the input embedding"] = {id(weight) for weight in embeddings.parameters()}
    if subject.kind not in ("embedding", "unknown"):
        parts["the head"] = {id(weight) for copies in head_weights(model).values() for weight in copies}
    return parts


def has_gradient(weight: nn.Parameter) -> bool:
    """Whether a weight has a gradient with an element other than zero."""
    return weight.grad is not None and bool(weight.grad.any())


def is_finite(weight: nn.Parameter) -> bool:
    """Whether a weight has no gradient, or one whose elements are all finite."""
    return weight.grad is None or bool(torch.isfinite(weight.grad.sum()))


def compute_loss(subject: TrainerSubject, number: int) -> torch.Tensor:
    """
    Returns the trainer's loss of a few records in training mode.

    Args:
        number: Number of the pass. The first one cuts two short records; the second takes two others as they are, so
            that other experts are chosen, and answers behind long prompts are seen; the third cuts several records.
    """
    features = subject.short_features[number * 2 :][:2] or subject.features[:PASS_ROWS]
    if subject.kind == "online":
        return prompt_loss(subject, features[0])
    if number in (0, PASSES - 1):
        cut = [shorten(feature, PASS_TOKENS) for feature in features]
        features = [short if has_trained_token(short) else feature for short, feature in zip(cut, features)]
    return subject.loss(subject.collate(features), train=True)


def prompt_loss(subject: TrainerSubject, feature: Mapping[str, Any]) -> torch.Tensor:
    """Returns the loss of a language model on a prompt: the trainer's own needs answers, whose rewards may be equal."""
    text = " ".join(texts_in(feature["prompt"]))
    ids = subject.tokenizer(text, return_tensors="pt")["input_ids"][:, :PASS_TOKENS].to(subject.device)
    subject.model.train()
    with subject.trainer.accelerator.autocast():
        return subject.model(input_ids=ids, labels=ids).loss


@contextlib.contextmanager
def without_zeros(model: nn.Module) -> Iterator[None]:
    """
    Fill trainable tensors that are all zero with small numbers inside the block.

    The B of a LoRA begins at zero, so that its A has no gradient at the first step and learns from the second on.
    """
    zeros = [weight for weight in model.parameters() if weight.requires_grad and not weight.any()]
    saved = [weight.detach().clone() for weight in zeros]
    try:
        for weight in zeros:
            weight.data.normal_(std=0.01)
        yield
    finally:
        for weight, values in zip(zeros, saved):
            weight.data.copy_(values)


@contextlib.contextmanager
def checkpointing_as_in_training(subject: TrainerSubject) -> Iterator[None]:
    """Switch activation checkpointing on inside the block, if the trainer will do so."""
    args, model = subject.args, subject.model
    modules = list(model.modules())
    attributes = [name for name in PRIVATE_NAMES if name != "_forward_hooks"]
    previous = [
        ({name: vars(module)[name] for name in attributes if name in vars(module)}, module._forward_hooks.copy())
        for module in modules
    ]
    try:
        if getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing:
            enable_checkpointing(args, model)
        yield
    finally:
        for module, (values, hooks) in zip(modules, previous):
            for name in attributes:
                vars(module).pop(name, None)
            vars(module).update(values)
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)


def enable_checkpointing(args: Any, model: Any) -> None:
    """Switch activation checkpointing on as `Trainer.train` does: transformers renamed it in 5.24."""
    if hasattr(model, "activation_checkpointing_enable") and hasattr(args, "activation_checkpointing"):
        options = dict(args.activation_checkpointing_kwargs or {})
        extra = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, **extra)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
