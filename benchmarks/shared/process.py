"""Run something in a process of its own, under a limit if one is given, and watch its memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_INTERVAL_S = 0.005


class _Sender(Protocol):
    def send(self, obj: Any, /) -> None: ...


@dataclass(frozen=True)
class Usage:
    """What a process used.

    Parameters
    ----------
    ready_nbytes : int
        RssAnon, the memory that belongs to no file, when the process said that it begins.
    peak_nbytes : int
        The most after that, looked at every 5 ms.
    exit_code : int
        0: done.
    message : str
        Last line that it wrote; empty where there is none.
    """

    ready_nbytes: int
    peak_nbytes: int
    exit_code: int
    message: str


def watch(task: Callable[..., None], *arguments: Any, log: Path, limit_nbytes: int | None = None) -> Usage:
    """Run a task to its end.

    Parameters
    ----------
    task : callable
        Of a module. Its first argument is a function that it calls when it begins with what is to be watched.
    *arguments
        The others.
    log : Path
        Takes what it writes to stdout and stderr.
    limit_nbytes : int, optional
        Most anonymous memory (RLIMIT_DATA): what is asked for beyond it is refused, though it were never touched.
    """
    context = multiprocessing.get_context("forkserver")
    # Imported once, in the process that all others are forked from: for each of them it would take many seconds.
    context.set_forkserver_preload([task.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, log, limit_nbytes, task, arguments))
    process.start()
    sender.close()
    ready = 0
    try:
        # The end of the pipe, without a figure: it ended before it was ready.
        with suppress(EOFError):
            ready = receiver.recv()
        peak = ready
        while process.is_alive():
            peak = max(peak, _anonymous_nbytes(process.pid or 0))
            time.sleep(_INTERVAL_S)
    finally:
        process.kill()
        process.join()
    lines = log.read_text(errors="replace").split("\n")
    message = next((line for line in reversed(lines) if line.strip()), "")
    return Usage(ready, peak, process.exitcode or 0, message)


def _run(
    sender: _Sender, log: Path, limit_nbytes: int | None, task: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if limit_nbytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_nbytes, limit_nbytes))
    task(lambda: sender.send(_anonymous_nbytes(os.getpid())), *arguments)


def _anonymous_nbytes(pid: int) -> int:
    """RssAnon of a process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0][1]) * 1024 if lines else 0
