"""
Programs for people: the `hf-tfm` command, chat, demo page, inspection, retrieval, ablations.

Nothing imports this package. Read `cli/app.py` first.
"""
