"""Publishes folders on the Hub. Read `push.py` first: it checks a folder before the upload."""
