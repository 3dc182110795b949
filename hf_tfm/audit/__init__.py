"""
Preflight: finds silent faults of data, of live trainers and of finished runs.

Start with `preflight.py`: it opens the subject, runs the checks, and returns a `Report`. A check is a function that
takes the subject and the report, and adds findings to it. `catalogue.py` lists the codes of all findings.
"""
