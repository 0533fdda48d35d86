"""A sample of the fault suite's parts on an object store; and that it notices when a guard is taken out."""

from __future__ import annotations

import pytest

from benchmarks.faults import suite
from benchmarks.faults.command import run
from benchmarks.faults.counts import Counts, broken_list
from benchmarks.faults.objects import damage
from benchmarks.faults.objects.place import bucket_job
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
