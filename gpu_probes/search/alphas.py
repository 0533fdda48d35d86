"""Grids of alphas: checked, or scaled to the data. What alpha means: `gpu_probes.solvers.objective`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Shaped

from gpu_probes.errors import PenaltyError
from gpu_probes.features.cells import CellSource, cells_of
from gpu_probes.solvers.objective import penalties_of
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.terms import Cell

AUTO: Literal["auto"] = "auto"
# Below the first, ridge is least squares except in directions without variance; above the second, all
# coefficients shrink alike and the ranking of the predictions no longer changes.
_LOWEST, _HIGHEST = 1e-4, 1e2
_SAMPLE_ROWS = 256


def parse_alphas(alphas: Any) -> Any:
    """Read a comma-separated string of numbers; ``auto`` and non-strings are returned unchanged.

    Raises
    ------
    PenaltyError
        When the string is neither.
    """
    if not isinstance(alphas, str) or alphas == AUTO:
        return alphas
    try:
        return [float(item) for item in alphas.split(",")]
    except ValueError as error:
        raise PenaltyError(
            f"alphas={alphas!r} is unknown; give numbers, or auto: write numbers with commas between, such as 1,10,100",
            argument="alphas",
        ) from error


def read_alphas(alpha: Any, alphas: Any, *, k_fold: bool) -> tuple[float, ...] | Literal["auto"]:
    """The alphas to fit, as far as they are known without features: see `choose_alphas`."""
    penalties_of([alpha], "regression", argument="alpha")
    if alphas is None:
        return (float(alpha),)
    given = parse_alphas(alphas)
    if not isinstance(given, Iterable):
        raise PenaltyError(
            f"alphas={given!r} is not a list; give several numbers, such as 1,10,100, or auto", argument="alphas"
        )
    grid = AUTO if isinstance(given, str) else tuple(penalties_of(list(given), "regression", argument="alphas"))
    if not k_fold and (grid == AUTO or len(grid) > 1):
        raise PenaltyError(
            f"alphas={alphas!r}: choosing among several alphas needs cross-validation; use k_fold=True",
            argument="alphas",
        )
    return grid


def choose_alphas(
    alpha: float,
    alphas: Sequence[float] | Float64[np.ndarray, " alpha"] | str | None,
    *,
    k_fold: bool,
    train: CellSource,
    preprocessing: Preprocessing,
    total_weight: float,
) -> tuple[float, ...]:
    """The alphas to fit: `alpha` alone, a grid, or for ``auto`` powers of ten scaled to the features.

    ``auto`` goes from 1e-4 times the mean eigenvalue of X'X (of the features as they are fitted: centred,
    standardized, weighted), in the cell where it is lowest, to 100 times that in the cell where it is highest, rounded
    outwards to powers of ten. It sees training features only, never a label.

    Raises
    ------
    PenaltyError
        When there are several alphas and no cross-validation to choose by, or `alpha` is not a penalty.
    """
    grid = read_alphas(alpha, alphas, k_fold=k_fold)
    if grid != AUTO:
        return grid
    scales = [total_weight * _mean_variance(train, cell, preprocessing) for cell in cells_of(train)]
    scales = [scale for scale in scales if 0 < scale < math.inf]
    if not scales:
        return (float(alpha),)
    low, high = math.floor(math.log10(_LOWEST * min(scales))), math.ceil(math.log10(_HIGHEST * max(scales)))
    return tuple(float(f"1e{power}") for power in range(low, high + 1))


def _mean_variance(source: CellSource, cell: Cell, preprocessing: Preprocessing) -> float:
    """Mean over the features of their mean square, as they are fitted; estimated from the first rows."""
    from sklearn.preprocessing import StandardScaler

    blocks = [np.asarray(block, dtype=np.float64) for block in _first_blocks(source, cell)]
    rows = np.concatenate(blocks)[:_SAMPLE_ROWS]
    # Cells with numbers whose squares overflow get no probe, and a reason.
    with np.errstate(over="ignore", invalid="ignore"):
        if preprocessing.standardize:
            # One for each feature, but for those that `StandardScaler` takes for constant, which stay as they are.
            rows = StandardScaler().fit_transform(rows)
        elif preprocessing.centres:
            rows = rows - rows.mean(0)
        return float(np.square(rows).mean())


def _first_blocks(source: CellSource, cell: Cell) -> Iterator[Shaped[np.ndarray, "row feature"]]:
    """Blocks of a cell until there are rows enough, cut to what is needed of them."""
    for held, block in source.cell_blocks(cell.layer, cell.position):
        yield block[:_SAMPLE_ROWS]
        if held.stop >= _SAMPLE_ROWS:
            return
