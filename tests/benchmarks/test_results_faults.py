"""A sample of what `python -m benchmarks faults --part results` does at every step."""

from collections.abc import Callable

import pytest

from benchmarks.faults import results
from benchmarks.faults.counts import Counts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("work", "every"), [(results.killed, 11), (results.together, 11), (results.one_file, 4)])
def test_results_are_the_old_or_the_new_and_files_one_writers(work: Callable[[int], Counts], every: int):
    counts = work(every)
    assert counts.broken == []
    assert counts.fired > 2
