"""
Preflight: finds silent faults of data, of live trainers and of finished runs.

Start with `trainers/preflight.py`: it opens a trainer, runs the checks, and returns a `Report` (`report.py`). A check
is a function that takes a subject and the report, and adds findings to it. `catalogue.py` lists the codes of findings.

    trainers/    a live trainer: settings, rows, labels, batches, loss, weights, adapters, generation, resuming
    records/     data without a model: duplicates, splits, labels, leaks, encodings, lengths
    runs/        a finished or stopped run: its log and its last checkpoint
    templates/   chat templates, and the turns of rows; used by trainers and data alike
"""
