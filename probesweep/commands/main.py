"""The entry point: all commands, and one line and an exit code for whatever they raise.

Exit codes: 0 done, 1 failure, 2 wrong usage, bad input or a resource limit (ulimit), 130 and 143 interrupted, 141 the
output pipe was closed. Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import click

from activation_store.files.storage import is_address
from probesweep.commands import completion, extract, hub, label, predict, results, run, stores, train
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal, say
from probesweep.terminal.limits import limit_reached
from probesweep.terminal.streams import close_streams, nobody_reads, open_streams
from probesweep_errors import ProbesweepError

# Importing a module adds its commands.
COMMAND_MODULES = (label, extract, train, run, results, predict, stores, hub, completion)
# What a shell reports for a command killed by SIGPIPE.
_BROKEN_PIPE = 128 + signal.SIGPIPE
# No bucket of that name, no access, no server that answers, one without encryption.
_WRONG_ADDRESS = {errno.ENXIO, errno.EACCES, errno.EHOSTUNREACH, errno.EPROTONOSUPPORT}


def main() -> None:
    """Entry point: run a command and turn exceptions into one line and an exit code."""
    open_streams()
    signal.signal(signal.SIGTERM, _terminate)
    _set_up_libraries()
    terminal = Terminal()
    terminal.word_warnings()
    try:
        code = _exit_code(
            terminal, lambda: probesweep.main(prog_name="probesweep", standalone_mode=False, obj=terminal)
        )
    finally:
        close_streams()
    sys.exit(code)


def _set_up_libraries() -> None:
    """Before libraries are imported: no progress bars without a terminal, no busy waiting."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # OpenMP threads that spin while waiting slow torch down several times when another process needs a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _exit_code(terminal: Terminal, command: Callable[[], Any]) -> int:
    try:
        command()
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "probesweep"
        return _fail(f"{error.format_message()} (see {where} --help)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; run the same command again to resume", 130)
    except SystemExit as ended:
        # click exits with 1 for a closed pipe, which would mean that a store is damaged.
        if ended.code == 1 and nobody_reads():
            return _BROKEN_PIPE
        raise
    except Exception as error:
        if terminal.debug:
            raise
        return _explain(terminal, error)
    return 0


def _leave_at_once(message: str) -> NoReturn:
    """Exit without cleanup: libraries that ran out of memory can hang in it."""
    _fail(message, 2)
    close_streams()
    os._exit(2)


def _explain(terminal: Terminal, error: Exception) -> int:
    """One line for expected errors; anything else is a bug."""
    limit = limit_reached(error)
    if limit is not None:
        _leave_at_once(limit)
    if isinstance(error, OSError):
        # No file can have that name, or nothing is at an address: wrong usage, whatever the disk or the server.
        wrong = error.errno == errno.ENAMETOOLONG or (is_address(error.filename) and error.errno in _WRONG_ADDRESS)
        code = 2 if wrong else 1
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", code)
    if isinstance(error, ProbesweepError):
        # What can be mended by other input is a ValueError too.
        return _fail(terminal.wording(str(error)), 2 if isinstance(error, ValueError) else 1)
    kind = type(error).__name__
    return _fail(f"{kind}: {error}; this is a bug in probesweep: please report it with the output of --debug", 1)


def _fail(message: str, code: int) -> int:
    # If nobody reads stderr, the exit code is all there is.
    with suppress(OSError):
        click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
