"""How many cells and rows at a time, in how many threads. Pure: numbers in, a plan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpu_probes.display.wording import sizes
from gpu_probes.errors import BudgetError
from gpu_probes.features.rows import PIECE_ROWS
from gpu_probes.terms import Cell, PermutationStatistic, ProbeKind

# Blocks of cells that are small are joined, up to this much: the cost of a call is spread over them.
_SMALL_BLOCK_BYTES = 2**25
_MIN_CHUNK_ROWS = 256
_BLOCKS_PER_WORKER = 4
# Shuffled targets of a ridge, and columns of a logistic regression, that are wide enough for a matrix product.
_MOST_SHUFFLES, _MOST_COLUMNS = 1024, 512
_FLOAT = 8
# Results that are more than this part of the budget go to a file.
_RESULT_PART = 4
_STORED = 4  # most stores hold float32 or half of that
# The C library gives freed blocks below this size back to the system only from the end of a thread's heap.
_KEPT_BY_ALLOCATOR = 2**25


@dataclass(frozen=True)
class Workload:
    """What memory depends on: labels are `n_targets` of a ridge, classes those of a probe in closed form."""

    n_train: int
    n_test: int
    n_features: int
    n_outputs: int
    n_targets: int
    n_alphas: int
    n_folds: int
    probe: ProbeKind
    centres: bool = False
    standardize: bool = False
    unpenalised: bool = False
    n_pairs: int = 0
    n_shuffles: int = 0
    statistic: PermutationStatistic = "probe"
    weighted: bool = False
    # Centred and weighted copies are of a few rows at a time, as on a CPU, or of a whole lot, as on a GPU: the largest
    # has so many rows (0: all have as many).
    in_pieces: bool = True
    largest_lot: int = 0

    @property
    def n_fits(self) -> int:
        """Fits of a cell at one alpha: without each fold, without each pair of them, and on everything."""
        return self.n_folds + self.n_pairs + 1

    @property
    def n_columns(self) -> int:
        """Coefficient vectors of a fit at one alpha while it is worked on."""
        return self.n_targets if self.probe in ("lda", "mass_mean") else self.n_targets * self.n_outputs

    @property
    def natural(self) -> ProbeKind:
        """What baselines fit to the same labels."""
        if self.probe == "binomial":
            return "binomial"
        numbers = self.probe == "ridge" or (self.probe == "mass_mean" and self.n_targets == 1)
        return "ridge" if numbers else "logistic"

    @property
    def is_logistic(self) -> bool:
        """Whether it is fitted step by step, all of its fits at once."""
        return self.probe in ("logistic", "binomial")

    @property
    def shuffles_in_steps(self) -> bool:
        """Whether shuffled labels, too, are fitted step by step, rather than by least squares."""
        return self.is_logistic and self.statistic == "probe"

    @property
    def solves_ridges(self) -> bool:
        """Whether there are ridges to solve: the probe's, or those of a logistic regression's shuffled labels."""
        beside = self.is_logistic and self.n_shuffles > 0 and not self.shuffles_in_steps
        return self.probe in ("ridge", "lda") or beside

    @property
    def is_dual(self) -> bool:
        """Whether a ridge solves for a number per row: some fit has fewer rows than features.

        Not for alpha 0 if the fit on everything has enough of them: then there may be one solution, and the rows' own
        system has many.
        """
        fewest = self.n_train - -(-self.n_train // self.n_folds) if self.n_folds else self.n_train
        too_few = self.n_train if self.unpenalised else fewest
        return self.solves_ridges and too_few < self.n_features

    @property
    def is_reduced(self) -> bool:
        """Whether a logistic regression works in the span of its rows: `gpu_probes.solvers.logistic_problem.Design`."""
        return self.is_logistic and self.n_train < self.n_features and not self.standardize


@dataclass(frozen=True)
class BlockPlan:
    """Which cells are processed together, and how."""

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
    held_nbytes: int = 0,
    what: str = "one cell",
) -> BlockPlan:
    """Choose the largest blocks and chunks that stay within a budget.

    Parameters
    ----------
    cells : all cells, in the order of the result
    workload : what one cell takes
    budget_bytes : what the work on one device may take
    n_workers : blocks that one device works on at the same time, at most
    joins_cells : work on many cells at once (a GPU) rather than only join small ones (CPU cores)
    n_devices : how many share the cells
    held_nbytes : what else is held of the budget
    what : what needs the memory, for the message

    Raises
    ------
    BudgetError
        When not even one cell fits, a few rows at a time.
    """
    check_budget(least_nbytes(workload) + held_nbytes, budget_bytes, what)
    budget_bytes -= held_nbytes
    whole, fewest = _most_rows(workload), _fewest_rows(workload)
    chunk_rows, penalties, n_workers = whole, workload.n_alphas, min(n_workers, -(-len(cells) // n_devices))
    shuffles = min(workload.n_shuffles, most_shuffles(workload))
    while cell_nbytes(workload, chunk_rows, penalties, shuffles) * n_workers > budget_bytes:
        mostly_columns = _columns_nbytes(workload, chunk_rows, penalties) > _reading_nbytes(workload, whole, chunk_rows)
        if shuffles > 1 and _shuffles_nbytes(workload, penalties, shuffles) * n_workers > budget_bytes // 2:
            shuffles = -(-shuffles // 2)
        elif n_workers > 1:
            n_workers -= 1
        elif penalties > 1 and workload.is_logistic and (mostly_columns or chunk_rows <= fewest):
            penalties = -(-penalties // 2)
        elif chunk_rows > fewest:
            chunk_rows = max(chunk_rows // 2, fewest)
        else:
            shuffles = -(-shuffles // 2)
    per_cell = cell_nbytes(workload, chunk_rows, penalties, shuffles)
    fitting = budget_bytes // (per_cell * n_workers)
    wanted = fitting if joins_cells else max(_SMALL_BLOCK_BYTES // per_cell, 1)
    # Several blocks for each worker of a GPU: one is read and copied while another is computed.
    n_turns = n_workers * n_devices * (_BLOCKS_PER_WORKER if joins_cells else 1)
    size = max(min(fitting, wanted, -(-len(cells) // n_turns)), 1) if chunk_rows == whole else 1
    blocks = tuple(tuple(cells[start : start + size]) for start in range(0, len(cells), size))
    return BlockPlan(blocks, chunk_rows, penalties, max(shuffles, 1), n_workers, per_cell * size * n_workers)


def check_budget(needed_nbytes: int, budget_bytes: int, what: str) -> None:
    """Raise `BudgetError` if something needs more than the budget."""
    if needed_nbytes > budget_bytes:
        needed, allowed = sizes(needed_nbytes, budget_bytes)
        raise BudgetError(
            f"{what} needs {needed}, the budget is {allowed}; allow more with budget_bytes=..., or give fewer alphas "
            "or folds (n_folds=..., nested_cv=False)",
            argument="budget_bytes",
        )


def least_nbytes(workload: Workload) -> int:
    """Peak memory of one cell, as little at a time as can be."""
    chunk_rows, penalties = _fewest_rows(workload), 1 if workload.is_logistic else workload.n_alphas
    return cell_nbytes(workload, chunk_rows, penalties, min(workload.n_shuffles, 1))


def _most_rows(w: Workload) -> int:
    return max(w.n_train, w.n_test, 1)


def _fewest_rows(w: Workload) -> int:
    # A number per row needs all training rows at once.
    needed = max(_MIN_CHUNK_ROWS, w.n_train if w.is_dual or w.is_reduced else 0)
    return min(needed, _most_rows(w))


def most_shuffles(workload: Workload) -> int:
    """Shuffled targets that are worth working on at once."""
    if not workload.shuffles_in_steps:
        return max(_MOST_SHUFFLES // workload.n_outputs, 1)
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
    solving = _solving_nbytes(workload, penalties)
    fitting = max(train + _left_nbytes(workload), kept + solving) if is_whole else train + solving
    fitting += _shuffles_nbytes(workload, penalties, shuffles)
    needed = max(fitting, kept + test) + _columns_nbytes(workload, chunk_rows, penalties)
    return needed + min(needed // 3, _KEPT_BY_ALLOCATOR)


def _reading_nbytes(w: Workload, n_rows: int, chunk_rows: int) -> int:
    """A chunk as it is stored and in float64, and the one before it, which is still at work."""
    n_copies = 1 if n_rows <= chunk_rows else 2
    return min(n_rows, chunk_rows) * w.n_features * (_STORED + n_copies * _FLOAT)


def _left_nbytes(w: Workload) -> int:
    """What a CPU has left of the block before, to be used again: matrices of the lots, of a fit, and its factor."""
    if not (w.in_pieces and w.solves_ridges):
        return 0
    return _FLOAT * (w.n_train**2 if w.is_dual else (max(w.n_folds, 1) + 2) * w.n_features**2)


def _solving_nbytes(w: Workload, penalties: int) -> int:
    if w.probe == "mass_mean":
        return 3 * _FLOAT * max(w.n_folds, 1) * w.n_features * w.n_targets
    logistic = _logistic_nbytes(w, penalties) if w.is_logistic else 0
    return max(logistic, _ridge_nbytes(w) if w.solves_ridges else 0)


def _ridge_nbytes(w: Workload) -> int:
    """Matrices: those of the lots, and of one fit its sum, the penalised copy, and the factor.

    In the dual the kernels, made for each fit from its own centred copy of the rows if they are centred.
    """
    if w.is_dual:
        copies = 3 * _FLOAT * w.n_train * w.n_features if w.centres else 0
        return 4 * _FLOAT * w.n_train**2 + copies
    lot = w.largest_lot or -(-w.n_train // max(w.n_folds, 1))
    rows_of_piece = min(w.n_train, PIECE_ROWS) if w.in_pieces else lot
    pieces = 2 * _FLOAT * rows_of_piece * w.n_features if w.centres or w.weighted else 0
    return (max(w.n_folds, 1) + 3) * _FLOAT * w.n_features**2 + pieces


def _logistic_nbytes(w: Workload, penalties: int) -> int:
    """A Gram matrix, penalised copies before and after they are factorised, and a factor per penalty and output.

    Those of a penalty serve all outputs at first, and are there beside those of each output that replace them. On a
    GPU there are weighted copies of all rows, made from shifted, scaled and extended ones.
    """
    size = w.n_train if w.is_reduced else w.n_features
    basis = 2 * _FLOAT * w.n_train * w.n_features if w.is_reduced else 0
    n_factors = penalties * (w.n_outputs + (w.n_outputs > 1))
    copies = 0 if w.in_pieces else (4 if w.centres else 1) * _FLOAT * w.n_train * size
    return (4 + n_factors) * _FLOAT * size**2 + basis + copies


def _shuffles_nbytes(w: Workload, penalties: int, shuffles: int) -> int:
    """Orders as they are drawn, shuffled targets, right sides, solutions, decision values of a fold and their ranks."""
    n_folds = max(w.n_folds, 1)
    if not w.shuffles_in_steps:
        # Labels in their own order come with the first of the shuffles.
        n_columns = (shuffles + 1 if w.statistic == "least_squares" and shuffles else shuffles) * w.n_outputs
        in_fold, n = -(-w.n_train // n_folds), w.n_train if w.is_dual else (n_folds + 2) * w.n_features
        return _FLOAT * n_columns * (4 * w.n_train + 6 * in_fold + n)
    return _FLOAT * shuffles * n_folds * penalties * w.n_outputs * (10 * w.n_train + 6 * w.n_features)


def _columns_nbytes(w: Workload, chunk_rows: int, penalties: int) -> int:
    """Decision values of all rows for all fits, and what is derived from them."""
    per_penalty = w.n_fits * w.n_columns
    coefficients = 4 * per_penalty * w.n_alphas * w.n_features
    # The fits of a mass-mean probe are the same for all alphas, and stay one array.
    decision = per_penalty * w.n_train * (1 if w.probe == "mass_mean" else w.n_alphas)
    at_work = {
        "ridge": (3 * per_penalty * w.n_alphas + 2 * w.n_fits) * min(chunk_rows, w.n_train),
        "logistic": 10 * per_penalty * penalties * w.n_train,
        "binomial": 10 * per_penalty * penalties * w.n_train,
        "lda": 4 * decision,
        "mass_mean": 4 * decision,
    }
    scoring = 6 * w.n_alphas * w.n_outputs * w.n_train
    # Labels as they are read, as targets, by row of a chunk, and drawn at random.
    labels = 6 * w.n_columns * w.n_train
    return _FLOAT * (coefficients + decision + at_work[w.probe] + scoring + labels)


def result_nbytes(w: Workload) -> int:
    """What is kept of one cell and label: decision values of all rows, the probe, scores of shuffled labels."""
    rows = w.n_train * (2 if w.n_folds else 1) + w.n_test
    per_fit = (w.n_folds + 1) * w.n_alphas * (_FLOAT + 1)
    scores = w.n_shuffles + 1 + w.n_alphas + 3 * w.n_folds
    return _FLOAT * (w.n_outputs * (rows + w.n_features + 1) + scores) + per_fit


def labels_nbytes(w: Workload) -> int:
    """One label of all rows, and the folds of the training rows."""
    return _FLOAT * (2 * w.n_train + w.n_test)


def held_nbytes(result_nbytes: int, budget_bytes: int) -> int:
    """Memory that results take: none if they exceed their part of the budget and go to a file."""
    return result_nbytes if result_nbytes <= budget_bytes // _RESULT_PART else 0


@dataclass(frozen=True)
class Work:
    """Fits of some cells to some labels: what they are for, how many, and what one cell takes."""

    what: str
    n_cells: int
    n_labels: int
    workload: Workload


def plan_later(sweep: Workload, *, n_directions: int, n_draws: int) -> list[Work]:
    """What is fitted once a sweep's best cell is known: it is planned before.

    Parameters
    ----------
    sweep : of the sweep
    n_directions : random directions, each the only feature of a cell
    n_draws : random labels of one cell, which can be fitted one by one
    """
    one = replace(sweep, n_pairs=0, n_shuffles=0, n_targets=1 if sweep.probe == "ridge" else sweep.n_targets)
    number = replace(
        one,
        probe=sweep.natural,
        n_targets=1,
        n_features=1,
        n_alphas=1,
        centres=True,
        standardize=True,
        unpenalised=False,
    )
    return [
        # Rows that are left out weigh nothing.
        Work("the learning curve", 1, 1, replace(one, weighted=True)),
        Work("the baseline of random labels", 1, n_draws, one),
        Work("the baseline of one number", 1, 1, number),
        Work("the baseline of random directions", n_directions, 1, number),
    ]
