"""`InputError`, the one error that a user can mend, and `explain`, which makes one of other libraries' errors."""

import argparse
import functools
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class InputError(ValueError):
    """A file, a field or a setting that the user gave is wrong.

    The message is one line that says what is wrong, where, and how to mend it. Library code raises it; every script
    and the `hf-tfm` command print it as `error: …` on standard error and exit with code 2, with nothing written.
    """


_MAX_REASON = 300


@functools.cache
def unreadable() -> tuple[type[Exception], ...]:
    """Errors that a damaged file, folder or setting may raise in Python, torch, transformers or safetensors."""
    # Imported where an error has happened: commands that read no model start without these libraries.
    import pickle

    import yaml
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        *(OSError, ValueError, RuntimeError, KeyError, EOFError, ImportError),
        *(SafetensorError, StrictDataclassError, pickle.UnpicklingError, yaml.YAMLError),
    )


@contextmanager
def explain(
    place: object, hint: str | Callable[[Exception], str] = "{reason}", *exceptions: type[Exception]
) -> Iterator[None]:
    """
    Turn other libraries' errors into one `InputError`, whose message is `place: hint`.

    Args:
        place: File, folder or option that the error comes from.
        hint: Text in which `{reason}` stands for the error's own message, or a function of the error that returns the
            text.
        exceptions: Classes to turn, those of `unreadable` by default. An `InputError` always passes unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not isinstance(error, exceptions or unreadable()):
            raise
        text = hint(error) if callable(hint) else hint.replace("{reason}", reason_of(error))
        raise InputError(f"{place}: {text}") from error


def reason_of(error: BaseException) -> str:
    """Returns an error's message in one line; for an error of the file system, what went wrong and with which file."""
    if "StrictDataclassError" in {kind.__name__ for kind in type(error).__mro__} and error.__cause__:
        error = error.__cause__  # the validators of configurations wrap the message that helps
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return textwrap.shorten(text, _MAX_REASON, placeholder=" …") or type(error).__name__


def cannot_write(hint: str) -> Callable[[Exception], str]:
    """Returns a hint for `explain` around writing a file: the reason without the name of a temporary file."""
    return lambda error: f"cannot be written ({getattr(error, 'strerror', None) or reason_of(error)}); {hint}"


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Exit with one `error: …` line if a script's imports miss a package of the extra `name`."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is not installed: pip install 'hf-tfm[{name}]'", file=sys.stderr)
        raise SystemExit(2) from None


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one `error: …` line with exit code 2, without its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")
