"""Every change that is made to the files below a folder: recorded, and one of them made to fail or to be the last.

The store changes its files only through the functions of `os` in `KINDS`, looked up when they are called. That nothing
goes around them is shown by `benchmarks.faults.disk`: the recorded calls, applied to an empty disk, give the tree.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

ON_NAMES = ("open", "replace", "mkdir", "unlink", "rmdir")
ON_OPEN_FILES = ("write", "ftruncate", "lseek", "fsync", "close")
KINDS = ON_NAMES + ON_OPEN_FILES


@dataclass(frozen=True)
class Call:
    """One call as it reached the kernel.

    Parameters
    ----------
    kind : str
        Name of the function of `os`.
    path : str
        Below the watched folder, as it was when the file was opened.
    handle : int
        Number of the `open` that gave the descriptor; of an `open`, its own.
    number : int
        Flags of `open`; length or offset of `ftruncate` and `lseek`.
    data : bytes
        What `write` wrote: as much as the kernel took.
    target : str
        New name, of `replace`.
    failed : bool
        The call raised.
    """

    kind: str
    path: str
    handle: int = -1
    number: int = 0
    data: bytes = b""
    target: str = ""
    failed: bool = False


class Effect(Enum):
    """What happens at the call that is struck."""

    FAIL = "fails"
    FAIL_HALFWAY = "does half and fails"
    SHORT = "does half and says so"
    KILL_BEFORE = "killed before"
    KILL_MIDDLE = "killed in the middle of"
    KILL_AFTER = "killed after"


@dataclass(frozen=True)
class Fault:
    """Where and how the machine fails.

    Parameters
    ----------
    effect : Effect
        What happens.
    n : int
        At which call, from 1, counted among those of `kind`.
    kind : str, optional
        Name of the function of `os`; any by default.
    errno : int
        What a failing call raises.
    lasting : bool
        Whether all later calls of the kind fail too.
    """

    effect: Effect
    n: int
    kind: str | None = None
    errno: int = 0
    lasting: bool = False

    def __str__(self) -> str:
        code = f" with {os.strerror(self.errno)}" if self.errno else ""
        later = ", as do all later ones" if self.lasting else ""
        return f"{self.kind or 'call'} {self.n} {self.effect.value}{code}{later}"


class Watch:
    """Context in which the calls below a folder are recorded and one of them is struck by a fault.

    Parameters
    ----------
    root : Path
        The folder; calls elsewhere pass unseen.
    fault : Fault, optional
        Nothing is struck by default.

    Attributes
    ----------
    calls : list of Call
        In the order in which they were made.
    fired : int
        Calls that the fault struck.
    """

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.calls: list[Call] = []
        self.fired = 0
        self._root = str(root)
        self._fault = fault
        self._n_seen: Counter[str | None] = Counter()
        self._n_opened = 0
        self._files: dict[int, tuple[int, str]] = {}
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Watch:
        for kind in KINDS:
            self._real[kind] = getattr(os, kind)
            setattr(os, kind, self._watched(kind))
        return self

    def __exit__(self, *exception: object) -> None:
        for kind, function in self._real.items():
            setattr(os, kind, function)

    @property
    def left_open(self) -> list[str]:
        """Files that were opened and not closed."""
        return [path for _, path in self._files.values()]

    def _watched(self, kind: str) -> Callable[..., Any]:
        def function(*args: Any, **options: Any) -> Any:
            call = self._described(kind, args)
            if call is None:
                return self._real[kind](*args, **options)
            effect = self._strike(kind)
            return self._do(call, args) if effect is None else self._struck(effect, call, args)

        return function

    def _described(self, kind: str, args: tuple[Any, ...]) -> Call | None:
        if kind in ON_NAMES:
            path = self._below(args[0])
            if _changes_nothing(kind, args[0]):
                return None
            number = args[1] if kind == "open" else 0
            target = self._below(args[1]) if kind == "replace" else ""
            return None if path is None else Call(kind, path, self._n_opened, number, target=target or "")
        if args[0] not in self._files:
            return None
        handle, path = self._files[args[0]]
        if kind == "write":
            return Call(kind, path, handle, data=bytes(args[1]))
        assert kind != "lseek" or args[2] == os.SEEK_SET, "no other is recorded"
        return Call(kind, path, handle, args[1] if len(args) > 1 else 0)

    def _below(self, path: Any) -> str | None:
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if text == self._root:
            return "."
        return text.removeprefix(f"{self._root}/") if text.startswith(f"{self._root}/") else None

    def _strike(self, kind: str) -> Effect | None:
        self._n_seen.update((kind, None))
        fault = self._fault
        if fault is None or fault.kind not in (kind, None):
            return None
        n = self._n_seen[fault.kind]
        if n != fault.n and not (fault.lasting and n > fault.n):
            return None
        self.fired += 1
        return fault.effect

    def _do(self, call: Call, args: tuple[Any, ...]) -> Any:
        """Make the call and record what came of it."""
        try:
            result = self._real[call.kind](*args)
        except OSError:
            self.calls.append(replace(call, failed=True))
            raise
        if call.kind == "open":
            self._files[result] = (call.handle, call.path)
            self._n_opened += 1
        elif call.kind == "close":
            del self._files[args[0]]
        elif call.kind == "write":
            call = replace(call, data=call.data[:result])
        self.calls.append(call)
        return result

    def _do_half(self, call: Call, args: tuple[Any, ...]) -> Any:
        if call.kind != "write":
            return None
        data = call.data[: max(1, len(call.data) // 2)]
        return self._do(replace(call, data=data), (args[0], data))

    def _struck(self, effect: Effect, call: Call, args: tuple[Any, ...]) -> Any:
        if effect is Effect.SHORT:
            return self._do_half(call, args)
        if effect in (Effect.FAIL_HALFWAY, Effect.KILL_MIDDLE):
            self._do_half(call, args)
        elif effect is Effect.KILL_AFTER:
            self._do(call, args)
        if effect in (Effect.FAIL, Effect.FAIL_HALFWAY):
            raise self._failure(call, args)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("no process outlives SIGKILL")

    def _failure(self, call: Call, args: tuple[Any, ...]) -> OSError:
        """The error that the kernel gives, which names a file only where the call had its name."""
        assert self._fault is not None
        if call.kind == "close":
            # Linux gives the descriptor back whatever it reports.
            self._do(call, args)
        self.calls.append(replace(call, data=b"", failed=True))
        code = self._fault.errno
        names = (str(args[0]),) if call.kind in ON_NAMES else ()
        return OSError(code, os.strerror(code), *names)


def _changes_nothing(kind: str, path: Any) -> bool:
    """Whether the name is why it is refused, before the disk is asked: a folder that is there, a file that is not."""
    if kind == "mkdir":
        return os.path.isdir(path)  # noqa: PTH112 - it may be of any kind
    return kind in ("unlink", "rmdir") and not os.path.lexists(path)
