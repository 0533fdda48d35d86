import pytest

from benchmarks.label.ceiling import SHAPES, measure_ceiling

pytestmark = pytest.mark.slow


def test_a_quick_run_has_every_shape_and_is_near_its_limits():
    (table,), limits = measure_ceiling(n_draws=8, n_attempts=(2, 8))
    assert len(table.rows) == 2 * len(SHAPES)
    # Of two attempts nothing is promised.
    assert {limit.what.split(", k = ")[1].split(",")[0] for limit in limits} == {"8"}
    # The limits are for means of 200 draws.
    assert all(limit.reached.median < 2 * limit.at_most for limit in limits), list(map(str, limits))
    assert "Beta(.3, .3), k = 2" in str(table)
