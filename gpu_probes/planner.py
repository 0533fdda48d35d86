"""How many cells at once, how many rows at a time, in how many threads. Pure: numbers in, a plan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_probes.cells import Cell
from gpu_probes.errors import BudgetError

# Blocks of cells that are small are joined, up to this much: the cost of a call is spread over them.
_SMALL_BLOCK_BYTES = 2**25
_MIN_CHUNK_ROWS = 256
_FLOAT = 8
_STORED = 4  # most stores hold float32 or half of that


@dataclass(frozen=True)
class Workload:
    """What memory depends on."""

    n_train: int
    n_test: int
    n_features: int
    n_outputs: int
    n_targets: int
    n_alphas: int
    n_folds: int
    is_regression: bool

    @property
    def n_fits(self) -> int:
        """Fits of a cell at one alpha."""
        return self.n_folds + 1

    @property
    def is_dual(self) -> bool:
        """Whether there are fewer rows than features."""
        return self.n_train < self.n_features


@dataclass(frozen=True)
class BlockPlan:
    """Which cells are worked on together, and how."""

    blocks: tuple[tuple[Cell, ...], ...]
    chunk_rows: int
    n_workers: int
    predicted_bytes: int


def plan_blocks(
    cells: Sequence[Cell], workload: Workload, *, budget_bytes: int, n_workers: int, joins_cells: bool
) -> BlockPlan:
    """Choose the largest blocks and chunks that stay within a budget.

    Parameters
    ----------
    cells : all cells, in the order of the result
    workload : what one cell takes
    budget_bytes : what everything may take besides the result itself
    n_workers : blocks that are worked on at the same time, at most
    joins_cells : fill the budget with cells (a GPU) rather than only join small ones (CPU cores)

    Raises
    ------
    BudgetError
        When not even one cell fits, a few rows at a time.
    """
    whole = max(workload.n_train, workload.n_test, 1)
    # The dual needs all training rows at once.
    fewest = max(_MIN_CHUNK_ROWS, workload.n_train if workload.is_dual else 0)
    chunk_rows, n_workers = whole, min(n_workers, len(cells))
    while cell_nbytes(workload, chunk_rows) * n_workers > budget_bytes:
        if n_workers > 1:
            n_workers -= 1
        elif chunk_rows <= fewest:
            raise BudgetError(
                f"one cell takes {cell_nbytes(workload, chunk_rows) / 2**30:.2f} GiB and the budget is "
                f"{budget_bytes / 2**30:.2f} GiB; allow more with --budget_gib, or give fewer alphas or folds"
            )
        else:
            chunk_rows = max(chunk_rows // 2, fewest)
    per_cell = cell_nbytes(workload, chunk_rows)
    fitting = budget_bytes // (per_cell * n_workers)
    wanted = fitting if joins_cells else max(_SMALL_BLOCK_BYTES // per_cell, 1)
    size = max(min(fitting, wanted, -(-len(cells) // n_workers)), 1) if chunk_rows == whole else 1
    blocks = tuple(tuple(cells[start : start + size]) for start in range(0, len(cells), size))
    return BlockPlan(blocks, chunk_rows, n_workers, per_cell * size * n_workers)


def cell_nbytes(workload: Workload, chunk_rows: int) -> int:
    """Peak memory of one cell of a block while it is worked on, in bytes."""
    train, test = (min(chunk_rows, n) for n in (workload.n_train, workload.n_test))
    features = _FLOAT * workload.n_features
    reading = max(train, test) * _STORED * workload.n_features
    solving = _ridge_nbytes(workload) if workload.is_regression else _logistic_nbytes(workload)
    return train * features + max(solving, reading, test * features + reading) + _columns_nbytes(workload, train)


def _ridge_nbytes(w: Workload) -> int:
    """Matrices: those of the lots, and of one fit its sum, the penalised copy, and the factor."""
    if w.is_dual:
        return 4 * _FLOAT * w.n_train**2
    return (max(w.n_folds, 1) + 3) * _FLOAT * w.n_features**2


def _logistic_nbytes(w: Workload) -> int:
    """The bound's Gram matrix, a penalised copy and its factor, and a factor per penalty and output kept."""
    size = min(w.n_train, w.n_features)
    basis = 2 * _FLOAT * w.n_train * w.n_features if w.is_dual else 0
    return (3 + w.n_alphas * w.n_outputs) * _FLOAT * size**2 + basis


def _columns_nbytes(w: Workload, train_rows: int) -> int:
    """Decision values of all rows for all fits, and what is derived from them."""
    columns = w.n_fits * w.n_alphas * w.n_outputs * w.n_targets
    coefficients = 4 * columns * w.n_features
    per_row = columns * (w.n_train + 3 * train_rows if w.is_regression else 10 * w.n_train)
    scoring = 6 * w.n_alphas * w.n_outputs * w.n_train
    return _FLOAT * (coefficients + per_row + scoring)
