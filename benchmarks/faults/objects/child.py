"""The job in a process of its own: a fork of one that used an object store cannot use it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Event

from activation_store.errors import StoreError
from benchmarks.faults.job import Job
from benchmarks.faults.objects.place import Limits, reaching, server
from benchmarks.shared.objects import settings

_LONGEST_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Parameters
    ----------
    acknowledged : set of int
        Shards that could be relied on by then.
    killed : bool
        By a signal.
    error : str
        Message of the error that ended it; empty if there was none.
    clean : bool
        The error was one of ours, or the operating system's with the name of an object, in one line.
    """

    acknowledged: set[int]
    killed: bool
    error: str
    clean: bool


class Child:
    """A process that does the job once.

    Parameters
    ----------
    job : Job
        What it does.
    root : str
        Where.
    endpoint : str
        Of the proxy.
    limits : Limits
        Of its requests and its lock.

    Attributes
    ----------
    acknowledged : set of int
        What it told so far, to whoever waits for its end.
    """

    def __init__(self, job: Job, root: str, endpoint: str, limits: Limits | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported once, in the process that all children are forked from.
        context.set_forkserver_preload([__name__, "zarr", "obstore.store"])
        self._receiver, self._sender = context.Pipe(duplex=False)
        arguments = (self._sender, job, root, settings(endpoint), limits or Limits())
        self._process = context.Process(target=_work, args=arguments)
        self._started = Event()
        self.acknowledged: set[int] = set()

    def start(self) -> Child:
        """Let it begin."""
        self._process.start()
        self._sender.close()
        self._started.set()
        return self

    def signal(self, number: int) -> None:
        """Send it a signal, from a thread that may be faster than `start`."""
        self._started.wait()
        os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        """Kill it."""
        self.signal(signal.SIGKILL)

    def join(self) -> Outcome:
        """Wait for its end."""
        error, clean = "", True
        try:
            while self._receiver.poll(_LONGEST_S):
                match self._receiver.recv():
                    case int(shard):
                        self.acknowledged.add(shard)
                    case (str(error), bool(clean)):
                        pass
                    case other:
                        raise AssertionError(f"{other!r} is no message of a child")
        except EOFError:
            pass
        else:
            self.kill()
            raise AssertionError(f"a child was not done within {_LONGEST_S:g} s")
        self._process.join()
        killed = self._process.exitcode == -signal.SIGKILL
        assert killed or self._process.exitcode == 0, "the child failed; its traceback is on stderr"
        return Outcome(self.acknowledged, killed, error, clean)


def run_here(job: Job, root: str, limits: Limits | None = None) -> Outcome:
    """The same job in a child that no proxy disturbs."""
    return Child(job, root, server().endpoint, limits).start().join()


def _work(sender: Connection, job: Job, root: str, env: dict[str, str], limits: Limits) -> None:
    with reaching(env), limits.set():
        try:
            job.run(root, sender.send)
        except Exception as error:
            named = isinstance(error, StoreError) or (isinstance(error, OSError) and bool(error.filename))
            sender.send((f"{type(error).__name__}: {error}", named and "\n" not in str(error)))
