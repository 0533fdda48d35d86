"""What probes say of rows: decision values, predictions, and what scores rank."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Shaped

from gpu_probes.features.cells import CellSource
from gpu_probes.terms import Cell


def decide(
    source: CellSource,
    cell: Cell,
    coef: Float64[np.ndarray, "output feature"],
    intercept: Float64[np.ndarray, " output"],
) -> Float64[np.ndarray, "sample output"]:
    """Decision values of every row of a cell."""
    # Rows that are not finite decide nothing, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([_widened(block) @ coef.T + intercept for _, block in source.cell_blocks(*cell)])


def row_norms(source: CellSource, cell: Cell) -> Float64[np.ndarray, " sample"]:
    """Euclidean length of every row of a cell."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([np.linalg.norm(_widened(block), axis=1) for _, block in source.cell_blocks(*cell)])


def _widened(block: Shaped[np.ndarray, "row feature"]) -> Float64[np.ndarray, "row feature"]:
    return block.astype(np.float64)
