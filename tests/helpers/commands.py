"""The command, run in this process or in one of its own."""

import contextlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from probesweep.commands.main import main

PROBESWEEP = str(Path(sys.executable).with_name("probesweep"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: a new one takes seconds to import torch."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["probesweep", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def run_forked(
    arguments: Sequence[str | bytes | Path],
    *,
    content: bytes = b"",
    env: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a fork of this process, with streams of its own: it need not import torch and transformers.

    Parameters
    ----------
    arguments : sequence of str, bytes or Path
    content : bytes
        Of standard input.
    env : mapping, optional
        Variables to set.
    encoding : str
        Of standard output and of errors.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(content)
        given.seek(0)
        pid = os.fork()
        if not pid:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            os.environ.update(env or {})
            _answer([os.fsdecode(argument) for argument in arguments], encoding)
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out.read(), err.read())


def _answer(arguments: list[str], encoding: str) -> None:
    """Run the command in place of the tests, and end the process."""
    code: object = 1
    try:
        sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        # Those of pytest.
        logging.root.handlers.clear()
        warnings.resetwarnings()
        sys.argv = [PROBESWEEP, *arguments]
        main()
    except SystemExit as ended:
        code = ended.code
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROBESWEEP, *map(str, arguments)], capture_output=True, text=True)
