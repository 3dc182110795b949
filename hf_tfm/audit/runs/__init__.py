"""Checks of a finished or stopped run. Read `preflight.py` first, then `folder.py`, which reads the log."""
