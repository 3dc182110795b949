"""Searching documents by meaning and words, and answering questions out of what was found."""
