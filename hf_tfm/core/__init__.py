"""
The base of every other package: errors, atomic files, limits, statistics, versions.

It imports nothing else of `hf_tfm`. Read `errors.py` first: `InputError` is the one error that a user can mend.
"""
