"""What a sweep finds in each cell, as arrays: of a block of cells while it runs, of all of them at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Shaped


@dataclass(frozen=True, kw_only=True)
class CellArrays:
    """Arrays whose first axes are cells: ``[cell, ...]`` in a block, ``[position, layer, ...]`` in a result.

    Undefined numbers are NaN; `status` says why.

    Attributes
    ----------
    status : ndarray [*cell] of Status
    coef, intercept : ndarray [*cell, output, feature], [*cell, output]
        The probe in raw features: one vector per output, which is one for regression and two classes, otherwise one
        per class.
    certificate : ndarray [*cell, fit, alpha]
        How much each fit (one without each fold, the last on everything) exceeds the minimum of its objective at most,
        relative to the objective at zero.
    solver : ndarray [*cell, fit, alpha] of Solver
        How the fit was found.
    selected_alpha : ndarray [*cell]
    train_score, test_score, cv_score : ndarray [*cell]
    alpha_cv_score : ndarray [*cell, alpha]
    train_decision, test_decision, cv_decision : ndarray [*cell, sample, output]
        Decision values, which scores rank; None without test rows, or without folds.
    inner_score, inner_alpha : ndarray [*cell, fold]
        Of nested cross-validation: the CV score over the other folds, at the alpha that they choose.
    outer_score : ndarray [*cell, fold]
        The score on the fold itself of that alpha's fit on the others.
    observed_score : ndarray [*cell]
        What permutations are compared with: the CV score, or that of least squares on class indicators.
    null_score : ndarray [*cell, shuffle]
        The same score, each at its best alpha, of shuffled labels.
    """

    status: Shaped[np.ndarray, "*cell"]
    coef: Float64[np.ndarray, "*cell output feature"]
    intercept: Float64[np.ndarray, "*cell output"]
    certificate: Float64[np.ndarray, "*cell fit alpha"]
    solver: Int8[np.ndarray, "*cell fit alpha"]
    selected_alpha: Float64[np.ndarray, "*cell"]
    train_score: Float64[np.ndarray, "*cell"]
    test_score: Float64[np.ndarray, "*cell"]
    cv_score: Float64[np.ndarray, "*cell"]
    alpha_cv_score: Float64[np.ndarray, "*cell alpha"]
    train_decision: Float64[np.ndarray, "*cell train_sample output"]
    test_decision: Float64[np.ndarray, "*cell test_sample output"] | None
    cv_decision: Float64[np.ndarray, "*cell train_sample output"] | None
    inner_score: Float64[np.ndarray, "*cell fold"]
    inner_alpha: Float64[np.ndarray, "*cell fold"]
    outer_score: Float64[np.ndarray, "*cell fold"]
    observed_score: Float64[np.ndarray, "*cell"]
    null_score: Float64[np.ndarray, "*cell shuffle"]
