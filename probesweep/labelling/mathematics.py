"""Formulas compared by math-verify, in processes that are killed if they take too long."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probesweep.errors import RequestError
from probesweep.labelling.numerals import number_of
from probesweep.labelling.texts import said
from probesweep.labelling.verdict import Verdict, acceptable, as_text, why_no_answer

LIMIT_S = 10.0
# To import SymPy, on a machine that is busy.
_START_S = 120.0
_WORKER = Path(__file__).with_name("mathematics_worker.py")


class MathVerifier:
    """The formula that the text gives is the answer's, by math-verify: equal by algebra or to six digits.

    SymPy can take for ever on what a model writes: each answer has a time limit, and what is not judged within it, or
    fails, is null. Threads that judge at once have a process each.

    Parameters
    ----------
    limit_s : float
        For one answer.
    idle : deque of _Worker
        Processes that wait.
    """

    name = "math"

    def __init__(self, limit_s: float, idle: deque[_Worker]) -> None:
        self._limit_s, self._idle = limit_s, idle
        weakref.finalize(self, _close, idle)

    @classmethod
    def start(cls, limit_s: float = LIMIT_S) -> MathVerifier:
        """Start the first process.

        Raises
        ------
        RequestError
            math-verify is not installed, or does not run.
        """
        if find_spec("math_verify") is None:
            raise RequestError("verifier math: math-verify is not installed; pip install 'probesweep[math]'")
        return cls(limit_s, deque([_Worker.start()]))

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer."""
        del row
        found = self._ask({"text": said(text), "answers": [as_text(each) for each in acceptable(answer)]})
        return Verdict(None, None) if found is None else Verdict(found["extracted"], found["correct"])

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used."""
        if why_no_answer(answer):
            return why_no_answer(answer)
        # Most references are numbers, which need not be asked about one by one.
        if all(number_of(each) is not None for each in acceptable(answer)):
            return None
        found = self._ask({"answers": [as_text(each) for each in acceptable(answer)]})
        if found is None:
            return f"cannot be read by math-verify within {self._limit_s:g} s"
        return None if found["readable"] else "has no formula that math-verify reads"

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a process answers; None if it fails or takes too long."""
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker.start()
        answer = worker.ask(question, self._limit_s)
        if answer is None:
            worker.kill()
            return None
        self._idle.append(worker)
        return None if "error" in answer else answer


@dataclass(frozen=True)
class _Worker:
    """A process that judges one answer after another.

    Not of `multiprocessing`: a fork may hold locks of torch, and a spawned one runs the user's script once more.
    """

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls) -> _Worker:
        # -P: files beside the worker's do not come before the standard library. A session of its own: an interrupt at
        # the terminal is for the run, which then closes its pipes.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        worker = cls(process)
        ready = worker.ask({"answers": ["1"]}, _START_S)
        if ready is None or not ready.get("readable"):
            worker.kill()
            reason = "it does not start" if ready is None else ready.get("error", "it reads no formula")
            raise RequestError(f"verifier math: math-verify fails: {reason}; pip install 'probesweep[math]'")
        return worker

    def ask(self, question: Mapping[str, Any], limit_s: float) -> dict[str, Any] | None:
        """Its answer; None if it ended, or gave none in time."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({**question, "limit_s": limit_s}).encode() + b"\n")
            stdin.flush()
            # A line is written at once.
            line = stdout.readline() if select.select([stdout], [], [], limit_s)[0] else b""
            return json.loads(line) if line else None
        except BrokenPipeError:
            return None

    def kill(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _close(idle: deque[_Worker]) -> None:
    while idle:
        idle.pop().kill()
