"""
Speed on CPUs: attention for training, encoding without padding, generation, compiling.

Models are used from outside: by attention implementations registered with transformers, and by `generate(model, …)`.
Read `generation.py` first.
"""

from .generation import generate


__all__ = ["generate"]
