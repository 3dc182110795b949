"""
What every other package may use: errors, atomic files, limits, statistics, versions.

Imports nothing else of this package. Read `errors.py` first: `InputError` is the one error that a user can mend.
"""
