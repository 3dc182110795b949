"""The tested shapes of both models, and the tolerance of their outputs."""

import pytest
import torch
from tiny import (
    DECODER_SHAPES,
    ENCODER_SHAPES,
    MODELS,
)


SHAPES = [("Decoder", shape) for shape in DECODER_SHAPES] + [("Encoder", shape) for shape in ENCODER_SHAPES]


HEADS = [name for name in MODELS if "For" in name]


LENGTHS = (5, 9, 3)


CLOSE = dict(atol=2e-5, rtol=1e-4)


def logits_of(outputs) -> torch.Tensor:
    """Returns the first output of a head that is not the loss."""
    return next(value for name, value in outputs.items() if name != "loss")


def padded(rows: list[torch.Tensor], side: str, to: int, value: int) -> torch.Tensor:
    """Pads rows `(length,)` to a batch `(batch, to)`."""
    return torch.stack(
        [
            torch.nn.functional.pad(row, (to - len(row), 0) if side == "left" else (0, to - len(row)), value=value)
            for row in rows
        ]
    )


SHAPES_AND_BACKENDS = [
    *[(family, shape, attention) for family, shape in SHAPES for attention in ("eager", "sdpa")],
    # FlexAttention compiles its kernels, up to a minute for a shape; these have every kind of mask.
    *[
        pytest.param(family, shape, "flex_attention", marks=pytest.mark.slow)
        for family, shape in SHAPES
        if shape in ("qwen3", "mixed", "default", "modernbert")
    ],
]
