"""Standard streams in any state: closed, without a reader, full, or in an encoding that lacks characters."""

from __future__ import annotations

import io
import os
import select
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_streams() -> None:
    """Point closed streams (a service, `2>&-`) at the null device, and escape characters that an encoding lacks.

    Otherwise the next opened file would get the number of a closed stream, and with it whatever libraries print there.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is used: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe that has lost its reader."""
    waiting = select.poll()
    for number in (1, 2):
        waiting.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))


def close_streams() -> None:
    """Flush; drop what a stream does not accept, which Python would report at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
