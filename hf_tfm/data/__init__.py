"""
From text to batches: sources, tokens, packing, objectives. `batch(step)` is a pure function of seed and step.

Read `packing.py` first; `sources.py` and `records.py` read files.
"""
