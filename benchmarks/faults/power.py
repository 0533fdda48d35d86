"""Power loss: after every call of a run, every kind of disk that may be found."""

from __future__ import annotations

import errno
import hashlib
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.aftermath import aftermath
from benchmarks.faults.calls import Call, Effect, Fault, Watch
from benchmarks.faults.counts import Counts
from benchmarks.faults.disk import Change, Disk, Fate, Tree
from benchmarks.faults.job import Job, scratch, write_tree

Fates = dict[Change, Fate]
MAX_MINIMISED = 10
# Every change alone is lost where there are this many at most; else they are drawn.
MAX_SINGLE = 8


@dataclass
class History:
    """Runs of a job, one after another, until the power fails.

    Parameters
    ----------
    what : str
        Said in messages.
    start : Tree
        What is certainly on disk at first.
    runs : list of list of Call
        The calls of each run.
    acknowledged : list of tuple of int
        How many calls of all runs had been made when a shard was acknowledged, and the shard.
    """

    what: str
    start: Tree
    runs: list[list[Call]] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)

    @property
    def n_calls(self) -> int:
        return sum(map(len, self.runs))

    @property
    def acknowledgements(self) -> set[int]:
        """Numbers of calls at which something was acknowledged, and of the last."""
        return {n for n, _ in self.acknowledged} | {self.n_calls}

    def record(self, job: Job, root: Path, fault: Fault | None = None) -> bool:
        """Run the job below `root` and add what it does; returns whether the fault came."""
        n_before = self.n_calls
        with Watch(root, fault) as watch:
            try:
                job.run(root, lambda shard: self.acknowledged.append((n_before + len(watch.calls), shard)))
            except OSError:
                assert fault is not None, "nothing was to fail"
        self.runs.append(watch.calls)
        return watch.fired > 0

    def forget_after_failure(self) -> None:
        """Let the last run end at its first call that failed."""
        calls = self.runs[-1]
        self.runs[-1] = calls[: next(n for n, call in enumerate(calls, start=1) if call.failed)]

    def moments(self) -> Iterator[tuple[int, Disk, set[int]]]:
        """After each call: how many were made, the disk, and the shards acknowledged before the next one."""
        disk, n_calls = Disk(self.start), 0
        for calls in self.runs:
            disk.new_process()
            for call in calls:
                disk.apply(call)
                n_calls += 1
                yield n_calls, disk, {shard for n, shard in self.acknowledged if n <= n_calls}


def uninterrupted(job: Job) -> History:
    """The job from its start to its end."""
    history = History("power loss", job.start)
    with job.begun() as root:
        history.record(job, root)
    return history


def resumed(job: Job, whole: History, n: int) -> History:
    """The job killed after `n` calls of the whole one, and taken up."""
    killed = [(at, shard) for at, shard in whole.acknowledged if at <= n]
    history = History(f"killed after call {n}, resumed, power loss", job.start, [whole.runs[0][:n]], killed)
    *_, (_, disk, _) = history.moments()
    with scratch() as root:
        write_tree(root, disk.tree())
        history.record(job, root)
    return history


def fsync_failed(job: Job, n: int, *, killed: bool) -> History | None:
    """The job ended by a failing n-th fsync, or killed right after it, and taken up; None if there are not so many."""
    end = "killed" if killed else "ended"
    history = History(f"fsync {n} failed, {end}, resumed, power loss", job.start)
    with job.begun() as root:
        if not history.record(job, root, Fault(Effect.FAIL, n, "fsync", errno.EIO)):
            return None
        if killed:
            history.forget_after_failure()
            *_, (_, disk, _) = history.moments()
            write_tree(root, disk.tree())
        history.record(job, root)
    return history


def lost_power(job: Job, history: History, moments: Collection[int], n_random: int, seed: int) -> Counts:
    """Cut the power at some moments of a history, and look at every kind of disk that may be found.

    Parameters
    ----------
    job : Job
        Whose history it is.
    history : History
        Its calls.
    moments : collection of int
        After how many calls.
    n_random, seed : int
        Disks drawn at each moment, besides the extremes.
    """
    counts, seen = Counts(), set[str]()
    for n, disk, acknowledged in history.moments():
        if n not in moments:
            continue
        for fates in found_disks(disk.pending(), n_random, random.Random(seed * 1_000_003 + n)):
            found = disk.tree(fates)
            key = _digest(found, acknowledged)
            if key in seen:
                continue
            seen.add(key)
            case = _checked(job, found, acknowledged, "then")
            if case.broken and len(counts.broken) < MAX_MINIMISED:
                fates = _minimal(job, disk, fates, acknowledged)
            case.broken = [f"{history.what} after call {n}, {_said(fates)}: {what}" for what in case.broken[:1]]
            counts += case
    return counts


def lost_power_after_kill(job: Job, whole: History, kills: Iterable[int], n_random: int, seed: int) -> Counts:
    """Kill the job after each of these calls, take it up, and cut the power at every acknowledgement.

    Parameters
    ----------
    job : Job
        The work.
    whole : History
        Of the uninterrupted job.
    kills : iterable of int
        After how many calls.
    n_random, seed : int
        As for `lost_power`.
    """
    counts = Counts()
    for n in kills:
        history = resumed(job, whole, n)
        counts += lost_power(job, history, history.acknowledgements, n_random, seed)
    return counts


def lost_power_after_failed_fsync(
    job: Job, fsyncs: Iterable[int], n_random: int, seed: int, *, killed: bool = False
) -> Counts:
    """Let each of these fsyncs fail and lose its data, take the job up, and cut the power at every acknowledgement.

    Parameters
    ----------
    job : Job
        The work.
    fsyncs : iterable of int
        Numbers of the failing ones, from 1; those that the job does not come to are left out.
    n_random, seed : int
        As for `lost_power`.
    killed : bool
        Whether the job is killed before it can do anything about it.
    """
    counts = Counts()
    for n in fsyncs:
        history = fsync_failed(job, n, killed=killed)
        if history is not None:
            counts += lost_power(job, history, history.acknowledgements, n_random, seed)
    return counts


def found_disks(pending: list[Change], n_random: int, rng: random.Random) -> Iterator[Fates]:
    """What may have become of the pending changes: the extremes, each alone if they are few, and some at random."""
    names = [change for change in pending if change.is_name]
    writes = [change for change in pending if change.is_write]
    yield _never_doomed(pending, {})
    yield dict.fromkeys(pending, Fate.DROPPED)
    yield _never_doomed(pending, dict.fromkeys(names, Fate.DROPPED))
    yield dict.fromkeys((change for change in pending if not change.is_name), Fate.DROPPED)
    for fate in (Fate.DROPPED, Fate.ZEROS, Fate.GARBLED, Fate.CUT):
        yield _never_doomed(pending, dict.fromkeys(writes, fate))
    for change in pending if len(pending) <= MAX_SINGLE else ():
        yield _never_doomed(pending, {change: Fate.DROPPED})
    for _ in range(n_random):
        yield _never_doomed(pending, {change: rng.choice(_possible(change)) for change in pending})


def _possible(change: Change) -> list[Fate]:
    return list(Fate) if change.is_write else [Fate.APPLIED, Fate.DROPPED]


def _never_doomed(pending: list[Change], fates: Fates) -> Fates:
    """These fates, but what an fsync failed to write is not on disk."""
    return {**fates, **{change: Fate.DROPPED for change in pending if change.doomed}}


def _checked(job: Job, found: Tree, acknowledged: set[int], what: str) -> Counts:
    with scratch() as root:
        write_tree(root, found)
        counts = aftermath(job, root, acknowledged, what)
    counts.fired += 1
    return counts


def _minimal(job: Job, disk: Disk, fates: Fates, acknowledged: set[int]) -> Fates:
    """As few changes lost as still break a promise."""
    for change in list(fates):
        fewer = {other: fate for other, fate in fates.items() if other is not change}
        if _checked(job, disk.tree(fewer), acknowledged, "").broken:
            fates = fewer
    return fates


def _said(fates: Fates) -> str:
    gone = [f"{change.what}: {fate.value}" for change, fate in fates.items() if fate is not Fate.APPLIED]
    return ", ".join(gone) or "all of whose changes but those of a failed fsync are on disk"


def _digest(found: Tree, acknowledged: set[int]) -> str:
    return hashlib.sha256(repr((found, sorted(acknowledged))).encode()).hexdigest()
