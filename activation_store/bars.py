"""Progress bars are for terminals: who serves a model has a log, where every step of a bar would be a line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

# Several threads may load models; the constructor that is put back must be tqdm's own.
_lock = threading.RLock()


def at_terminal() -> bool:
    """Whether somebody sees standard error as it is written."""
    return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]


@contextmanager
def bars_at_terminals() -> Generator[None]:
    """Let libraries that take no such option draw their bars at a terminal only; for one thread at a time."""
    if at_terminal():
        yield
        return
    import tqdm

    bar: Any = tqdm.tqdm
    with _lock:
        original = bar.__init__
        # The way that tqdm's own documentation gives; what is disabled explicitly stays so.
        bar.__init__ = partialmethod(original, disable=True)
        try:
            yield
        finally:
            bar.__init__ = original
