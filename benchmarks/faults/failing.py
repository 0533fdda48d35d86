"""Calls that fail: the n-th of every kind, n raised until the job runs through; and a file size limit of the kernel."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from activation_store.errors import StoreError
from benchmarks.faults.aftermath import aftermath
from benchmarks.faults.calls import Call, Effect, Fault, Watch
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import STORE, Job
from benchmarks.faults.kills import Child, count_calls

ERRORS = (errno.ENOSPC, errno.EIO)


def ways(kind: str | None) -> list[tuple[Effect, int, bool]]:
    """Ways in which a kind of call fails: effect, errno, whether all later ones fail as well."""
    if kind is None:
        # Each call alone is of some kind; this is a disk that dies.
        return [(Effect.FAIL, errno.EIO, True)]
    found = [(Effect.FAIL, code, False) for code in ERRORS] + [(Effect.FAIL, code, True) for code in ERRORS]
    if kind == "write":
        found += [(Effect.FAIL_HALFWAY, errno.ENOSPC, False), (Effect.SHORT, 0, False), (Effect.SHORT, 0, True)]
    return found


def failing(job: Job, kind: str | None, every: int = 1) -> Counts:
    """Make the n-th call of a kind fail in every way, n raised until the job runs through.

    Parameters
    ----------
    job : Job
        Each time from its start.
    kind : str, optional
        Name of the function of `os`; None for any.
    every : int
        Take only every so many n.
    """
    counts, n_calls = Counts(), count_calls(job, kind)
    for effect, code, lasting in ways(kind):
        n, fired = 1, True
        while fired:
            with job.begun() as root:
                case = _failed_once(job, root, Fault(effect, n, kind, code, lasting))
            fired = case.fired > 0
            # Each of the uninterrupted job's calls was struck, and no other.
            case.expect(fired == (n <= n_calls), f"{kind} {n} of {n_calls} {effect.value}: struck: {fired}")
            counts += case
            n += every
    return counts


def _failed_once(job: Job, root: Path, fault: Fault) -> Counts:
    acknowledged: set[int] = set()
    error = None
    with Watch(root, fault) as watch:
        try:
            job.run(root, acknowledged.add)
        except (OSError, StoreError) as raised:
            error = raised
    what = str(fault)
    counts = aftermath(job, root, acknowledged, what)
    counts.fired += watch.fired > 0
    _judge_error(counts, error, fault.effect is not Effect.SHORT and watch.fired > 0, what)
    counts.expect(not retried(watch.calls), f"{what}: fsync called again on {retried(watch.calls)}")
    counts.expect(not watch.left_open, f"{what}: left open: {watch.left_open}")
    return counts


def _judge_error(counts: Counts, error: Exception | None, expected: bool, what: str) -> None:
    counts.expect(expected == (error is not None), f"{what}: the caller got {error!r}")
    named = isinstance(error, OSError) and error.filename is not None
    counts.expect(error is None or named, f"{what}: the caller's error names no file: {error!r}")


def retried(calls: Iterable[Call]) -> list[str]:
    """Files that were fsynced again, as they were, after an fsync of them had failed."""
    failed: set[str] = set()
    again: list[str] = []
    for call in calls:
        if call.kind == "fsync":
            again += [call.path] if call.path in failed else []
            failed |= {call.path} if call.failed else set()
    return again


def limited(job: Job, limits: Iterable[int]) -> Counts:
    """Let the kernel refuse to make any file longer than each of these limits, after a write that it cuts short.

    Parameters
    ----------
    job : Job
        Each time from its start.
    limits : iterable of int
        Bytes.
    """
    counts = Counts()
    for limit in limits:
        with job.begun() as root:
            counts += _limited_once(job, root, limit)
    return counts


def _limited_once(job: Job, root: Path, limit: int) -> Counts:
    what = f"files limited to {limit} bytes"
    acknowledged, _ = Child(lambda tell: _run_limited(job, root, limit, tell)).join()
    named, refused = NAMED in acknowledged, REFUSED in acknowledged
    counts = aftermath(job, root, acknowledged - {NAMED, REFUSED}, what)
    counts.fired += refused
    counts.expect(refused == (limit < largest_file(job)), f"{what}: the kernel should refuse just what is longer")
    counts.expect(named == refused, f"{what}: the caller's error names no file of the store")
    return counts


# What a limited child reports besides the shards that it acknowledges.
REFUSED, NAMED = 254, 255


def _run_limited(job: Job, root: Path, limit: int, tell: Callable[[int], None]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        job.run(root, tell)
    except OSError as error:
        if error.errno == errno.EFBIG:
            tell(REFUSED)
            if str(error.filename).startswith(str((root / STORE).parent)):
                tell(NAMED)


def largest_file(job: Job) -> int:
    """Length of the longest file of the finished store, in bytes."""
    return max(len(content) for content in job.reference.values() if content)
