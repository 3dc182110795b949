"""
Estimates of what a pretraining run costs in compute, memory and hours, by the usual formulas.

Compute is 6 operations for each parameter and token (Kaplan et al. 2020, https://huggingface.co/papers/2001.08361) plus
attention's 12 · width for each token and token of context in each layer. Activations follow Korthikanti et al. 2022
(https://huggingface.co/papers/2205.05198) with attention computed by a fused kernel, and the loss over blocks of tokens
(`linear_cross_entropy`). Parameters are those of the model, built on torch's meta device, where it takes no memory.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core.errors import InputError
from ...models.configuration_tfm import TfmConfig, TfmEncoderConfig
from ...models.modeling_tfm_decoder import TfmDecoderForCausalLM
from ...models.modeling_tfm_encoder import TfmEncoderForMaskedLM
from ...train.parameters import parameter_kinds


@dataclass(frozen=True)
class Device:
    """Dense bf16 (T4: fp16) peak in operations a second, and memory in bytes, from the makers' data sheets."""

    name: str
    peak: float
    memory: float


DEVICES = {
    "t4": Device("T4", 65e12, 16e9),
    "l4": Device("L4", 121e12, 24e9),
    "rtx4090": Device("RTX 4090", 165e12, 24e9),
    "a100-40": Device("A100 40 GB", 312e12, 40e9),
    "a100": Device("A100 80 GB", 312e12, 80e9),
    "h100": Device("H100 SXM", 989e12, 80e9),
    "h200": Device("H200", 989e12, 141e9),
}

# Bytes of optimizer state for each parameter in the layers' matrices: two fp32 moments, or one momentum for Muon, which
# leaves all others to AdamW.
OPTIMIZER_BYTES = {"adamw": 8, "muon": 4, "normuon": 4}

# Rows of logits that `LinearLoss` computes at once on a GPU, and bytes that it holds for each logit: itself in
# bf16 and fp32, its probability, that of the rows before, which are still there, and its gradient.
_LOGIT_ROWS, _LOGIT_BYTES = 4096, 2 + 4 + 4 + 4 + 2


@dataclass(frozen=True)
class TrainingCost:
    """Result of `estimate_cost`; sizes in bytes, compute in floating-point operations."""

    parameters: int
    tokens: int
    devices: int
    device: Device
    compute: float
    weights_and_state: float
    activations: float
    memory_per_device: float
    sharded: bool
    checkpointing: bool
    hours: float
    tokens_per_second: float

    @property
    def fits(self) -> bool:
        """Whether a device has the memory, with a tenth left for the allocator and the framework."""
        return self.memory_per_device <= 0.9 * self.device.memory

    def __str__(self) -> str:
        how = ["FSDP2" if self.sharded else "DDP" if self.devices > 1 else "one process"]
        how += ["activation checkpointing"] if self.checkpointing else []
        rows = {
            "parameters": f"{self.parameters / 1e6:,.1f} million",
            "tokens": f"{self.tokens / 1e9:,.3g} billion ({self.tokens / self.parameters:.0f} for each parameter)",
            "compute": f"{self.compute:.3g} operations",
            "devices": f"{self.devices} x {self.device.name}, {', '.join(how)}",
            "memory a device": f"{self.memory_per_device / 1e9:.1f} of {self.device.memory / 1e9:.0f} GB"
            + ("" if self.fits else "  DOES NOT FIT: shard, checkpoint activations, or take smaller rows"),
            "speed": f"{self.tokens_per_second:,.0f} tokens/s",
            "time": f"{self.hours:,.1f} hours ({self.hours * self.devices:,.1f} device hours)",
        }
        return "\n".join(f"{name:16} {value}" for name, value in rows.items())


def count_parameters(config: TfmConfig) -> int:
    """Return the parameters of the causal LM, or of an encoder's masked LM; a tied head counts once."""
    return _on_meta(config).num_parameters()


def _on_meta(config: TfmConfig) -> TfmDecoderForCausalLM | TfmEncoderForMaskedLM:
    with torch.device("meta"):
        return TfmEncoderForMaskedLM(config) if isinstance(config, TfmEncoderConfig) else TfmDecoderForCausalLM(config)


def attended_tokens(config: Any, layer: int, length: int) -> int:
    """Return the number of tokens that a token of a full context attends to in a layer."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    # Without kinds all layers slide, as Mistral's do, unless there is a switch for it, which Qwen2's relatives have.
    sliding = kinds[layer] == "sliding_attention" if kinds else getattr(config, "use_sliding_window", True)
    if not window or not sliding:
        return length
    # The window of these encoders is on each side of the token.
    is_bidirectional = config.model_type in ("tfm_encoder", "modernbert")
    return min(2 * window + 1 if is_bidirectional else window, length)


def estimate_cost(
    config: TfmConfig,
    device: str,
    tokens: float | None = None,
    devices: int = 1,
    rows: int = 8,
    length: int = 1024,
    optimizer: str = "muon",
    sharded: bool = False,
    checkpointing: bool = False,
    utilisation: float = 0.35,
) -> TrainingCost:
    """
    Estimate compute, memory and time of a pretraining run.

    Args:
        config: shape of the model.
        device: a name in `DEVICES`.
        tokens: training tokens; by default 20 for each parameter (Hoffmann et al. 2022,
            https://huggingface.co/papers/2203.15556).
        devices: number of devices.
        rows, length: rows that one device computes at once, and their tokens.
        optimizer: a name in `OPTIMIZER_BYTES`; it determines the memory of the optimizer's state.
        sharded: weights, gradients and optimizer state divided among the devices (FSDP2) instead of copied (DDP).
        checkpointing: recompute activations in the backward pass: a third more compute, far less memory.
        utilisation: share of the peak that training reaches; 0.3 to 0.5 is usual above 100 million parameters.

    Raises:
        InputError: the device or optimizer is unknown, or a number is not positive.
    """
    if device not in DEVICES:
        raise InputError(f"device {device!r} is unknown; choose one of {', '.join(DEVICES)}")
    if optimizer not in OPTIMIZER_BYTES:
        raise InputError(f"optimizer {optimizer!r} is unknown; choose one of {', '.join(OPTIMIZER_BYTES)}")
    model = _on_meta(config)
    parameters = model.num_parameters()
    tokens = 20 * parameters if tokens is None else tokens
    for name, value in {"tokens": tokens, "devices": devices, "rows": rows, "length": length}.items():
        if not value > 0 or math.isinf(value):
            raise InputError(f"{name} must be a positive number, not {value}")
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation must lie between 0 and 1, not {utilisation}")

    # Embeddings are looked up; the head, tied or not, is a product.
    lookup = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    lookup -= config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    assert config.head_dim is not None  # set by the configuration
    context = sum(attended_tokens(config, layer, length) for layer in range(config.num_hidden_layers))
    per_token = 6 * (parameters - lookup) + 12 * config.num_attention_heads * config.head_dim * context
    compute = per_token * tokens
    spent = compute * (4 / 3 if checkpointing else 1)

    weights_and_state: float = parameters * (4 + 4) + _state_bytes(model, optimizer)  # fp32 weights and gradients
    if sharded:
        # One layer at a time is gathered, beside all weights outside the layers: bf16 weights and unreduced gradients.
        whole = parameters - sum(weight.numel() for weight in model.model.layers[:-1].parameters())
        weights_and_state = weights_and_state / devices + whole * (2 + 2)
    else:
        weights_and_state += 2 * parameters  # the bf16 copy of autocast
    activations = _activation_bytes(config, rows * length, checkpointing)
    peak = DEVICES[device].peak * utilisation * devices
    return TrainingCost(
        parameters=parameters,
        tokens=int(tokens),
        devices=devices,
        device=DEVICES[device],
        compute=compute,
        weights_and_state=weights_and_state,
        activations=activations,
        memory_per_device=weights_and_state + activations,
        sharded=sharded,
        checkpointing=checkpointing,
        hours=spent / peak / 3600,
        tokens_per_second=tokens / (spent / peak),
    )


def _state_bytes(model: nn.Module, optimizer: str) -> int:
    """Return the bytes of the optimizer's state."""
    kinds, size = parameter_kinds(model), 0
    for name, weight in model.named_parameters():
        algorithm = optimizer if kinds[name] == "matrices" else "adamw"
        size += OPTIMIZER_BYTES[algorithm] * weight.numel()
        size += 4 * len(weight) if algorithm == "normuon" else 0  # the mean square of each row
    return size


def _activation_bytes(config: TfmConfig, tokens: int, checkpointing: bool) -> float:
    """Return the bytes of activations kept for the backward pass, two per value, and of the loss at its peak."""
    # Set by the configuration.
    assert config.head_dim is not None and config.num_key_value_heads is not None
    assert config.intermediate_size is not None
    queries = config.num_attention_heads * config.head_dim
    key_values = 2 * config.num_key_value_heads * config.head_dim
    inner = config.intermediate_size * (4 if config.gated_mlp else 2)
    of_a_block = 2 * (4 * config.hidden_size + 2 * queries + key_values + inner)
    kept = config.num_hidden_layers * (2 * config.hidden_size if checkpointing else of_a_block)
    # The loss computes its gradients in the forward pass: those of the states, and of the whole head in fp32.
    gradients = 2 * config.hidden_size * tokens + 4 * config.vocab_size * config.hidden_size
    logits = _LOGIT_BYTES * config.vocab_size * min(tokens, _LOGIT_ROWS)
    # Logits are freed before blocks are recomputed.
    return tokens * kept + gradients + max(logits, tokens * of_a_block if checkpointing else 0)
