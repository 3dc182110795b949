"""
What a saved model folder holds, ours or a native one: family tables, run record, card, opening, verifying.

Read `open.py` first; `families.py` holds the tables of the native families.
"""
