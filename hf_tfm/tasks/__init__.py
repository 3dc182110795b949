"""
Tasks, one file each: how records are read, encoded, trained on, decided and measured.

Read `task.py` first, the protocol, then `tagging.py`, one task, and `fine_tune.py`, which trains any of them.
"""
