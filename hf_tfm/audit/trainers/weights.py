"""Weights that shall learn: which they are, their dtype, ties, origin, and the optimizer that holds them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from ..report import Report
from .model_parts import (
    base_weight,
    body_prefix,
    head_weights,
    input_embeddings,
    layer_prefixes,
    plain_name,
)
from .origin import Comparison, compare_with_checkpoint, is_constant
from .subject import TrainerSubject


_HALF = (torch.bfloat16, torch.float16)
_TASKS = ("classification", "tokens", "questions", "choices", "reward")


def check_weights(subject: TrainerSubject, report: Report) -> None:
    """Add findings about the weights that learn, without computing with the model."""
    trainable = {name: weight for name, weight in subject.model.named_parameters() if weight.requires_grad}
    count_weights(subject, report, trainable)
    if not trainable:
        return
    check_dtype(subject, report, trainable)
    check_optimizer(subject, report, trainable)
    model = subject.pretrained
    if model is None:
        report.cannot_see("the origin of the weights: the model is not a model of transformers")
        return
    check_ties(model, report)
    comparison = compare_with_checkpoint(model)
    if comparison is None:
        report.cannot_see("whether all weights were loaded: the model names no safetensors on this machine")
    else:
        check_origin(model, comparison, report)
    check_new_layers(model, report)
    check_head(subject, model, comparison, report)
    check_new_tokens(subject, model, comparison, report)


def count_weights(subject: TrainerSubject, report: Report, trainable: dict[str, nn.Parameter]) -> None:
    """P408, P409: no weights or few weights are trainable."""
    everything = list(subject.model.parameters())
    learning, total = sum(map(torch.numel, trainable.values())), sum(map(torch.numel, everything))
    dtypes = Counter[str]()
    for weight in trainable.values():
        dtypes[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    report.facts["weights that learn"] = f"{learning:,} of {total:,} ({', '.join(dtypes) or 'none'})"
    if not trainable:
        report.add("P408", f"none of {total:,} weights requires a gradient")
    elif learning < total / 2 and not subject.is_adapted:
        parts = ", ".join(sorted({part_of(name) for name in trainable})[:6])
        report.add("P409", f"{learning:,} of {total:,} weights ({learning / total:.1%}) are trainable", parts)


def part_of(name: str) -> str:
    """Returns the part of a model that a weight belongs to: its name without numbers of layers and ending."""
    return re.sub(r"\.\d+(?=\.)", "", plain_name(name)).rpartition(".")[0]


def learning_rate(subject: TrainerSubject) -> float:
    """Returns the highest rate of the optimizer, or of the settings if there is no optimizer yet."""
    optimizer = subject.trainer.optimizer
    if optimizer is None:
        return subject.args.learning_rate
    return max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)


def is_adam(trainer: Trainer) -> bool:
    """Whether the optimizer is Adam or AdamW, whose updates are about as large as the rate."""
    if trainer.optimizer is not None:
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        return type(inner).__name__ in ("Adam", "AdamW", "NAdam", "RAdam", "Adam8bit", "AdamW8bit", "PagedAdamW")
    if trainer.optimizer_cls_and_kwargs is not None:
        return issubclass(trainer.optimizer_cls_and_kwargs[0], torch.optim.Adam | torch.optim.AdamW)
    return "adamw" in str(getattr(trainer.args.optim, "value", trainer.args.optim))


def check_dtype(subject: TrainerSubject, report: Report, trainable: dict[str, nn.Parameter]) -> None:
    """P403, P412: steps that round to nothing, and half precision under a gradient scaler."""
    half = {name: weight for name, weight in trainable.items() if weight.dtype in _HALF}
    fp16 = [name for name, weight in half.items() if weight.dtype == torch.float16]
    if fp16 and subject.args.fp16:
        report.add(
            "P412", f"{len(fp16)} of {len(trainable)} trainable tensors are fp16, but fp16=True needs fp32", fp16[0]
        )
        return
    keeps_masters = subject.trainer.is_deepspeed_enabled or subject.trainer.is_fsdp_enabled
    if not half or keeps_masters or not is_adam(subject.trainer) or "stochastic" in str(subject.args.optim_args):
        return
    rate = learning_rate(subject)
    lost = sum(rounded_updates(weight, rate) * weight.numel() for weight in half.values())
    share = lost / sum(map(torch.numel, half.values()))
    if share > 0.5:
        dtype = str(next(iter(half.values())).dtype).removeprefix("torch.")
        report.add(
            "P403", f"{share:.0%} of the weights stored in {dtype} do not change by a step of the rate {rate:.1e}"
        )
    elif fixed := [name for name, weight in half.items() if rounded_updates(weight, rate) > 0.99]:
        report.add("P403", f"steps of the rate {rate:.1e} do not change {len(fixed)} tensors", fixed[0], level="note")


def rounded_updates(weight: torch.Tensor, rate: float) -> float:
    """Returns the share of a tensor's elements that neither +rate nor -rate changes."""
    values = weight.detach().flatten()[:: max(1, weight.numel() // 4096)].float()
    unchanged = [(values + step).to(weight.dtype).float() == values for step in (rate, -rate)]
    return (unchanged[0] & unchanged[1]).float().mean().item()


def check_optimizer(subject: TrainerSubject, report: Report, trainable: dict[str, nn.Parameter]) -> None:
    """P407: an optimizer that was made for other weights."""
    optimizer = subject.trainer.optimizer
    if optimizer is None:
        return
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    of_model = {id(weight) for weight in subject.model.parameters()}
    of_loss = {name: weight for name, weight in loss_weights(subject.trainer) if id(weight) not in of_model}
    foreign = held - of_model - set(map(id, of_loss.values()))
    learning = trainable | {name: weight for name, weight in of_loss.items() if weight.requires_grad}
    missing = [name for name, weight in learning.items() if id(weight) not in held]
    if missing:
        what = f"{len(missing)} of {len(learning)} tensors that learn are not in the optimizer"
        report.add("P407", what + (f", which holds {len(foreign)} of another model" if foreign else ""), missing[0])
    elif foreign:
        report.add("P407", f"{len(foreign)} of {len(held)} tensors in the optimizer are not the model's")


def loss_weights(trainer: Trainer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the weights of losses that are modules, as trainers of sentence-transformers have them."""
    losses = getattr(trainer, "loss", None)
    for name, loss in losses.items() if isinstance(losses, Mapping) else [("loss", losses)]:
        if isinstance(loss, nn.Module):
            yield from loss.named_parameters(prefix=name)


def check_ties(model: PreTrainedModel, report: Report) -> None:
    """P404: input and output embeddings that are one by the configuration and two in the model, or the reverse."""
    head = model.get_output_embeddings()
    # A model of an encoder and a decoder of their own ties inside of the decoder.
    inner = [part for part in model.modules() if isinstance(part, PreTrainedModel) and head is not None]
    model = [part for part in [model, *inner] if part.get_output_embeddings() is head][-1]
    output = base_weight(head)
    inputs = base_weight(input_embeddings(model))
    tied = getattr(model.config, "tie_word_embeddings", None)
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", None) if tied is None else tied
    if output is None or inputs is None or tied is None:
        return
    if tied and inputs is not output and inputs.data_ptr() != output.data_ptr():
        sizes = f" of {len(inputs):,} and {len(output):,} rows" if len(inputs) != len(output) else ""
        report.add("P404", f"tie_word_embeddings is true, but the model has two matrices{sizes}")
    elif not tied and inputs is output:
        report.add(
            "P404",
            "tie_word_embeddings is false, and input and output embeddings are one matrix",
            level="note",
            why="A loaded model has two matrices.",
            mend="Set tie_word_embeddings=True, if this is meant.",
        )
    elif len(inputs) != len(output):
        report.add(
            "P404",
            f"the input embeddings have {len(inputs):,} rows, the output has {len(output):,}",
            level="note",
            why="Tokens of the rest can be read or written only.",
            mend="Nothing, if this is meant.",
        )


def check_origin(model: PreTrainedModel, comparison: Comparison, report: Report) -> None:
    """P405: weights that the checkpoint does not have, or that are not what it has."""
    prefix = body_prefix(model)
    new = sorted(name for name in comparison.missing if name.startswith(prefix) and "pooler" not in name)
    if not model.base_model_prefix and len(new) < len(list(model.parameters())):
        new = []  # the class does not say where its head begins
    heads = sorted(set(comparison.missing) - set(new))
    if new:
        report.add("P405", f"{len(new)} tensors are not in {comparison.source}", new[0])
    output = model.get_output_embeddings()
    output_names = {plain_name(name) for name, module in model.named_modules() if module is output}
    if lost := [name for name in heads if name.rpartition(".")[0] in output_names]:
        report.add("P405", f"the output layer is not in {comparison.source}", lost[0], level="warning")
    elif heads:
        report.facts["new weights"] = ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")
    if not comparison.unlike:
        return
    what = f"{len(comparison.unlike)} of {len(comparison.unlike) + len(comparison.alike)} matrices are unlike those in"
    where, mend = comparison.unlike[0], "See whether they were initialized again after from_pretrained."
    if comparison.alike or comparison.is_loaded:
        report.add("P405", f"{what} {comparison.source}", where, why="These weights are random.", mend=mend)
    else:
        report.add(
            "P405",
            f"{what} {comparison.source}, whose configuration the model has",
            where,
            level="warning",
            why="The model is new.",
            mend="Nothing, if this is meant; else load it by from_pretrained instead of from_config.",
        )


def check_new_layers(model: PreTrainedModel, report: Report) -> None:
    """P405: layers whose norms are all constant, as new ones are, between layers whose norms are trained."""
    weights = dict(model.named_parameters())
    states: dict[str, bool] = {}
    for prefix in layer_prefixes(model):
        norms = [
            is_constant(weight.detach())
            for name, weight in weights.items()
            if name.startswith(prefix) and weight.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
        ]
        if norms and (all(norms) or not any(norms)):
            states[prefix] = all(norms)
    new = [prefix.rstrip(".") for prefix, is_new in states.items() if is_new]
    if new and len(new) <= len(states) / 2:
        report.add("P405", f"the norms of {len(new)} of {len(states)} layers are constant, as in new layers", new[0])


def check_head(subject: TrainerSubject, model: PreTrainedModel, comparison: Comparison | None, report: Report) -> None:
    """P402: a head of the task that stays random."""
    heads = head_weights(model)
    if subject.kind not in _TASKS or not heads:
        return
    frozen = [name for name, copies in heads.items() if not any(weight.requires_grad for weight in copies)]
    if len(frozen) < len(heads):
        return
    if comparison is not None:
        new = [name for name in frozen if name in comparison.missing or name in comparison.resized]
        if new:
            report.add(
                "P402", f"{len(new)} tensors of the head are new, but no weight of the head is trainable", new[0]
            )
        return
    biases = [heads[name][0] for name in frozen if name.endswith("bias")]
    if biases and all(not bias.any() for bias in biases):
        report.add("P402", "the head is frozen, and its biases are zero, as in a new head", frozen[0])
    else:
        report.add("P402", "the head is frozen, and may be new", frozen[0], level="warning")


def check_new_tokens(
    subject: TrainerSubject, model: PreTrainedModel, comparison: Comparison | None, report: Report
) -> None:
    """P406: tokens of the data whose embeddings are not trained yet, and never will be."""
    module = input_embeddings(model)
    matrix = base_weight(module)
    if module is None or matrix is None or not matrix.is_floating_point() or not subject.rows:
        return
    learning = trained_tokens(module)
    if learning is None:
        return
    used = Counter(token for row in subject.rows for token in set(row.input_ids) if token < len(matrix))
    # Packed rows may end with padding that no mask hides; its embedding is zero in many models.
    config = model.config.get_text_config()
    pad, ends = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    if pad is not None and pad not in (ends if isinstance(ends, list) else [ends]):
        used.pop(pad, None)
    used = Counter({token: count for token, count in used.items() if token not in learning})
    name = next(plain_name(name) for name, other in model.named_modules() if other is module) + ".weight"
    old_rows = comparison.resized.get(name, matrix.shape)[0] if comparison else len(matrix)
    untrained = untrained_rows(matrix.detach())
    new = [token for token in used if untrained[token] or token >= old_rows]
    if new:
        names = subject.tokenizer.convert_ids_to_tokens(new[:4]) if subject.tokenizer else [str(new[0])]
        rows = max(used[token] for token in new)
        report.add(
            "P406",
            f"{len(new)} tokens in up to {rows} of {len(subject.rows)} rows have new embeddings that are frozen",
            ", ".join(repr(name) for name in names),
        )


def trained_tokens(module: nn.Module) -> set[int] | None:
    """Returns tokens whose embeddings learn, if the whole matrix does not; None if it does."""
    adapter = getattr(module, "token_adapter", None)
    if adapter is not None:
        return {token for tokens in adapter.token_indices.values() for token in tokens}
    return None if any(weight.requires_grad for weight in module.parameters()) else set()


def untrained_rows(matrix: torch.Tensor) -> torch.Tensor:
    """
    Returns, of shape (rows,), whether a row of embeddings is zero, equal to another row, or the mean of all.

    `resize_token_embeddings` draws new rows around the mean of the old ones, with a variance of 1e-9 of theirs.
    """
    mean = matrix.mean(0, dtype=torch.float32)
    keys, distances = [], []
    for rows in matrix.split(8192):
        rows = rows.float()
        keys.append(rows @ torch.linspace(1, 2, matrix.shape[1], device=matrix.device))
        distances.append((rows - mean).norm(dim=1))
    key, distance = torch.cat(keys), torch.cat(distances)
    _, places, counts = key.unique(return_inverse=True, return_counts=True)
    return (counts[places] > 1) | (distance < 0.05 * distance.median()) | (key == 0)
