"""Whether `--standardize` gives scikit-learn's numbers where a row is an outlier, whichever row it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.shared.cells import Cells, make_cells
from benchmarks.shared.measure import Limit, Spread, Table
from benchmarks.shared.peers import N_FOLDS, SEED
from benchmarks.solver.exactness import RIDGE_LIMIT
from gpu_probes import ArrayCellSource, SweepResult, sweep

DEVIATIONS = (1e5, 1e6, 1e8)
PROBABILITY_LIMIT = 1e-5


@dataclass(frozen=True)
class Outlier:
    """Errors with one row moved by so many deviations in every feature, and the worst certificates."""

    deviations: float
    row: str
    ridge_sd: float
    ridge_certificate: float
    probability: float
    logistic_certificate: float


def measure_outliers(n_samples: int, n_features: int, device: str) -> list[Outlier]:
    """Compare every held-out prediction with that of `StandardScaler` and a probe, fitted without its fold."""
    found: list[Outlier] = []
    for deviations in DEVIATIONS:
        for name, row in (("first", 0), ("middle", n_samples // 2)):
            cells = _moved(make_cells(n_samples, n_features, 1), row, deviations)
            ridge, expected = _fit(cells, device), _held_out(cells, Ridge(solver="svd"))
            binary = cells.binary()
            logistic = _fit(binary, device)
            model = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=500)
            found.append(
                Outlier(
                    deviations,
                    name,
                    # The outlier's own prediction is as large as it is.
                    ridge_sd=_largest(ridge, expected, np.maximum(np.abs(expected), cells.train_labels.std())),
                    ridge_certificate=float(ridge.certificate.max()),
                    probability=_largest(logistic, _held_out(binary, model), np.ones(n_samples)),
                    logistic_certificate=float(logistic.certificate.max()),
                )
            )
    return found


def outliers_table(found: Sequence[Outlier]) -> Table:
    """One row for each place of the outlier."""
    rows = [
        {
            "deviations": f"{one.deviations:g}",
            "row": one.row,
            "ridge, sd": f"{one.ridge_sd:.1e}",
            "its certificate": f"{one.ridge_certificate:.0e}",
            "logistic, probability": f"{one.probability:.1e}",
            "its certificate ": f"{one.logistic_certificate:.0e}",
        }
        for one in found
    ]
    return Table("--standardize with an outlier: held-out predictions off those of scikit-learn, at most", rows)


def outliers_limits(found: Sequence[Outlier]) -> list[Limit]:
    """What is allowed."""
    ridge, logistic = max(one.ridge_sd for one in found), max(one.probability for one in found)
    return [
        Limit("--standardize with an outlier: ridge predictions, sd", RIDGE_LIMIT, Spread.of([ridge])),
        Limit("--standardize with an outlier: probabilities", PROBABILITY_LIMIT, Spread.of([logistic])),
    ]


def _moved(cells: Cells, row: int, deviations: float) -> Cells:
    train = cells.train.astype(np.float64)
    train[row] += deviations * train.std(0)
    return Cells(train, cells.test, cells.train_labels, cells.test_labels)


def _fit(cells: Cells, device: str) -> SweepResult:
    options: dict[str, Any] = {"k_fold": True, "n_folds": N_FOLDS, "seed": SEED, "nested_cv": False, "device": device}
    source = ArrayCellSource(cells.train)
    return sweep(source, cells.train_labels, standardize=True, fit_intercept=True, **options)


def _held_out(cells: Cells, model: Any) -> np.ndarray:
    """Predictions of each row, or probabilities, by a pipeline that was fitted without its fold."""
    X, y = cells.train[:, 0, 0], cells.train_labels
    classifies = isinstance(model, LogisticRegression)
    splitter = (StratifiedKFold if classifies else KFold)(N_FOLDS, shuffle=True, random_state=SEED)
    out = np.empty(len(y))
    for kept, held_out in splitter.split(X, y):
        fitted = make_pipeline(StandardScaler(), model).fit(X[kept], y[kept])
        out[held_out] = fitted.predict_proba(X[held_out])[:, 1] if classifies else fitted.predict(X[held_out])
    return out


def _largest(result: SweepResult, expected: np.ndarray, unit: np.ndarray) -> float:
    assert result.cv_predictions is not None
    return float((np.abs(result.cv_predictions[0, 0, :, 0] - expected) / unit).max())
