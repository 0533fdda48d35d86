import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_probes import BudgetError, Cell
from gpu_probes.search.planner import Workload, cell_nbytes, plan_blocks

CELLS = [Cell(layer, -1) for layer in range(29)]


def workload(**changes) -> Workload:
    given = {
        "n_train": 8000, "n_test": 2000, "n_features": 1536, "n_outputs": 1, "n_targets": 1, "n_alphas": 10,
        "n_folds": 5, "probe": "ridge",
    }  # fmt: skip
    return Workload(**given | changes)


@given(
    n_train=st.integers(2, 10**6),
    n_features=st.integers(1, 5000),
    budget=st.integers(10**6, 2**38),
    n_workers=st.integers(1, 64),
    joins=st.booleans(),
    regression=st.booleans(),
)
def test_every_cell_once_in_order_within_the_budget(n_train, n_features, budget, n_workers, joins, regression):
    work = workload(n_train=n_train, n_features=n_features, probe="ridge" if regression else "logistic")
    try:
        plan = plan_blocks(CELLS, work, budget_bytes=budget, n_workers=n_workers, joins_cells=joins)
    except BudgetError:
        at_once = n_train if work.is_dual or work.is_reduced else 0
        assert cell_nbytes(work, max(at_once, 256), work.n_alphas if regression else 1) > budget
        return
    assert [cell for block in plan.blocks for cell in block] == CELLS
    assert plan.predicted_bytes <= budget
    assert 1 <= plan.n_workers <= n_workers
    assert plan.chunk_rows >= max(n_train, work.n_test) or (plan.n_workers == 1 and len(plan.blocks) == len(CELLS))


def test_a_million_rows_fit_four_gib():
    for regression in (True, False):
        work = workload(n_train=10**6, n_test=1000, probe="ridge" if regression else "logistic")
        plan = plan_blocks(CELLS[:2], work, budget_bytes=4 * 2**30, n_workers=2, joins_cells=False)
        assert 1000 < plan.chunk_rows < 10**6
        assert (plan.penalties_at_once < 10) is not regression


def test_small_cells_are_joined_and_large_ones_are_not():
    small = plan_blocks(CELLS, workload(n_train=100, n_features=16), budget_bytes=2**33, n_workers=2, joins_cells=False)
    assert len(small.blocks) == 2
    large = plan_blocks(CELLS, workload(), budget_bytes=2**33, n_workers=2, joins_cells=False)
    assert len(large.blocks) == len(CELLS)
    gpu = plan_blocks(CELLS, workload(), budget_bytes=2**36, n_workers=2, joins_cells=True)
    assert len(gpu.blocks) == 8


def test_less_than_one_cell_says_what_it_takes():
    with pytest.raises(BudgetError, match=r"one cell needs [\d.]+ MiB, the budget is 8\.0 MiB; allow more with"):
        plan_blocks(CELLS, workload(), budget_bytes=2**23, n_workers=2, joins_cells=False)


@pytest.mark.parametrize("n_devices", [1, 3, 8])
def test_every_gpu_gets_several_blocks_for_each_of_its_threads(n_devices: int):
    cells = [Cell(layer, position) for position in range(-5, 0) for layer in range(29)]
    plan = plan_blocks(cells, workload(), budget_bytes=2**37, n_workers=2, joins_cells=True, n_devices=n_devices)
    assert len(plan.blocks) >= 3 * 2 * n_devices
    assert [cell for block in plan.blocks for cell in block] == cells


def test_rows_that_a_number_each_is_solved_for_come_at_once():
    wide = workload(n_train=1000, n_features=1100)
    assert wide.is_dual
    assert workload(n_train=1200, n_features=1000).is_dual
    assert not workload(n_train=1200, n_features=1000, unpenalised=True).is_dual
    assert not workload(n_train=1200, n_features=1000, probe="logistic").is_dual
    assert workload(n_train=900, n_features=1000, probe="logistic").is_reduced
    assert not workload(n_train=900, n_features=1000, probe="logistic", standardize=True).is_reduced
    plan = plan_blocks(CELLS, wide, budget_bytes=2**27, n_workers=2, joins_cells=False)
    assert plan.chunk_rows >= 1000


def test_a_gpu_makes_its_centred_copies_of_a_whole_lot():
    few, whole = (
        cell_nbytes(workload(n_train=6_000, centres=True, in_pieces=in_pieces), 6_000, 10)
        for in_pieces in (True, False)
    )
    # Two copies in float64; a lot is a fifth of the rows, a piece 1,024.
    assert whole - few == 2 * 8 * (6_000 // 5 - 1024) * 1536


def test_copies_of_weighted_rows_and_of_the_largest_lot_are_counted():
    def on_gpu(**changes) -> int:
        return cell_nbytes(workload(n_train=20_000, in_pieces=False, **changes), 20_000, 10)

    copies = 2 * 8 * (20_000 // 5) * 1536
    assert on_gpu(weighted=True) - on_gpu() == copies
    # Nine in ten rows are in one lot.
    assert on_gpu(weighted=True, largest_lot=18_000) - on_gpu(weighted=True) == 2 * 8 * 14_000 * 1536


def test_factors_of_each_class_are_made_beside_those_that_they_replace():
    def matrices(n_outputs: int) -> int:
        # So wide that nothing else counts.
        logistic = workload(n_train=20, n_test=0, n_features=20, n_alphas=1, n_outputs=n_outputs, probe="logistic")
        more = workload(n_train=2000, n_test=0, n_features=2000, n_alphas=1, n_outputs=n_outputs, probe="logistic")
        return round((cell_nbytes(more, 2000, 3) - cell_nbytes(logistic, 20, 3)) / (8 * 2000**2))

    assert matrices(1) == matrices(4) - 3 * (4 + 1) + 3
