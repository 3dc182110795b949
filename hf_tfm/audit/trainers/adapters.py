"""PEFT adapters: active, complete when saved, equal when merged."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...core.errors import reason_of
from ...core.inference import evaluation_mode, unwrap_adapter
from ...core.quiet import quiet
from ..report import Report
from .gradients import without_zeros
from .model_parts import input_embeddings, plain_name
from .subject import TrainerSubject, relative_difference, tolerance


MERGED_BYTES = 2 << 30  # largest copy of a few layers that is merged


def check_adapter(subject: TrainerSubject, report: Report) -> None:
    """Add findings about the adapter of a PEFT model."""
    if not subject.is_adapted:
        return
    active = active_adapters(subject.model)
    report.facts["adapters"] = ", ".join(
        f"{name} ({getattr(config.peft_type, 'value', config.peft_type)}{'' if name in active else ', not active'})"
        for name, config in subject.model.peft_config.items()
    )
    if check_active(subject, active, report):
        check_saved_state(subject, active, report)
        check_merge(subject, report)


def active_adapters(model: Any) -> list[str]:
    """Returns the names of the adapters that a model computes with."""
    active = model.active_adapters
    return [active] if isinstance(active, str) else list(active() if callable(active) else active)


def adapter_layers(model: nn.Module) -> list[Any]:
    """Returns the layers that an adapter put into a model; none for prompts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def check_active(subject: TrainerSubject, active: list[str], report: Report) -> bool:
    """P411: adapters that are disabled, frozen or already merged. Returns whether all adapters are active."""
    model, layers = subject.model, adapter_layers(subject.model)
    disabled = [layer for layer in layers if layer.disable_adapters]
    if layers and (len(disabled) == len(layers) or not active):
        report.add("P411", f"all {len(layers)} layers of the adapter are switched off")
        return False
    if disabled:
        report.add("P411", f"{len(disabled)} of {len(layers)} layers of the adapter are switched off")
    if merged := [layer for layer in layers if layer.merged]:
        report.add(
            "P411",
            f"the adapter is merged in {len(merged)} of {len(layers)} layers, which compute without it",
            mend="Call model.unmerge_adapter().",
        )
        return False
    weights = [weight for name, weight in model.named_parameters() if belongs_to_adapter(name, active)]
    if weights and not any(weight.requires_grad for weight in weights):
        report.add(
            "P411",
            f"all {len(weights)} tensors of the active adapter {', '.join(active)} are frozen",
            why="The adapter stays as it is.",
            mend="Load it by PeftModel.from_pretrained(..., is_trainable=True).",
        )
        return False
    return True


def belongs_to_adapter(name: str, adapters: list[str]) -> bool:
    """Whether a weight of a PEFT model belongs to one of these adapters."""
    return name.startswith("prompt_encoder.") or any(
        f".{adapter}." in name or name.endswith(f".{adapter}") for adapter in adapters
    )


def check_saved_state(subject: TrainerSubject, active: list[str], report: Report) -> None:
    """P413: trainable weights that a saved adapter does not contain."""
    from peft import get_peft_model_state_dict

    model = subject.model
    saved: dict[str, torch.Tensor] = {}
    with quiet():
        for adapter in active:
            saved |= get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    places = {tensor.data_ptr() for tensor in saved.values()}
    embeddings = {id(weight) for weight in embedding_weights(subject)}
    lost, unsure = [], []
    for name, weight in model.named_parameters():
        if not weight.requires_grad or weight.data_ptr() in places or belongs_to_adapter(name, active):
            continue
        (unsure if id(weight) in embeddings else lost).append(name)
    if lost:
        report.add("P413", f"{len(lost)} trainable tensors are not part of the adapter", plain_name(lost[0]))
    if unsure:
        report.add(
            "P413",
            "the embeddings are trainable but not part of the adapter",
            plain_name(unsure[0]),
            level="warning",
            mend="Name them in modules_to_save, or save with save_embedding_layers=True.",
        )


def embedding_weights(subject: TrainerSubject) -> Iterator[nn.Parameter]:
    """Yields the weights of input and output embeddings."""
    model = subject.pretrained
    if model is not None:
        for module in (input_embeddings(model), model.get_output_embeddings()):
            if module is not None:
                yield from module.parameters()


def check_merge(subject: TrainerSubject, report: Report) -> None:
    """P410: outputs of a few layers change when the adapter is merged, or when merged weights are tied again."""
    if not adapter_layers(subject.model):
        report.cannot_see("whether the adapter can be merged: it adds no weights to layers")
        return
    if getattr(subject.base, "is_quantized", False):
        report.cannot_see("whether the adapter can be merged: the base is quantized")
        return
    with subject.few_layers(2), without_zeros(subject.model):
        size = sum(weight.numel() * weight.element_size() for weight in subject.model.parameters())
        if size > MERGED_BYTES:
            report.cannot_see(f"whether the adapter can be merged: two layers take {size >> 20:,} MiB")
            return
        inputs = tokens_to_compute(subject)
        expected = compute(subject.model, inputs)
        double = copy.deepcopy(subject.model)
        for module in double.modules():
            vars(module).pop("forward", None)  # TRL and accelerate put functions there that compute with the original
        with quiet():
            try:
                merged = merge(double)
            except (NotImplementedError, AttributeError, ValueError) as error:
                report.cannot_see(f"whether the adapter can be merged: {reason_of(error)}")
                return
            differences = {"merged": relative_difference(compute(merged, inputs), expected)}
            if getattr(merged.config, "tie_word_embeddings", False):
                merged.tie_weights()
                differences["merged and tied again"] = relative_difference(compute(merged, inputs), expected)
    for state, difference in differences.items():
        if difference > tolerance(subject.model):
            report.add("P410", f"outputs of the model {state} differ by {difference:.1%} from those with the adapter")
            return


def merge(model: Any) -> Any:
    """Returns a model with its active adapters merged into the weights."""
    if hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    for layer in adapter_layers(model):
        layer.merge()
    return unwrap_adapter(model)


def tokens_to_compute(subject: TrainerSubject) -> dict[str, torch.Tensor]:
    """Returns two rows of 16 tokens, drawn evenly from the vocabulary."""
    vocabulary = subject.base.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, 16), generator=generator).to(subject.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if subject.base.config.is_encoder_decoder else {})


def compute(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns a model's first output in evaluation mode."""
    with evaluation_mode(model):
        return model(**inputs)[0]
