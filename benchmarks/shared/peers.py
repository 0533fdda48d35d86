"""What the fits are compared with: the original scripts' loop, and what a user of scikit-learn could write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from jaxtyping import Float
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold

from benchmarks.shared.cells import Cells

N_FOLDS, SEED = 5, 42

Matrix = Float[np.ndarray, "sample feature"]
# Takes the training rows, their labels and an alpha; returns something with `predict`, or `predict_proba`.
Fit = Callable[[Matrix, np.ndarray, float], Any]


def ridge(X: Matrix, y: np.ndarray, alpha: float) -> Ridge:
    """The original's regression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # float32 is not enough for it: that is the point
        return Ridge(alpha=alpha, fit_intercept=False).fit(X, y.astype(X.dtype))


def logistic_as_it_was(X: Matrix, y: np.ndarray, alpha: float) -> LogisticRegression:
    """The original's classification: L-BFGS, at most 1,000 iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1 / alpha, fit_intercept=False, max_iter=1000).fit(X, y)


def logistic_converged(X: Matrix, y: np.ndarray, alpha: float) -> LogisticRegression:
    """scikit-learn's own solver that converges."""
    return LogisticRegression(C=1 / alpha, fit_intercept=False, solver="newton-cholesky", tol=1e-8).fit(X, y)


def loop(cells: Cells, n_cells: int, alphas: Sequence[float], dtype: type, fit: Fit) -> list[Any]:
    """The original scripts: cells x alphas x (folds + 1) fits, each with its predictions and its score.

    Returns
    -------
    list
        The model of every cell and alpha, fitted on all training rows.
    """
    classifies = fit is not ridge
    splitter = (StratifiedKFold if classifies else KFold)(N_FOLDS, shuffle=True, random_state=SEED)
    y, final = cells.train_labels, []
    for cell in range(n_cells):
        X, test = (rows[:, cell, 0].astype(dtype) for rows in (cells.train, cells.test))
        for alpha in alphas:
            for kept, held_out in splitter.split(X, y):
                _score(fit(X[kept], y[kept], alpha), X[held_out], y[held_out], classifies=classifies)
            model = fit(X, y, alpha)
            _score(model, X, y, classifies=classifies)
            _score(model, test, cells.test_labels, classifies=classifies)
            final.append(model)
    return final


def gram_per_fold(cells: Cells, n_cells: int, alphas: Sequence[float]) -> None:
    """What a user of NumPy could write: one Gram matrix per fold, a solution of it per alpha, in float64."""
    y = cells.train_labels
    splits = list(KFold(N_FOLDS, shuffle=True, random_state=SEED).split(y))
    everything = np.arange(len(y))
    for cell in range(n_cells):
        X, test = (rows[:, cell, 0].astype(np.float64) for rows in (cells.train, cells.test))
        for kept, held_out in [*splits, (everything, everything)]:
            part = X[kept]
            wide = part.shape[0] < part.shape[1]
            gram, side = (part @ part.T, y[kept]) if wide else (part.T @ part, part.T @ y[kept])
            for alpha in alphas:
                penalised = gram + alpha * np.eye(len(gram))
                solution = scipy.linalg.solve(penalised, side, assume_a="pos", overwrite_a=True)
                coef = part.T @ solution if wide else solution
                spearmanr(y[held_out], X[held_out] @ coef)
                if kept is everything:
                    spearmanr(cells.test_labels, test @ coef)


def ridge_of_all_alphas(cells: Cells, n_cells: int, alphas: Sequence[float]) -> None:
    """scikit-learn with the alphas as so many targets of one fit, which then makes its Gram matrix once, in float64."""
    y = cells.train_labels
    alpha_of_target: Any = np.array(alphas)
    targets = np.repeat(y[:, None], len(alphas), axis=1)
    splits = list(KFold(N_FOLDS, shuffle=True, random_state=SEED).split(y))
    for cell in range(n_cells):
        X, test = (rows[:, cell, 0].astype(np.float64) for rows in (cells.train, cells.test))
        parts = [(kept, X[held_out], y[held_out]) for kept, held_out in splits]
        for kept, rows, labels in [*parts, (np.arange(len(y)), test, cells.test_labels)]:
            model = Ridge(alpha=alpha_of_target, fit_intercept=False).fit(X[kept], targets[kept])
            for predictions in np.atleast_2d(model.predict(rows).T):
                spearmanr(labels, predictions)


def himalaya(cells: Cells, n_cells: int, alphas: Sequence[float]) -> None:
    """Himalaya's cross-validated ridge in float64, in the kernel where it advises that; scores are its own R2."""
    set_backend("torch")
    splitter: Any = KFold(N_FOLDS, shuffle=True, random_state=SEED)
    for cell in range(n_cells):
        X, test = (rows[:, cell, 0].astype(np.float64) for rows in (cells.train, cells.test))
        if X.shape[0] < X.shape[1]:
            model = KernelRidgeCV(alphas=np.array(alphas), kernel="linear", cv=splitter)
        else:
            model = RidgeCV(alphas=np.array(alphas), fit_intercept=False, cv=splitter)
        model.fit(X, cells.train_labels[:, None])
        spearmanr(cells.test_labels, np.asarray(model.predict(test))[:, 0])


def _score(model: Any, X: Matrix, y: np.ndarray, *, classifies: bool) -> float:
    if classifies:
        return float(roc_auc_score(y, model.predict_proba(X)[:, 1]))
    return float(np.asarray(spearmanr(y, model.predict(X)))[0])
