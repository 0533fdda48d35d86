"""Nested cross-validation against a plain loop of scikit-learn fits."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from gpu_probes import ArrayCellSource, SweepResult, sweep
from gpu_probes.scores.nested import NestedCV

N, LAYERS, POSITIONS = 60, 3, 2
ALPHAS = [0.1, 10.0, 1000.0]


def cells(n_features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((N, LAYERS, POSITIONS, n_features))
    return array, array[:, 1, 0] @ rng.standard_normal(n_features) / n_features**0.5 + rng.standard_normal(N)


def fold_score(labels: np.ndarray, rows: np.ndarray, train: np.ndarray, held_out: np.ndarray, alpha: float) -> float:
    if set(labels) <= {0.0, 1.0}:
        model = LogisticRegression(C=1 / alpha, fit_intercept=False, solver="newton-cholesky", tol=1e-8)
        model.fit(rows[train], labels[train])
        return roc_auc_score(labels[held_out], model.decision_function(rows[held_out]))
    model = Ridge(alpha, fit_intercept=False, solver="cholesky").fit(rows[train], labels[train])
    return spearmanr(labels[held_out], model.predict(rows[held_out])).statistic


def nested_loop(array: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[float]:
    """Score on each fold of what the others choose."""
    scores = []
    for outer in np.unique(folds):
        inner = [fold for fold in np.unique(folds) if fold != outer]
        best = (-np.inf, None)
        for position, layer, alpha in product(range(POSITIONS), range(LAYERS), ALPHAS):
            rows = array[:, layer, position]
            values = [
                fold_score(labels, rows, (folds != outer) & (folds != fold), folds == fold, alpha) for fold in inner
            ]
            # Equal means may differ in the last digit.
            if np.mean(values) > best[0] + 1e-12:
                best = (np.mean(values), (rows, alpha))
        rows, alpha = best[1]
        scores.append(fold_score(labels, rows, folds != outer, folds == outer, alpha))
    return scores


def nested(result: SweepResult) -> NestedCV:
    assert isinstance(result.nested_cv, NestedCV)
    return result.nested_cv


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [8, 80])
@pytest.mark.parametrize("classes", [False, True], ids=["ridge", "logistic"])
def test_equals_a_nested_loop_of_scikit_learn_fits(classes: bool, n_features: int):
    array, labels = cells(n_features)
    if classes:
        labels = (labels > 0).astype(float)
    result = sweep(ArrayCellSource(array), labels, k_fold=True, alphas=ALPHAS)
    expected = nested_loop(array, labels, result.fold_of_sample)
    np.testing.assert_allclose([choice.outer_score for choice in nested(result).choices], expected, atol=1e-12)
    assert nested(result).score == pytest.approx(np.mean(expected))


def test_predictions_are_those_of_the_chosen_probe_without_the_fold():
    array, labels = cells(8)
    result = sweep(ArrayCellSource(array), labels, k_fold=True, alphas=ALPHAS)
    for fold, choice in enumerate(nested(result).choices):
        train, held_out = result.fold_of_sample != fold, result.fold_of_sample == fold
        rows = array[:, choice.cell.layer, POSITIONS + choice.cell.position]
        model = Ridge(choice.alpha, fit_intercept=False).fit(rows[train], labels[train])
        np.testing.assert_allclose(nested(result).decision[held_out, 0], model.predict(rows[held_out]), rtol=1e-8)


@pytest.mark.slow
def test_leaves_everything_else_as_it_is():
    array, labels = cells(8)
    for y in (labels, (labels > 0).astype(float)):
        without, with_it = (
            sweep(ArrayCellSource(array), y, k_fold=True, alphas=ALPHAS, fit_intercept=True, nested_cv=nested_cv)
            for nested_cv in (False, True)
        )
        np.testing.assert_allclose(with_it.coef, without.coef, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(with_it.cv_score, without.cv_score, rtol=1e-12)
        assert with_it.certificate.shape == without.certificate.shape
        assert (
            without.nested_cv
            == "nested cross-validation was not done, or it lacks a third fold or weight outside two of them"
        )


def test_what_is_undefined_has_a_reason():
    array, labels = cells(8)
    source = ArrayCellSource(array)
    assert sweep(source, labels).nested_cv == "there are no folds (k_fold)"
    assert "lacks a third fold" in sweep(source, labels, k_fold=True, n_folds=2).nested_cv
    constant = ArrayCellSource(np.ones_like(array))
    assert sweep(constant, labels, k_fold=True).nested_cv == "no cell has a CV score without fold 0"


@pytest.mark.slow
def test_on_noise_it_is_lower_than_the_best_score():
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(10):
        array, labels = rng.standard_normal((60, 10, 4, 6)), rng.standard_normal(60)
        result = sweep(ArrayCellSource(array), labels, k_fold=True)
        assert result.best is not None
        gaps.append(result.best.cv_score - nested(result).score)
    assert min(gaps) > 0


def test_weights_outside_one_fold_are_enough_but_not_for_nested_cv():
    array, labels = cells(8)
    source = ArrayCellSource(array)
    folds = sweep(source, labels, k_fold=True, n_folds=3).fold_of_sample
    result = sweep(source, labels, k_fold=True, n_folds=3, sample_weight=np.where(folds == 2, 0.0, 1.0))
    assert result.best is not None
    assert "weight outside two of them" in result.nested_cv
