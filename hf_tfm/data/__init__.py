"""
From files to batches: rows of files, documents, tokens, packing, objectives. `batch(step)` is a pure function of seed
and step.

Read `packing.py` first. `readers.py` opens any data file; `sources.py` and `records.py` read documents and records.
"""
