"""The command, run in this process or in one of its own."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

import cli

PROBESWEEP = str(Path(sys.executable).with_name("probesweep"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: a new one takes seconds to import torch."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["probesweep", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROBESWEEP, *map(str, arguments)], capture_output=True, text=True)
