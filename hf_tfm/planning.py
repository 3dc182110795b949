"""
The way up: what a run costs in compute, memory and hours, by the usual formulas, before anything is rented.

Compute is 6 operations for each parameter and token (Kaplan et al. 2020, https://huggingface.co/papers/2001.08361) plus
attention's 12 · layers · width for each token and token of context. Activations follow Korthikanti et al. 2022
(https://huggingface.co/papers/2205.05198) with attention computed by a fused kernel.
"""

import math
from dataclasses import dataclass

from .configuration_tfm import TfmConfig
from .errors import InputError


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

# Bytes of optimizer state for each parameter: two fp32 moments, or one momentum for Muon's matrices.
OPTIMIZER_BYTES = {"adamw": 8, "muon": 4, "normuon": 4}


@dataclass(frozen=True)
class Plan:
    """What `plan` found out; sizes in bytes, compute in operations."""

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
    """Parameters of a model with an output head, without building it; a tied head counts once."""
    width, inner = config.hidden_size, config.intermediate_size
    heads, key_value = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = width * (2 * heads + 2 * key_value + config.num_attention_heads * config.attention_gate)
    feed_forward = width * inner * (3 if config.gated_mlp else 2)
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    pre_norm = config.norm_position == "pre"
    # Between embedding and blocks one norm takes the place of the other.
    outer = pre_norm + (config.embedding_norm and not pre_norm)
    norms = width * (2 * config.num_hidden_layers + outer) * (1 + config.norm_bias)
    if config.qk_norm:
        norms += 2 * config.head_dim * config.num_hidden_layers * (1 + config.norm_bias)
    residual = (width * key_value + config.num_hidden_layers) * config.value_residual
    biases = (heads + 2 * key_value + width) * config.attention_bias
    biases += (inner * (1 + config.gated_mlp) + width) * config.mlp_bias
    embeddings += _positions(config) + residual
    return embeddings + norms + config.num_hidden_layers * (attention + feed_forward + biases)


def _positions(config: TfmConfig) -> int:
    """Parameters of learned positions and segments."""
    learned = config.max_position_embeddings if config.position_embedding_type == "learned" else 0
    return (learned + config.type_vocab_size) * config.hidden_size


def plan(
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
) -> Plan:
    """
    Compute, memory and time of a pretraining run.

    Args:
        config: shape of the model.
        device: a name in `DEVICES`.
        tokens: to train on; 20 for each parameter by default (Hoffmann et al. 2022,
            https://huggingface.co/papers/2203.15556).
        devices: how many.
        rows, length: what one device computes at once.
        optimizer: a name in `OPTIMIZER_BYTES`; it decides the memory of the optimizer's state.
        sharded: weights, gradients and optimizer state divided among the devices (FSDP2) instead of copied (DDP).
        checkpointing: activations are computed again in the backward pass: a third more compute, far less memory.
        utilisation: share of the peak that training reaches; 0.3 to 0.5 is usual above 100 million parameters.

    Raises:
        InputError: the device or optimizer is unknown, or a number is not positive.
    """
    if device not in DEVICES:
        raise InputError(f"device {device!r} is unknown; choose one of {', '.join(DEVICES)}")
    if optimizer not in OPTIMIZER_BYTES:
        raise InputError(f"optimizer {optimizer!r} is unknown; choose one of {', '.join(OPTIMIZER_BYTES)}")
    parameters = count_parameters(config)
    tokens = 20 * parameters if tokens is None else tokens
    for name, value in {"tokens": tokens, "devices": devices, "rows": rows, "length": length}.items():
        if not value > 0 or math.isinf(value):
            raise InputError(f"{name} must be a positive number, not {value}")
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation must lie between 0 and 1, not {utilisation}")

    # The embedding is a lookup; the head, tied or not, is a product.
    lookup = _positions(config) + (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    attended = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    per_token = 6 * (parameters - lookup) + 12 * attended * length
    compute = per_token * tokens
    spent = compute * (4 / 3 if checkpointing else 1)

    share = devices if sharded else 1
    # fp32 weights and gradients, optimizer state; the bf16 copy that autocast makes of the weights.
    weights_and_state = parameters * (4 + 4 + OPTIMIZER_BYTES[optimizer]) / share + 2 * parameters
    activations = _activation_bytes(config, rows * length, checkpointing)
    peak = DEVICES[device].peak * utilisation * devices
    return Plan(
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


def _activation_bytes(config: TfmConfig, tokens: int, checkpointing: bool) -> float:
    """What is kept for the backward pass, two bytes a value, and the logits in fp32 with their gradient."""
    queries = config.num_attention_heads * config.head_dim
    key_values = 2 * config.num_key_value_heads * config.head_dim
    inner = config.intermediate_size * (4 if config.gated_mlp else 2)
    of_a_block = 2 * (4 * config.hidden_size + 2 * queries + key_values + inner)
    kept = 2 * config.hidden_size if checkpointing else of_a_block
    working = of_a_block if checkpointing else 0
    logits = config.vocab_size * (4 + 4 + 2)
    return tokens * (config.num_hidden_layers * kept + working + logits)
