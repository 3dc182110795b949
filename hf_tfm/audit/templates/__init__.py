"""Chat templates: `check.py` runs the checks, `turns.py` finds turns in rows of tokens."""
