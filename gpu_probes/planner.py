"""How many cells at once, how many rows at a time, in how many threads. Pure: numbers in, a plan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_probes.cells import Cell
from gpu_probes.errors import BudgetError

# Blocks of cells that are small are joined, up to this much: the cost of a call is spread over them.
_SMALL_BLOCK_BYTES = 2**25
_MIN_CHUNK_ROWS = 256
# Rows of a cell of which a centred copy is made at a time: few enough for a cache, enough for a matrix product.
PIECE_ROWS = 1024
_BLOCKS_PER_WORKER = 4
# Shuffled targets of a ridge, and columns of a logistic regression, that are wide enough for a matrix product.
_MOST_SHUFFLES, _MOST_COLUMNS = 1024, 512
_FLOAT = 8
_STORED = 4  # most stores hold float32 or half of that
# The C library gives freed blocks below this size back to the system only from the end of a thread's heap.
_KEPT_BY_ALLOCATOR = 2**25


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
    centres: bool = False
    standardize: bool = False
    unpenalised: bool = False
    n_pairs: int = 0
    n_shuffles: int = 0

    @property
    def n_fits(self) -> int:
        """Fits of a cell at one alpha: without each fold, without each pair of them, and on everything."""
        return self.n_folds + self.n_pairs + 1

    @property
    def is_dual(self) -> bool:
        """Whether a ridge solves for a number per row: some fit has fewer rows than features.

        Not for alpha 0 if the fit on everything has enough of them: then there may be one solution, and the rows' own
        system has many.
        """
        fewest = self.n_train - -(-self.n_train // self.n_folds) if self.n_folds else self.n_train
        too_few = self.n_train if self.unpenalised else fewest
        return self.is_regression and too_few < self.n_features

    @property
    def is_reduced(self) -> bool:
        """Whether a logistic regression works in the span of its rows (see `gpu_probes.logistic.Design`)."""
        return not self.is_regression and self.n_train < self.n_features and not self.standardize


@dataclass(frozen=True)
class BlockPlan:
    """Which cells are worked on together, and how."""

    blocks: tuple[tuple[Cell, ...], ...]
    chunk_rows: int
    penalties_at_once: int
    shuffles_at_once: int
    n_workers: int
    predicted_bytes: int


def plan_blocks(
    cells: Sequence[Cell],
    workload: Workload,
    *,
    budget_bytes: int,
    n_workers: int,
    joins_cells: bool,
    n_devices: int = 1,
) -> BlockPlan:
    """Choose the largest blocks and chunks that stay within a budget.

    Parameters
    ----------
    cells : all cells, in the order of the result
    workload : what one cell takes
    budget_bytes : what the work on one device may take besides the result itself
    n_workers : blocks that one device works on at the same time, at most
    joins_cells : work on many cells at once (a GPU) rather than only join small ones (CPU cores)
    n_devices : how many share the cells

    Raises
    ------
    BudgetError
        When not even one cell fits, a few rows at a time.
    """
    whole = max(workload.n_train, workload.n_test, 1)
    # A number per row needs all training rows at once.
    fewest = max(_MIN_CHUNK_ROWS, workload.n_train if workload.is_dual or workload.is_reduced else 0)
    chunk_rows, penalties, n_workers = whole, workload.n_alphas, min(n_workers, -(-len(cells) // n_devices))
    shuffles = min(workload.n_shuffles, most_shuffles(workload))
    while cell_nbytes(workload, chunk_rows, penalties, shuffles) * n_workers > budget_bytes:
        mostly_columns = _columns_nbytes(workload, chunk_rows, penalties) > _reading_nbytes(workload, whole, chunk_rows)
        if shuffles > 1 and _shuffles_nbytes(workload, penalties, shuffles) * n_workers > budget_bytes // 2:
            shuffles = -(-shuffles // 2)
        elif n_workers > 1:
            n_workers -= 1
        elif penalties > 1 and not workload.is_regression and (mostly_columns or chunk_rows <= fewest):
            penalties = -(-penalties // 2)
        elif chunk_rows > fewest:
            chunk_rows = max(chunk_rows // 2, fewest)
        elif shuffles > 1:
            shuffles = -(-shuffles // 2)
        else:
            needed = cell_nbytes(workload, chunk_rows, penalties, shuffles)
            raise BudgetError(
                f"one cell takes {needed / 2**30:.2f} GiB and the budget is {budget_bytes / 2**30:.2f} GiB; allow more "
                "with --budget_gib, or give fewer alphas or folds"
            )
    per_cell = cell_nbytes(workload, chunk_rows, penalties, shuffles)
    fitting = budget_bytes // (per_cell * n_workers)
    wanted = fitting if joins_cells else max(_SMALL_BLOCK_BYTES // per_cell, 1)
    # Several blocks for each worker of a GPU: one is read and copied while another is computed.
    n_turns = n_workers * n_devices * (_BLOCKS_PER_WORKER if joins_cells else 1)
    size = max(min(fitting, wanted, -(-len(cells) // n_turns)), 1) if chunk_rows == whole else 1
    blocks = tuple(tuple(cells[start : start + size]) for start in range(0, len(cells), size))
    return BlockPlan(blocks, chunk_rows, penalties, max(shuffles, 1), n_workers, per_cell * size * n_workers)


def most_shuffles(workload: Workload) -> int:
    """Shuffled targets that are worth working on at once."""
    if workload.is_regression:
        return _MOST_SHUFFLES
    return max(_MOST_COLUMNS // (max(workload.n_folds, 1) * workload.n_alphas * workload.n_outputs), 1)


def cell_nbytes(workload: Workload, chunk_rows: int, penalties: int, shuffles: int = 0) -> int:
    """Peak memory of one cell of a block while it is worked on, in bytes.

    Parameters
    ----------
    workload : what one cell takes
    chunk_rows : rows that are read at a time
    penalties : how many a logistic regression works on at a time; ridge takes them one by one
    shuffles : how many shuffled targets are worked on at a time
    """
    is_whole = chunk_rows >= workload.n_train
    train, test = (_reading_nbytes(workload, n_rows, chunk_rows) for n_rows in (workload.n_train, workload.n_test))
    # Rows that come at once are kept for all passes; else they are read while everything else is there.
    kept = _FLOAT * workload.n_train * workload.n_features if is_whole else 0
    solving = _ridge_nbytes(workload) if workload.is_regression else _logistic_nbytes(workload, penalties)
    fitting = max(train, kept + solving) if is_whole else train + solving
    fitting += _shuffles_nbytes(workload, penalties, shuffles)
    needed = max(fitting, kept + test) + _columns_nbytes(workload, chunk_rows, penalties)
    return needed + min(needed // 3, _KEPT_BY_ALLOCATOR)


def _reading_nbytes(w: Workload, n_rows: int, chunk_rows: int) -> int:
    """A chunk as it is stored and in float64, and the one before it, which is still at work."""
    n_copies = 1 if n_rows <= chunk_rows else 2
    return min(n_rows, chunk_rows) * w.n_features * (_STORED + n_copies * _FLOAT)


def _ridge_nbytes(w: Workload) -> int:
    """Matrices: those of the lots, and of one fit its sum, the penalised copy, and the factor.

    In the dual the kernels, made for each fit from its own centred copy of the rows if they are centred.
    """
    if w.is_dual:
        copies = 3 * _FLOAT * w.n_train * w.n_features if w.centres else 0
        return 4 * _FLOAT * w.n_train**2 + copies
    pieces = 2 * _FLOAT * min(w.n_train, PIECE_ROWS) * w.n_features if w.centres else 0
    return (max(w.n_folds, 1) + 3) * _FLOAT * w.n_features**2 + pieces


def _logistic_nbytes(w: Workload, penalties: int) -> int:
    """A Gram matrix, penalised copies before and after they are factorised, and a factor per penalty and output."""
    size = w.n_train if w.is_reduced else w.n_features
    basis = 2 * _FLOAT * w.n_train * w.n_features if w.is_reduced else 0
    return (4 + penalties * w.n_outputs) * _FLOAT * size**2 + basis


def _shuffles_nbytes(w: Workload, penalties: int, shuffles: int) -> int:
    """Shuffled targets, right sides, solutions, decision values of a fold and their ranks."""
    n_folds = max(w.n_folds, 1)
    if w.is_regression:
        in_fold, n = -(-w.n_train // n_folds), w.n_train if w.is_dual else (n_folds + 2) * w.n_features
        return _FLOAT * shuffles * (w.n_train + 6 * in_fold + n)
    return _FLOAT * shuffles * n_folds * penalties * w.n_outputs * (10 * w.n_train + 6 * w.n_features)


def _columns_nbytes(w: Workload, chunk_rows: int, penalties: int) -> int:
    """Decision values of all rows for all fits, and what is derived from them."""
    per_penalty = w.n_fits * w.n_outputs * w.n_targets
    coefficients = 4 * per_penalty * w.n_alphas * w.n_features
    decision = per_penalty * w.n_alphas * w.n_train
    if w.is_regression:
        at_work = 3 * per_penalty * w.n_alphas * min(chunk_rows, w.n_train)
    else:
        at_work = 9 * per_penalty * penalties * w.n_train
    scoring = 6 * w.n_alphas * w.n_outputs * w.n_train
    return _FLOAT * (coefficients + decision + at_work + scoring)
