"""Checks of data without a model. Read `preflight.py` first, then `subject.py`: what every check gets."""
