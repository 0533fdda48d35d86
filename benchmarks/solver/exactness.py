"""How far the fits are from independent ones: ridge from a singular value decomposition, logistic from scikit-learn."""

from __future__ import annotations

import numpy as np
from scipy.special import log1p
from sklearn.linear_model import Ridge

from benchmarks.measure import WrongResultError
from benchmarks.solver.data import Cells
from benchmarks.solver.peers import logistic_converged
from gpu_probes import SweepResult

RIDGE_LIMIT = 1e-6
LOGISTIC_LIMIT = 1e-8


def check_ridge(result: SweepResult, cells: Cells) -> str:
    """Largest error of the first cell's test predictions, in deviations of the labels.

    Raises
    ------
    WrongResultError
        It is more than 1e-6.
    """
    X, test = (rows[:, 0, 0].astype(np.float64) for rows in (cells.train, cells.test))
    model = Ridge(alpha=result.selected_alpha[0, 0], fit_intercept=False, solver="svd").fit(X, cells.train_labels)
    assert result.test_predictions is not None
    error = np.abs(result.test_predictions[0, 0, :, 0] - model.predict(test)).max() / cells.train_labels.std()
    if not error <= RIDGE_LIMIT:
        raise WrongResultError(f"test predictions are off by {error:.1e} deviations of the labels")
    return f"off by {error:.1e} sd"


def check_logistic(result: SweepResult, cells: Cells) -> str:
    """Objective of the first cell above scikit-learn's converged one, relative to it.

    Raises
    ------
    WrongResultError
        It is more than 1e-8.
    """
    X, y, alpha = cells.train[:, 0, 0].astype(np.float64), cells.train_labels, float(result.selected_alpha[0, 0])
    theirs = _objective(logistic_converged(X, y, alpha).coef_[0], X, y, alpha)
    excess = _objective(result.coef[0, 0, 0], X, y, alpha) / theirs - 1
    if not excess <= LOGISTIC_LIMIT:
        raise WrongResultError(f"the objective is {excess:.1e} above scikit-learn's")
    return f"objective {excess:+.1e} of newton-cholesky's"


def _objective(coef: np.ndarray, X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    margin = (2 * y - 1) * (X @ coef)
    losses = np.maximum(-margin, 0) + log1p(np.exp(-np.abs(margin)))
    return float(losses.sum() + alpha / 2 * coef @ coef)
