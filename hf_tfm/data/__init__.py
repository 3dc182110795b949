"""
From files to batches: rows of files, documents, tokens, packing, objectives. `batch(step)` is a pure function of seed
and step.

Read `packing.py` first. `files.py` opens any data file; `tables.py` and `plain_text.py` read it; `sources.py` and
`records.py` read documents and records.
"""
