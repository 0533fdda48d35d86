"""Two writers of one store: at the same time, and one that was stopped for longer than its lock lasts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from activation_store.errors import StoreError
from activation_store.files.storage import Location
from activation_store.format.journal import LOCK
from activation_store.format.spec import ARRAY
from activation_store.store.reader import ActivationStore
from benchmarks.faults.aftermath import aftermath
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import STORE, attempted, same_bits, store_at
from benchmarks.faults.objects.child import Child, Outcome, run_here
from benchmarks.faults.objects.place import BucketJob, Limits, server
from benchmarks.shared.proxy import Effect, Meanwhile, Mistake, Proxy

LEASE = Limits(attempt_s=20.0, try_s=20.0, renew_s=0.3, lease_s=2.4)
# Of the second writer: as another machine may compute them.
OTHER_SEED = 1


@dataclass(frozen=True)
class Meeting:
    """What two writers of one store saw.

    Parameters
    ----------
    first, second : Outcome
        How they ended.
    acknowledged : set of int
        Shards that the first could rely on when the second began.
    locked : bool
        Whether the first held the lock then.
    """

    first: Outcome
    second: Outcome
    acknowledged: set[int]
    locked: bool


def at_the_same_time(job: BucketJob, numbers: Sequence[int]) -> Counts:
    """Begin the same job a second time at each of these requests of the first: one of them is refused."""
    counts = Counts()
    for n in numbers:
        with job.begun() as root:
            mistake = partial(Mistake, "", "", first=n)
            met = _meet(job, job, str(root), mistake, answered=False, stopped=False)
            what = f"a second writer at request {n}"
            if met is None:
                continue
            counts.fired += 1
            counts.refused += bool(met.first.error) + bool(met.second.error)
            _expect_clean(counts, what, met)
            counts.expect(bool(met.second.error) == met.locked, f"{what}: {met.second.error or 'was let in'}")
            counts.expect(not (met.first.error and met.second.error), f"{what}: both refused")
            counts += aftermath(job, root, met.first.acknowledged | met.second.acknowledged, what)
    return counts


def stopped(
    job: BucketJob, numbers: Sequence[int], *, answered: bool, other_values: bool, method: str = "", key: str = ""
) -> Counts:
    """Stop a writer at each of these requests until another has taken over and is done, then let it go on.

    Parameters
    ----------
    job : BucketJob
        Each time from its start.
    numbers : sequence of int
        Of the requests.
    answered : bool
        Whether the server has answered the request by then; otherwise it gets it when the other writer is done.
    other_values : bool
        Whether the other writer brings other values: what is committed first counts.
    method, key : str
        Count only such requests, as `Mistake` has them.
    """
    counts = Counts()
    other = replace(job, seed=OTHER_SEED) if other_values else job
    for n in numbers:
        with job.begun() as root:
            mistake = partial(Mistake, method, key, first=n)
            met = _meet(job, other, str(root), mistake, answered=answered, stopped=True)
            what = (
                f"stopped {'after' if answered else 'before'} request {n}{' by other values' if other_values else ''}"
            )
            if met is None:
                continue
            counts.fired += 1
            counts.refused += bool(met.first.error)
            _expect_clean(counts, what, met)
            counts.expect(not met.second.error, f"{what}: the other could not take over: {met.second.error}")
            if other_values:
                _judge(counts, (job, other), root, met.acknowledged, what)
            else:
                counts += aftermath(job, root, met.first.acknowledged | met.second.acknowledged, what)
    return counts


def _meet(
    job: BucketJob, other: BucketJob, root: str, mistake: Callable[[Effect], Mistake], *, answered: bool, stopped: bool
) -> Meeting | None:
    """Two writers, of which the second runs while a request of the first waits; None if there was no such request."""
    seen: list[tuple[set[int], bool, Outcome]] = []
    with Proxy(server().endpoint) as proxy:
        child = Child(job, root, proxy.endpoint, LEASE)

        def meanwhile() -> None:
            if stopped:
                child.signal(signal.SIGSTOP)
                # What it told is on its way.
                time.sleep(0.05)
            try:
                locked = f"{STORE}/{ARRAY}/{LOCK}" in job.tree(root)
                seen.append((set(child.acknowledged), locked, run_here(other, root, LEASE)))
            finally:
                if stopped:
                    child.signal(signal.SIGCONT)

        proxy.plan(mistake(Meanwhile(meanwhile, answered)))
        first = child.start().join()
    return Meeting(first, seen[0][2], *seen[0][:2]) if seen else None


def _expect_clean(counts: Counts, what: str, met: Meeting) -> None:
    for outcome in (met.first, met.second):
        counts.expect(outcome.clean, f"{what}: {outcome.error}")


def _judge(
    counts: Counts, jobs: tuple[BucketJob, BucketJob], root: Location, acknowledged: Collection[int], what: str
) -> None:
    """Every shard holds the values of one of the two, of the first those that it was told are committed."""
    counts.cases += 1
    try:
        store = ActivationStore.open(store_at(root))
        problems = store.verify()
    except StoreError as error:
        counts.lost += 1
        counts.expect(False, f"{what}: {error}")
        return
    counts.expect(not problems, f"{what}: verify finds {problems}")
    for shard in range(jobs[0].n_shards):
        rows = jobs[0].spec.layout.rows(shard)
        found = attempted(lambda rows=rows: store[rows.start : rows.stop])
        allowed = jobs[:1] if shard in acknowledged else jobs
        right = found is not None and any(same_bits(found, job.values[rows.start : rows.stop]) for job in allowed)
        counts.right += right
        counts.lost += found is None
        counts.wrong += found is not None and not right
        counts.expect(right, f"{what}: shard {shard} is {'lost' if found is None else 'read as other values'}")
