"""Checks of a live trainer. Read `preflight.py` first, then `subject.py`: what every check gets."""
