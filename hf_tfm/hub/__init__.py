"""Publishing model folders on the Hub. Read `push.py` first: it checks a folder before it leaves the machine."""
