"""The parts of the suite that need an object store. Each task asks the server of its own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice

from benchmarks.faults.counts import Counts
from benchmarks.faults.job import STORE
from benchmarks.faults.objects import damage, requests, server, writers
from benchmarks.faults.objects.place import BucketJob, Reading, bucket_job
from benchmarks.faults.scenarios import FINISHED_PATH, JOURNAL_PATH, mending, shard_path

Task = Callable[[], Counts]
# Into so many tasks a part is split, each with numbers from all of the job.
_N_TASKS = 6


def parts(every: int) -> dict[str, list[Task]]:
    """Every part: its name and its tasks.

    Parameters
    ----------
    every : int
        Take every so many requests and damages: 1 is all.
    """
    new, part, repair, reading = (partial(_scenario, name) for name in ("new", "over a part", "repair", "reading"))
    both = (False, True)
    return {
        "objects: the bytes of a disk": [same_as_on_disk],
        "objects: SIGKILL at every request": [
            task for job in (new, part, repair) for task in _at_requests(job, requests.killed, every)
        ],
        "objects: request fails once": [
            *_at_requests(new, requests.failing, every),
            *_at_requests(part, requests.failing, 2 * every),
            *_at_requests(reading, requests.failing, every),
        ],
        "objects: outage": list(_at_requests(new, requests.outage, every)),
        "objects: server killed": [
            task for back in both for task in _at_puts(new, partial(server.server_killed, returns=back), every)
        ],
        "objects: two writers": list(_at_requests(new, writers.at_the_same_time, every)),
        "objects: writer stopped": [
            task
            for answered in both
            for other in both
            for task in _at_requests(new, partial(writers.stopped, answered=answered, other_values=other), 2 * every)
        ],
        "objects: damaged": [
            *(partial(_damaged, first, every * _N_TASKS) for first in _firsts(every)),
            partial(_misplaced, (every - 1) // 2, every),
        ],
    }


def same_as_on_disk() -> Counts:
    """An uninterrupted run leaves the same objects as it leaves files."""
    counts = Counts()
    for dtype in ("float32", "bfloat16"):
        job = bucket_job(dtype)
        counts.cases += 1
        counts.reruns += 1
        counts.identical += job.reference == job.on_disk
        counts.expect(job.reference == job.on_disk, f"{dtype}: other objects than files")
    return counts


@cache
def _scenario(name: str) -> BucketJob:
    job = bucket_job()
    if name == "reading":
        return Reading(job.spec, start=job.reference)
    if name == "repair":
        paths = (shard_path(job, 1), f"{JOURNAL_PATH}/2", f"{STORE}/success_rate/c/0")
        return replace(job, start=mending(job, *paths).start, repairing=True)
    if name == "over a part":
        # The last shard was written by another machine that was killed before it committed it.
        start = dict(job.reference)
        start[shard_path(job, 2)] = replace(job, seed=writers.OTHER_SEED).reference[shard_path(job, 2)]
        for path in (FINISHED_PATH, f"{JOURNAL_PATH}/1", f"{JOURNAL_PATH}/2", shard_path(job, 1)):
            del start[path]
        return replace(job, start=start)
    return job


def _firsts(every: int) -> list[int]:
    """Where each task begins, from 0 on; one that takes few begins in the middle of what it leaves out."""
    return [(every - 1) // 2 + every * task for task in range(_N_TASKS)]


def _at_requests(
    job: Callable[[], BucketJob], strike: Callable[[BucketJob, Sequence[int]], Counts], every: int
) -> Iterator[Task]:
    for first in _firsts(every):
        yield partial(_struck, job, requests.count_requests, strike, first, every * _N_TASKS)


def _at_puts(
    job: Callable[[], BucketJob], strike: Callable[[BucketJob, Sequence[int]], Counts], every: int
) -> Iterator[Task]:
    for first in _firsts(every):
        yield partial(_struck, job, server.count_puts, strike, first, every * _N_TASKS)


def _struck(
    job: Callable[[], BucketJob],
    count: Callable[[BucketJob], int],
    strike: Callable[[BucketJob, Sequence[int]], Counts],
    first: int,
    step: int,
) -> Counts:
    # How many there are, only a run tells.
    return strike(job(), range(1 + first, 1 + count(job()), step))


def _damaged(first: int, step: int) -> Counts:
    job = bucket_job()
    return damage.damaged(job, islice(damage.everywhere(job), first, None, step))


def _misplaced(first: int, step: int) -> Counts:
    job = bucket_job()
    return damage.damaged(job, islice(damage.misplaced(job), first, None, step))
