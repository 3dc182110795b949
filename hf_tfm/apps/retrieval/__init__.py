"""Searching documents by vectors and by words, and answering questions with citations. Read `index.py` first."""
