"""
Speed on CPUs: attention for training, encoding without padding, generation, compiling.

Models are used from outside: by attention implementations registered with transformers, and by `generate(model, …)`.
Read `generation.py` first.
"""

from .attention import enable_blockwise_attention, enable_unpadded_training
from .compile import compile_blocks
from .encoding import enable_unpadded_encoding
from .generation import generate


__all__ = [
    "compile_blocks",
    "enable_blockwise_attention",
    "enable_unpadded_encoding",
    "enable_unpadded_training",
    "generate",
]
