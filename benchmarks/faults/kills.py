"""SIGKILL: at every call, in every scenario; inside a resumed job; and from outside at random times."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults.aftermath import aftermath, run_again
from benchmarks.faults.calls import Effect, Fault, Watch
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import Job

KILLS = (Effect.KILL_BEFORE, Effect.KILL_MIDDLE, Effect.KILL_AFTER)


def killed_at(job: Job, calls: Sequence[int]) -> Counts:
    """Kill the job before, in the middle of and after each of these calls.

    Parameters
    ----------
    job : Job
        Each time from its start.
    calls : sequence of int
        Numbers of calls, from 1.
    """
    counts = Counts()
    for n in calls:
        for effect in KILLS:
            with job.begun() as root:
                counts += _killed_once(job, root, Fault(effect, n))
    return counts


def _killed_once(job: Job, root: Path, fault: Fault) -> Counts:
    acknowledged, killed = run_and_die(job, root, fault)
    counts = aftermath(job, root, acknowledged, str(fault))
    counts.fired += killed
    counts.expect(killed, f"{fault}: never came")
    return counts


def killed_twice(job: Job, seed: int, n_times: int) -> Counts:
    """Kill the job at a random call, and the job that takes it up at another.

    Parameters
    ----------
    job : Job
        Each time from its start.
    seed, n_times : int
        Of the random calls, and how many pairs.
    """
    counts, chosen, n_calls = Counts(), random.Random(seed), count_calls(job)
    for _ in range(n_times):
        first, second = (Fault(chosen.choice(KILLS), chosen.randint(1, n_calls)) for _ in range(2))
        with job.begun() as root:
            acknowledged, _ = run_and_die(job, root, first)
            # The job taken up may be done before its call comes.
            again, killed = run_and_die(job, root, second)
            what = f"{first}, then {second}"
            counts += aftermath(job, root, acknowledged | again, what)
            counts.fired += 1 + killed
    return counts


def killed_at_random(job: Job, seed: int, n_kills: int) -> Counts:
    """Kill the job from outside at random times, on the real disk, take it up, kill it again, until it is done.

    Parameters
    ----------
    job : Job
        One that takes a while.
    seed : int
        Of the times.
    n_kills : int
        At which to stop; each finished store is followed by a new one.
    """
    counts, chosen, duration_s = Counts(), random.Random(seed), _duration_s(job)
    while counts.fired < n_kills:
        with job.begun(real_disk=True) as root:
            acknowledged: set[int] = set()
            done = False
            while not done:
                process = Child(lambda tell: job.run(root, tell))
                time.sleep(chosen.uniform(0, duration_s))
                told, killed = process.kill()
                acknowledged |= told
                counts.fired += killed
                counts += job.look(root, acknowledged, "killed at a random time")
                done = not killed or counts.fired >= n_kills
            counts += run_again(job, root, "killed at random times")
    return counts


def count_calls(job: Job, kind: str | None = None) -> int:
    """Calls of the uninterrupted job: of one kind, or all."""
    with job.begun() as root, Watch(root) as watch:
        job.run(root)
    return sum(kind in (None, call.kind) for call in watch.calls)


def _duration_s(job: Job) -> float:
    assert job.reference  # computed before the children are made
    with job.begun(real_disk=True) as root:
        started = time.perf_counter()
        Child(lambda tell: job.run(root, tell)).join()
        return time.perf_counter() - started


def run_and_die(job: Job, root: Path, fault: Fault) -> tuple[set[int], bool]:
    """Run the job in a child process that the fault kills.

    Returns
    -------
    set of int
        Shards that the child had acknowledged.
    bool
        Whether it was killed; False if it came to its end.
    """

    def work(tell: Callable[[int], None]) -> None:
        with Watch(root, fault):
            job.run(root, tell)

    return Child(work).join()


class Child:
    """A forked process that works and tells what it has acknowledged.

    Parameters
    ----------
    work : callable
        Called in the child with a function that passes the number of a shard on to the parent.
    """

    def __init__(self, work: Callable[[Callable[[int], None]], None]) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _work_and_exit(work, lambda shard: _tell(writer, shard))
        os.close(writer)

    def kill(self) -> tuple[set[int], bool]:
        """Kill it now; returns as `join`."""
        os.kill(self._pid, signal.SIGKILL)
        return self.join()

    def join(self) -> tuple[set[int], bool]:
        """Wait for its end: the shards that it acknowledged, and whether it was killed."""
        with os.fdopen(self._reader, "rb") as reader:
            told = set(reader.read())
        _, status = os.waitpid(self._pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or os.waitstatus_to_exitcode(status) == 0, "the child failed; its traceback is on stderr"
        return told, killed


def _tell(writer: int, shard: int) -> None:
    os.write(writer, bytes([shard]))


def _work_and_exit(work: Callable[[Callable[[int], None]], None], tell: Callable[[int], None]) -> None:
    """Work and leave at once: nothing of the parent's is cleaned up in the child."""
    code = 1
    try:
        work(tell)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
