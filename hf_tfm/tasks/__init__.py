"""
What is learned, one file a task: how records are read, encoded, trained on, decided and measured.

Read `classification.py` first.
"""
