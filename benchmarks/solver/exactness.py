"""How far the fits are from independent ones: ridge from a singular value decomposition, logistic from scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped
from scipy.special import log1p
from sklearn.model_selection import KFold

from benchmarks.shared.cells import Cells
from benchmarks.shared.measure import Limit, Spread, Table
from benchmarks.shared.peers import N_FOLDS, SEED, logistic_converged
from gpu_probes import ArrayCellSource, SweepResult, sweep

RIDGE_LIMIT = 1e-6
LOGISTIC_LIMIT = 1e-8
ALPHAS = tuple(float(alpha) for alpha in np.logspace(-3, 5, 9))

Matrix = Shaped[np.ndarray, "sample feature"]
Numbers = Float64[np.ndarray, " sample"]


class RidgeReference:
    """Ridge fits of one training set at any alpha, from a singular value decomposition in float64."""

    def __init__(self, X: Matrix, y: Numbers) -> None:
        left, self._singular, self._right = np.linalg.svd(X.astype(np.float64), full_matrices=False)
        self._projected = left.T @ y

    def predict(self, X: Matrix, alpha: float) -> Numbers:
        """Predictions of the coefficients ``V diag(s / (s^2 + alpha)) U'y``."""
        shrunk = self._singular / (self._singular**2 + alpha)
        return X.astype(np.float64) @ (self._right.T @ (shrunk * self._projected))


def ridge_error(result: SweepResult, cells: Cells) -> float:
    """Largest error of the first cell's test predictions, in deviations of the training labels."""
    reference = RidgeReference(cells.train[:, 0, 0], cells.train_labels)
    expected = reference.predict(cells.test[:, 0, 0], float(result.selected_alpha[0, 0]))
    assert result.test_predictions is not None
    return float(np.abs(result.test_predictions[0, 0, :, 0] - expected).max() / cells.train_labels.std())


def logistic_excess(result: SweepResult, cells: Cells, cell: tuple[int, int] = (0, 0)) -> float:
    """Objective of a cell above scikit-learn's converged one, relative to it; `cell` is its (position, layer) index."""
    position, layer = cell
    X, y = cells.train[:, layer, position].astype(np.float64), cells.train_labels
    alpha = float(result.selected_alpha[cell])
    with warnings.catch_warnings():
        # Where its Hessian is too ill-conditioned it goes over to L-BFGS, and says so.
        warnings.simplefilter("ignore")
        theirs = _objective(logistic_converged(X, y, alpha).coef_[0], X, y, alpha)
    return _objective(result.coef[position, layer, 0], X, y, alpha) / theirs - 1


@dataclass(frozen=True)
class Errors:
    """Largest errors over some cells, for each alpha."""

    data: str
    ridge_sd: Sequence[float]
    logistic_excess: Sequence[float]


def measure_errors(data: str, cells: Cells, *, n_logistic: int, device: str) -> Errors:
    """Compare every cell's held-out ridge predictions, and the logistic objective of some cells spread over them."""
    n_layers, n_positions = cells.train.shape[1:3]
    expected = {
        (position, layer): held_out
        for position, layer in np.ndindex(n_positions, n_layers)
        if (held_out := _held_out(cells.train[:, layer, position], cells.train_labels)) is not None
    }
    ridge, excess = np.zeros(len(ALPHAS)), np.full(len(ALPHAS), -np.inf)
    varying, binary = list(expected), cells.binary()
    chosen = [varying[i] for i in np.unique(np.linspace(0, len(varying) - 1, n_logistic).astype(int))]
    for k, alpha in enumerate(ALPHAS):
        source = ArrayCellSource(cells.train)
        options: dict[str, Any] = {"alpha": alpha, "n_folds": N_FOLDS, "seed": SEED, "device": device}
        predictions = sweep(source, cells.train_labels, k_fold=True, nested_cv=False, **options).cv_predictions
        assert predictions is not None
        off = [np.abs(predictions[cell][:, 0] - held_out[k]).max() for cell, held_out in expected.items()]
        ridge[k] = max(off) / cells.train_labels.std()
        fitted = sweep(source, binary.train_labels, **options)
        excess[k] = max(logistic_excess(fitted, binary, cell) for cell in chosen)
    return Errors(data, ridge.tolist(), excess.tolist())


def errors_table(errors: Errors) -> Table:
    """One row for each alpha."""
    rows = [
        {"alpha": f"{alpha:g}", "ridge, sd": f"{ridge:.1e}", "logistic, relative": f"{excess:+.1e}"}
        for alpha, ridge, excess in zip(ALPHAS, errors.ridge_sd, errors.logistic_excess, strict=True)
    ]
    return Table(
        f"{errors.data}: held-out ridge predictions off those of an SVD, and the logistic objective above "
        "newton-cholesky's, at most",
        rows,
    )


def errors_limits(errors: Errors) -> list[Limit]:
    """What is allowed."""
    return [
        Limit(f"{errors.data}: ridge predictions, sd", RIDGE_LIMIT, Spread.of([max(errors.ridge_sd)])),
        Limit(f"{errors.data}: logistic objective, relative", LOGISTIC_LIMIT, Spread.of([max(errors.logistic_excess)])),
    ]


def _held_out(X: Matrix, y: Numbers) -> Float64[np.ndarray, "alpha sample"] | None:
    """Held-out predictions at every alpha; None for a cell whose rows are all equal."""
    if not (X[0] != X).any():
        return None
    out = np.empty((len(ALPHAS), len(y)))
    for kept, held_out in KFold(N_FOLDS, shuffle=True, random_state=SEED).split(y):
        reference = RidgeReference(X[kept], y[kept])
        for k, alpha in enumerate(ALPHAS):
            out[k, held_out] = reference.predict(X[held_out], alpha)
    return out


def _objective(coef: np.ndarray, X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    margin = (2 * y - 1) * (X @ coef)
    losses = np.maximum(-margin, 0) + log1p(np.exp(-np.abs(margin)))
    return float(losses.sum() + alpha / 2 * coef @ coef)
