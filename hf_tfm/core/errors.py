"""The one error a person can mend: command lines print it as one line and exit with code 2."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class InputError(ValueError):
    """Something a person gave (a file, a field, a setting) is wrong.

    The message is one line that says what is wrong, where, and how to mend it. Library code raises it; every script
    and the `hf-tfm` command print it as `error: …` on standard error and exit with code 2, with nothing written.
    """


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around a script's imports: without the packages of the extra `name` it ends in one such line, at once."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is not installed: pip install 'hf-tfm[{name}]'", file=sys.stderr)
        raise SystemExit(2) from None


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one `error: …` line and exit code 2, without its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")
