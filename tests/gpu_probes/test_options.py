"""What a sweep can be asked for, against scikit-learn; how it is cut into blocks does not matter."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from gpu_probes import ArrayCellSource, BudgetError, LabelError, PenaltyError, Solver, sweep, sweep_labels

N, D = 60, 9
RNG = np.random.default_rng(3)
ARRAY = RNG.standard_normal((N, 3, 2, D)) * np.logspace(0, 2, D) + RNG.standard_normal(D) * 5
ARRAY[:, :, :, 4] = 1.5
WIDE = RNG.standard_normal((N, 2, 1, 80)) + RNG.standard_normal(80)
LABELS = ARRAY[:, 1, 1, 0] + 3 + RNG.standard_normal(N)
CLASSES = np.greater(LABELS, np.median(LABELS)).astype(float)
WEIGHTS = RNG.integers(0, 3, N).astype(float)
ALPHA = 0.7


def run(array: np.ndarray, labels: np.ndarray, **options):
    options = {"alpha": ALPHA, "k_fold": True, "device": "cpu"} | options
    return sweep(ArrayCellSource(array), labels, **options)


def reference(model, X: np.ndarray, labels: np.ndarray, weights: np.ndarray, splits, standardize: bool) -> np.ndarray:
    """Held-out decision values of scikit-learn, everything fitted inside the fold."""
    out = np.empty(len(labels))
    for train, held_out in splits:
        scaler = StandardScaler(with_mean=standardize, with_std=standardize)
        scaler.fit(X[train], sample_weight=weights[train])
        model.fit(scaler.transform(X[train]), labels[train], sample_weight=weights[train])
        out[held_out] = scaler.transform(X[held_out]) @ model.coef_.ravel() + model.intercept_
    return out


@pytest.mark.parametrize("array", [ARRAY, WIDE], ids=["N>D", "N<D"])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_options_are_scikit_learns(array, fit_intercept: bool, standardize: bool, weighted: bool):
    weights = WEIGHTS if weighted else np.ones(N)
    options = {"fit_intercept": fit_intercept, "standardize": standardize, "sample_weight": weights}
    result = run(array, LABELS, **options)
    model = Ridge(alpha=ALPHA, fit_intercept=fit_intercept, solver="svd")
    for i in range(array.shape[1]):
        splits = KFold(5, shuffle=True, random_state=42).split(LABELS)
        expected = reference(model, array[:, i, 0], LABELS, weights, splits, standardize)
        np.testing.assert_allclose(result.cv_predictions[0, i, :, 0], expected, atol=1e-7 * LABELS.std())
        recomputed = array[:, i, 0] @ result.coef[0, i, 0] + result.intercept[0, i, 0]
        np.testing.assert_allclose(result.train_predictions[0, i, :, 0], recomputed, atol=1e-9 * LABELS.std())


@pytest.mark.parametrize("array", [ARRAY, WIDE], ids=["N>D", "N<D"])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_options_are_scikit_learns(array, fit_intercept: bool, standardize: bool, weighted: bool):
    weights = WEIGHTS if weighted else np.ones(N)
    options = {"fit_intercept": fit_intercept, "standardize": standardize, "sample_weight": weights}
    result = run(array, CLASSES, **options)
    model = LogisticRegression(
        C=1 / ALPHA, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-10, max_iter=500
    )
    for i in range(array.shape[1]):
        splits = StratifiedKFold(5, shuffle=True, random_state=42).split(LABELS, CLASSES)
        decision = reference(model, array[:, i, 0], CLASSES, weights, splits, standardize)
        np.testing.assert_allclose(result.cv_predictions[0, i, :, 0], 1 / (1 + np.exp(-decision)), atol=1e-6)


@pytest.mark.parametrize("labels", [LABELS, CLASSES], ids=["ridge", "logistic"])
@pytest.mark.parametrize("array", [ARRAY, WIDE], ids=["N>D", "N<D"])
def test_doubled_rows_are_doubled_weights(array, labels):
    doubled = run(np.concatenate([array, array]), np.concatenate([labels, labels]), k_fold=False)
    weighted = run(array, labels, k_fold=False, sample_weight=np.full(N, 2.0))
    np.testing.assert_allclose(
        doubled.train_predictions[:, :, :N], weighted.train_predictions, atol=1e-7 * np.abs(labels).max()
    )


@pytest.mark.parametrize("labels", [LABELS, CLASSES, np.digitize(LABELS, [2, 4]) * 1.0], ids=["ridge", "two", "three"])
def test_a_small_budget_reads_the_rows_in_pieces_and_gives_the_same(labels: np.ndarray):
    rng = np.random.default_rng(0)
    array = np.concatenate([ARRAY] * 20) + rng.standard_normal((20 * N, 3, 2, D))
    labels = np.concatenate([labels] * 20)
    options = {"alphas": [0.1, 10.0], "fit_intercept": True}
    whole = run(array, labels, **options)
    pieces = run(array, labels, budget_bytes=1_400_000, **options)
    for name in ("cv_predictions", "train_predictions", "cv_score", "selected_alpha"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-6, rtol=1e-6)
    with pytest.raises(
        BudgetError, match=r"one cell takes .* GiB and the budget is 0.00 GiB; allow more with --budget"
    ):
        run(array, labels, budget_bytes=10_000)


def test_threads_and_blocks_do_not_matter():
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            results.append(run(ARRAY, LABELS, alphas=[0.1, 10.0]))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(results[0].cv_predictions, results[1].cv_predictions, rtol=1e-9, atol=1e-9)


def test_labels_together_are_labels_alone():
    labels = {"a": LABELS, "classes": CLASSES, "b": LABELS[::-1].copy(), "constant": np.full(N, 0.5)}
    source = ArrayCellSource(ARRAY)
    together = sweep_labels(source, labels, source, labels, alphas=[0.1, 10.0], k_fold=True, device="cpu")
    assert list(together) == list(labels)
    for name in ("a", "classes", "b"):
        alone = sweep(source, labels[name], source, labels[name], alphas=[0.1, 10.0], k_fold=True, device="cpu")
        assert together[name].task_type == alone.task_type
        for field in ("cv_score", "test_score", "selected_alpha", "cv_predictions", "coef"):
            np.testing.assert_allclose(getattr(together[name], field), getattr(alone, field), rtol=1e-9, atol=1e-9)
    assert {status.name for status in together["constant"].status.ravel()} == {"CONSTANT_LABELS"}
    with pytest.raises(LabelError, match="'a' is a label of the training rows only; the test rows have"):
        sweep_labels(source, {"a": LABELS}, source, {"b": LABELS})


def test_auto_alphas_are_decades_around_the_mean_eigenvalue_and_see_no_label():
    result = run(ARRAY, LABELS, alphas="auto")
    grid = np.array(result.alpha_grid)
    np.testing.assert_allclose(np.log10(grid), np.round(np.log10(grid)), atol=1e-12)
    np.testing.assert_allclose(grid[1:] / grid[:-1], 10)
    means = [np.linalg.eigvalsh(ARRAY[:, i, p].T @ ARRAY[:, i, p]).mean() for i in range(3) for p in range(2)]
    assert grid[0] <= 1e-4 * min(means) < 10 * grid[0]
    assert grid[-1] >= 1e2 * max(means) > 0.1 * grid[-1]
    assert run(ARRAY, LABELS[::-1], alphas="auto").alpha_grid == result.alpha_grid
    with pytest.raises(PenaltyError, match="use --k_fold"):
        run(ARRAY, LABELS, alphas="auto", k_fold=False)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(-np.ones(N), "sample_weight goes from -1 to -1"), (np.zeros(N), "not all 0"), (np.ones(3), "has 3 values for")],
)
def test_weights_that_are_none(weights: np.ndarray, message: str):
    with pytest.raises(LabelError, match=message):
        run(ARRAY, LABELS, sample_weight=weights)


def test_every_fit_has_a_certificate_and_a_solver():
    result = run(ARRAY, CLASSES, alphas=[1e-6, 1.0])
    assert result.certificate.shape == result.solver.shape == (2, 3, 6, 2)
    assert (result.certificate <= 1e-12).all()
    assert set(np.unique(result.solver)) <= {Solver.NEWTON_CG, Solver.NEWTON_CHOLESKY}
    ridge = run(ARRAY, LABELS)
    assert (ridge.certificate <= 1e-14).all()
    assert (ridge.solver == Solver.CHOLESKY).all()
