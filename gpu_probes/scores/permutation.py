"""Permutation test of the best of many cells: how often permuted labels reach its score in any cell.

The statistic of a cell is its CV score at its best alpha, so that the choice is part of the test. The largest over all
cells of each permutation gives the null distribution (Westfall & Young 1993, single-step maxT), so a cell's p-value
accounts for all cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

# Equal sums of ranks may differ in the last digits.
_TIE = 1e-12


@dataclass(frozen=True)
class PermutationTest:
    """p-values ``(1 + number that score as high) / (1 + permutations)`` (Phipson & Smyth 2010); NaN without a score.

    Attributes
    ----------
    null_max : ndarray [shuffle]
        Largest score of any cell.
    p : ndarray [position, layer]
        Family-wise: share of permutations whose largest score in any cell reaches the cell's.
    p_uncorrected : ndarray [position, layer]
        Share of permutations whose score in this cell reaches its own: for a cell named in advance.
    p_best : float
        p of the cell with the highest score.
    """

    scheme: str
    observed_max: float
    null_max: Float64[np.ndarray, " shuffle"]
    p: Float64[np.ndarray, "position layer"]
    p_uncorrected: Float64[np.ndarray, "position layer"]

    @property
    def p_best(self) -> float:
        """Family-wise p-value of the best cell."""
        return float(np.nanmin(self.p))


def compare_with_shuffles(
    observed: Float64[np.ndarray, "position layer"], null: Float64[np.ndarray, "position layer shuffle"], scheme: str
) -> PermutationTest | str:
    """Compare scores with those of shuffled labels; cells without a score of their own take no part.

    Returns
    -------
    PermutationTest, or the reason why there is none
    """
    scored = ~np.isnan(observed)
    if not scored.any():
        return "no cell has a CV score"
    # Where shuffled labels leave a cell without a score, the other cells decide; without any, they tell nothing.
    null = null[:, :, ~np.isnan(null[scored]).all(0)]
    if not null.shape[-1]:
        return "no cell has a score for any of the shuffled labels"
    null = np.where(np.isnan(null), -np.inf, null)
    null_max = null[scored].max(0)
    reached = null_max[None] >= observed[scored][:, None] - _TIE
    reached_here = null[scored] >= observed[scored][:, None] - _TIE
    p, p_uncorrected = np.full(observed.shape, np.nan), np.full(observed.shape, np.nan)
    p[scored] = _p_values(reached)
    p_uncorrected[scored] = _p_values(reached_here)
    return PermutationTest(scheme, float(observed[scored].max()), null_max, p, p_uncorrected)


def _p_values(reached: Bool[np.ndarray, "cell shuffle"]) -> Float64[np.ndarray, " cell"]:
    return (1 + reached.sum(1)) / (1 + reached.shape[1])
