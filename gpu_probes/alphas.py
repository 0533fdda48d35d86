"""Grids of alphas: checked, or scaled to the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from gpu_probes.cells import Cell, CellSource, cells_of
from gpu_probes.errors import PenaltyError

AUTO = "auto"
# Below the first, ridge is least squares but for the directions that carry nothing; above the second, all
# coefficients shrink alike and the ranking of the predictions stays as it is.
_LOWEST, _HIGHEST = 1e-4, 1e2
_SAMPLE_ROWS = 256


def choose_alphas(
    alpha: float, alphas: Sequence[float] | Literal["auto"] | None, *, k_fold: bool, train: CellSource
) -> tuple[float, ...]:
    """The alphas to fit: `alpha` alone, a grid, or for ``auto`` the decades that suit the features.

    ``auto`` goes from 1e-4 times the mean eigenvalue of X'X, in the cell where it is lowest, to 100 times that in the
    cell where it is highest, rounded outwards to powers of ten. It sees training features only, never a label.

    Raises
    ------
    PenaltyError
        When there is something to choose between and no cross-validation to choose with.
    """
    if alphas is None:
        return (float(alpha),)
    if not k_fold and (alphas == AUTO or len(alphas) > 1):
        raise PenaltyError("several alphas are given but nothing to choose between them with; use --k_fold")
    if alphas != AUTO:
        return tuple(float(value) for value in alphas)
    scales = [_mean_eigenvalue(train, cell) for cell in cells_of(train)]
    scales = [scale for scale in scales if 0 < scale < math.inf]
    if not scales:
        return (float(alpha),)
    low, high = math.floor(math.log10(_LOWEST * min(scales))), math.ceil(math.log10(_HIGHEST * max(scales)))
    return tuple(float(f"1e{power}") for power in range(low, high + 1))


def _mean_eigenvalue(source: CellSource, cell: Cell) -> float:
    """Mean eigenvalue of X'X, estimated from the first rows."""
    total, n_rows = 0.0, 0
    for _, block in source.cell_blocks(cell.layer, cell.position):
        part = np.asarray(block[: _SAMPLE_ROWS - n_rows], dtype=np.float64)
        total, n_rows = total + float(np.square(part).sum()), n_rows + len(part)
        if n_rows >= _SAMPLE_ROWS:
            break
    return total / n_rows * source.n_samples / source.n_features
