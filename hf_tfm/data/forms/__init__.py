"""
The forms of data files: one registry, one reader for all jobs.

    files → tables or lines (`data/tables.py`, `data/plain_text.py`) → a form, recognised by its fields and shape
          → records with the fields of the job (`jobs.py`) → the task that trains, measures or predicts

Each module imported here declares the forms of one job. `reader.py` recognises them and reads. To add a form, declare
it with `@rows`, `@lines` or `@paths` of `form.py` in the module of its job: its example is its test and its
documentation.
"""

from . import (  # noqa: F401
    chat,
    choices,
    class_exports,
    classes,
    inline_tags,
    pairs,
    preferences,
    prompts,
    questions,
    rasa,
    tag_columns,
    tag_spans,
    tags,
    text,
    translation,
)
