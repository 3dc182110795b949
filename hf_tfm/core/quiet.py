"""
Keeps messages of other libraries off the screen, so that a command's own lines can be read.

| context manager | around | silences |
|---|---|---|
| `quiet_imports` | the import of transformers in `hf_tfm/__init__.py` | torchao's and torch's notices on import |
| `quiet_command` | a command of ours, from its arguments to its exit code | these, deprecations, progress bars |
| `no_bars` | a trainer of another library that is made | all progress bars |
| `quiet` | one call whose result the caller reports in its own words | all warnings, transformers' bars |

Each of them restores loggers, filters and bars: a program that imports `hf_tfm` keeps its own settings. Errors are
always shown, and in commands the warnings about a user's data or settings. With `HF_TFM_VERBOSE=1` in the environment
nothing is silenced.
"""

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


# torchao, which transformers imports where it is installed, lists the kernels that were not built for this machine, and
# registers its types with torch in a deprecated way. No user of ours can change either.
_LOGGERS_AT_IMPORT = ("torchao", "torch.utils._pytree")
# They tell programmers what will change in a library; Python hides two of the three from users by default.
_FOR_PROGRAMMERS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)


def is_verbose() -> bool:
    """Whether the user wants to see all messages."""
    return os.environ.get("HF_TFM_VERBOSE", "0") not in ("", "0")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence the messages of torchao and torch about each other while they are imported."""
    if is_verbose():
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS_AT_IMPORT]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


@contextlib.contextmanager
def quiet_command(transformers_warnings: bool = True) -> Iterator[None]:
    """
    Show only a command's own output, errors, and warnings that a user can act on.

    Not shown are deprecation warnings (unless the user chose filters with `python -W` or `PYTHONWARNINGS`),
    transformers' progress bars, which count files of weights, and all progress bars where standard error is no
    terminal: there they fill log files with control characters.

    Args:
        transformers_warnings: whether warnings that transformers logs are shown, such as those about training.
    """
    if is_verbose():
        yield
        return
    from transformers.utils import logging as transformers_logging

    bars = contextlib.nullcontext() if sys.stderr.isatty() else no_bars()
    with quiet_imports(), warnings.catch_warnings(), bars, _transformers_settings():
        if not sys.warnoptions:
            for category in _FOR_PROGRAMMERS:
                warnings.simplefilter("ignore", category)
        transformers_logging.disable_progress_bar()
        if not transformers_warnings:
            transformers_logging.set_verbosity_error()
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars, tables and warnings; the caller reports what matters in a line of its own."""
    if is_verbose():
        yield
        return
    from transformers.utils import logging as transformers_logging

    with warnings.catch_warnings(), _transformers_settings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        yield


@contextlib.contextmanager
def _transformers_settings() -> Iterator[None]:
    """Restore transformers' verbosity and progress bars afterwards."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """
    Show no progress bars.

    tqdm reads its environment variable `TQDM_DISABLE` once, on import; later there is no switch for all bars.
    """
    from tqdm import tqdm

    if is_verbose():
        yield
        return
    original = tqdm.__init__
    tqdm.__init__ = _disabled(original)
    try:
        yield
    finally:
        tqdm.__init__ = original


def _disabled(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["disable"] = True
        init(self, *args, **kwargs)

    return disabled
