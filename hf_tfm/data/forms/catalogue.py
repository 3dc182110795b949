"""Imports the modules that declare forms, so that the registry is complete; the order is that of their attempts."""

from . import choices, classes, pairs, questions, tags, text  # noqa: F401
