"""
Contents of a saved model folder, of this package or native: opening, run record, card, verification, family tables.

Read `open.py` first. `families.py` contains the tables of the native families, `verify_checks.py` the
promises of a model.
"""
