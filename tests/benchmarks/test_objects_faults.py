"""A sample of the fault suite's parts on an object store; and that it notices when a guard is taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import obstore
import pytest

from activation_store.files import lease, requests
from activation_store.files.objects import Bucket
from activation_store.files.storage import Location
from benchmarks.faults import suite
from benchmarks.faults.command import run
from benchmarks.faults.counts import Counts, broken_list
from benchmarks.faults.job import ignore
from benchmarks.faults.objects import damage, writers
from benchmarks.faults.objects import requests as object_requests
from benchmarks.faults.objects.place import BucketJob, Reading, bucket_job
from tests.activation_store.store.test_faults import SAMPLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows() -> dict[str, Counts]:
    parts = suite.parts(SAMPLE, seed=0).items()
    return run({name: tasks for name, tasks in parts if name.startswith("objects")}, n_processes=2)


def test_every_promise_is_kept(rows: dict[str, Counts]):
    for name, counts in rows.items():
        assert not counts.broken, broken_list({name: counts})
        assert counts.lost == counts.wrong == 0
        assert counts.identical == counts.reruns
        assert counts.cases > 0
        assert counts.fired > 0 or "bytes" in name


def test_a_shard_that_is_gone_is_reported():
    """And not raised: the file is asked for when its bytes are."""
    job = bucket_job()
    gone = [change for change in damage.misplaced(job) if change.what == "record 1 without its shard"]
    counts = damage.damaged(job, gone)
    assert not counts.broken
    assert counts.identical == 1


# The suite notices: each guard is taken out, in the processes that write, too.


@dataclass(frozen=True)
class OverwritesRecords(BucketJob):
    """Creates what is there already."""

    def run(self, root: Location, acknowledge: Callable[[int], None] = ignore) -> None:
        with mock.patch.object(Bucket, "create", Bucket.replace):
            super().run(root, acknowledge)


@dataclass(frozen=True)
class TrustsItsLock(BucketJob):
    """Does not look whether another writer has taken over."""

    def run(self, root: Location, acknowledge: Callable[[int], None] = ignore) -> None:
        with mock.patch.object(lease.Lease, "check", return_value=None):
            super().run(root, acknowledge)


@dataclass(frozen=True)
class TakesWhatComes(Reading):
    """Does not look at the length of an answer."""

    def run(self, root: Location, acknowledge: Callable[[int], None] = ignore) -> None:
        def get(self: requests.Requests, path: str, start: int, n_bytes: int, version: object, seconds: float):
            answer = obstore.get(self._store(seconds), path, options={"range": (start, start + n_bytes)})
            about = answer.meta
            return requests.Part(
                memoryview(answer.bytes()), about["size"], requests.Version(about["e_tag"], about["version"])
            )

        with mock.patch.object(requests.Requests, "_get", get):
            super().run(root, acknowledge)


@pytest.mark.parametrize(
    ("careless", "key"), [(OverwritesRecords, "journal/2$"), (TrustsItsLock, "c/2/0/0/0$")], ids=["record", "lock"]
)
def test_a_writer_without_a_guard_is_noticed(careless: type[BucketJob], key: str):
    """It is stopped before that request, which comes when another has written the shard."""
    job = careless(bucket_job().spec)
    counts = writers.stopped(job, [1], answered=False, other_values=True, method="PUT", key=key)
    assert counts.fired == 1
    assert "verify finds" in broken_list({"": counts})


def test_answers_of_any_length_are_noticed(monkeypatch: pytest.MonkeyPatch):
    cut = "answered with a body that is declared shorter"
    monkeypatch.setattr(object_requests, "MISTAKES", {cut: object_requests.MISTAKES[cut]})
    whole = bucket_job()
    for kind, noticed in ((Reading, False), (TakesWhatComes, True)):
        job = kind(whole.spec, start=whole.reference)
        counts = object_requests.failing(job, [1], "GET", "c/1/0/0/0$")
        assert counts.fired == 1
        assert bool(counts.broken) == noticed
