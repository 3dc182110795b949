"""Imports the modules that declare forms, so that the registry is complete; the order is that of their attempts."""

from . import choices, classes, questions, tag_columns, tag_spans, tags, text  # noqa: F401
