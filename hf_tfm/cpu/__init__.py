"""What makes this package fast on CPUs, attached from outside the models. Read `generation.py` first."""

from .generation import generate


__all__ = ["generate"]
