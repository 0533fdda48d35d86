"""Outliers of up to 1e8 deviations, features far from 0, features that do not vary: always scikit-learn's numbers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from gpu_probes import ArrayCellSource, RidgeProbe, RidgeProbeCV, Status, sweep
from gpu_probes.features.combine import MeanPositions
from gpu_probes.samples.folds import FoldPlan
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.shuffles import draw_shuffles

N = 60
RNG = np.random.default_rng(0)


def features_of(n_features: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N, n_features)) * np.logspace(-1, 1, n_features)


def one_row(row: int):
    def change(X: np.ndarray, times: float) -> None:
        X[row] += times * X.std(0)

    return change


def several_rows(X: np.ndarray, times: float) -> None:
    X[[0, 1, 17, 59]] += times * X.std(0) * np.array([[1], [-1], [3], [0.1]])


def one_feature(X: np.ndarray, times: float) -> None:
    X[0, 3] += times * X[:, 3].std()


def offset(X: np.ndarray, times: float) -> None:
    X += times * X.std(0)


def offset_and_first_row(X: np.ndarray, times: float) -> None:
    deviation = X.std(0)
    X += times * deviation
    X[0] += 3 * times * deviation


def constant_elsewhere(X: np.ndarray, times: float) -> None:
    X[:, 1], X[:, 2] = 0.1, 1e3
    X[0, 1] = times


def a_fold(X: np.ndarray, times: float) -> None:
    X[FOLDS == 0] += times * X.std(0)


FOLDS = np.random.default_rng(2).permutation(np.arange(N) % 3)
CHANGES = {
    "first": one_row(0), "last": one_row(N - 1), "middle": one_row(30), "several": several_rows, "feature": one_feature,
    "offset": offset, "offset and first": offset_and_first_row, "constant": constant_elsewhere, "fold": a_fold,
}  # fmt: skip


def draw(n_features: int, change: str, times: float) -> tuple[np.ndarray, np.ndarray]:
    X = features_of(n_features)
    labels = X @ (RNG.standard_normal(n_features) / X.std(0)) + 3 * RNG.standard_normal(N)
    CHANGES[change](X, times)
    return X, labels


def assert_scikit_learns(ours: np.ndarray, theirs: np.ndarray, level: float, what: str = "") -> None:
    """An outlier that is held out has a prediction as large as it: what counts is how far off that is in itself."""
    np.testing.assert_array_less(np.abs(ours - theirs) / np.maximum(np.abs(theirs), level), 1e-7, err_msg=what)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1e5, 1e6, 1e8])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n_features", [12, 80], ids=["N>D", "N<D"])
def test_ridge_is_scikit_learns(n_features: int, change: str, times: float):
    X, labels = draw(n_features, change, times)
    source = ArrayCellSource(X[:, None, None])
    options = {"standardize": True, "fit_intercept": True, "k_fold": True, "folds": FOLDS, "device": "cpu"}
    result = sweep(source, labels, source, labels, **options)
    for fold in (0, 1, 2, None):
        train = fold != FOLDS
        scaler = StandardScaler().fit(X[train])
        model = Ridge(solver="svd").fit(scaler.transform(X[train]), labels[train])
        theirs = model.predict(scaler.transform(X))
        if fold is None:
            for ours in (result.train_predictions, result.test_predictions):
                assert_scikit_learns(ours[0, 0, :, 0], theirs, labels.std(), "all")
        else:
            ours = result.cv_predictions[0, 0, ~train, 0]
            assert_scikit_learns(ours, theirs[~train], labels.std(), f"without fold {fold}")
    assert (result.certificate <= 1e-14).all()


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n_features", [12, 80], ids=["N>D", "N<D"])
def test_logistic_is_scikit_learns(n_features: int, change: str):
    X, labels = draw(n_features, change, 1e8)
    classes = np.greater(labels, np.median(labels)).astype(float)
    options = {"standardize": True, "fit_intercept": True, "k_fold": True, "folds": FOLDS, "device": "cpu"}
    result = sweep(ArrayCellSource(X[:, None, None]), classes, **options)
    for fold in range(3):
        train = fold != FOLDS
        scaler = StandardScaler().fit(X[train])
        model = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=500)
        theirs = model.fit(scaler.transform(X[train]), classes[train]).predict_proba(scaler.transform(X[~train]))
        np.testing.assert_allclose(result.cv_predictions[0, 0, ~train, 0], theirs[:, 1], atol=1e-6)
    assert (result.certificate <= 1e-12).all()


@pytest.mark.parametrize("n_features", [12, 80], ids=["N>D", "N<D"])
def test_a_fit_does_not_see_rows_that_weigh_nothing(n_features: int):
    X, labels = draw(n_features, "several", 1e8)
    kept = np.isin(np.arange(N), [0, 1, 17, 59], invert=True)
    for probe in (RidgeProbe(standardize=True), RidgeProbeCV(alphas=[1.0], standardize=True, fit_intercept=True)):
        ours = probe.fit(X, labels, sample_weight=kept.astype(float)).predict(X[kept])
        alone = StandardScaler().fit(X[kept])
        model = Ridge(fit_intercept=probe.fit_intercept, solver="svd").fit(alone.transform(X[kept]), labels[kept])
        assert_scikit_learns(ours, model.predict(alone.transform(X[kept])), labels.std())


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_rows_read_in_pieces_are_joined_without_loss(fit_intercept: bool):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((1200, 9)) * np.logspace(-1, 1, 9)
    labels = X @ rng.standard_normal(9) + rng.standard_normal(1200)
    # The first piece is far from the others, and in it an outlier.
    X[:256] += 1e6
    X[3] += 1e8
    folds = (np.arange(1200) >= 256).astype(int)
    options = {"standardize": True, "fit_intercept": fit_intercept, "k_fold": True, "folds": folds, "device": "cpu"}
    result = sweep(ArrayCellSource(X[:, None, None]), labels, budget_bytes=700_000, **options)
    for fold in range(2):
        train = folds != fold
        scaler = StandardScaler().fit(X[train])
        model = Ridge(fit_intercept=fit_intercept, solver="svd").fit(scaler.transform(X[train]), labels[train])
        theirs = model.predict(scaler.transform(X[~train]))
        assert_scikit_learns(result.cv_predictions[0, 0, ~train, 0], theirs, labels.std())


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("place", [0.1, 1e3, 1e6])
def test_what_is_constant_is_scikit_learns_rule(place: float, noise: float):
    X = features_of(5)
    X[:, 2] = place + noise * RNG.standard_normal(N)
    labels = X[:, 0] + RNG.standard_normal(N) + (X[:, 2] - place) / max(noise, 1.0)
    result = sweep(ArrayCellSource(X[:, None, None]), labels, standardize=True, fit_intercept=True, device="cpu")
    scaler = StandardScaler().fit(X)
    model = Ridge(solver="svd").fit(scaler.transform(X), labels)
    np.testing.assert_allclose(result.coef[0, 0, 0], model.coef_ / scaler.scale_, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [12, 80], ids=["N>D", "N<D"])
def test_an_intercept_alone_keeps_the_digits_too(n_features: int):
    for change in CHANGES:
        X, labels = draw(n_features, change, 1e8)
        result = sweep(ArrayCellSource(X[:, None, None]), labels, fit_intercept=True, k_fold=True, folds=FOLDS)
        for fold in range(3):
            train = fold != FOLDS
            centre = X[train].mean(0)
            model = Ridge(solver="svd").fit(X[train] - centre, labels[train])
            theirs = model.predict(X[~train] - centre)
            if np.abs(X[train] - centre).max() < 1e4:
                ours = result.cv_predictions[0, 0, ~train, 0]
                # What is left of a constant feature when its mean is taken away, 1e-17, gets a coefficient on either
                # side; the row that was held out is 1e8 there.
                assert_scikit_learns(ours, theirs, labels.std() * (100 if change == "constant" else 1), change)


@pytest.mark.parametrize("probe", ["lda", "mass_mean"])
def test_closed_forms_without_an_outlier_are_those_of_the_other_rows(probe: str):
    X, labels = draw(12, "first", 1e8)
    classes = np.greater(labels, np.median(labels)).astype(float)
    options = {"probe": probe, "standardize": True, "k_fold": True, "device": "cpu"}
    with_it = sweep(ArrayCellSource(X[:, None, None]), classes, folds=FOLDS, **options)
    fold = int(FOLDS[0])
    kept = (np.arange(N) > 0) & (fold != FOLDS)
    alone = sweep(ArrayCellSource(X[kept][:, None, None]), classes[kept], standardize=True, probe=probe, device="cpu")
    held_out = (fold == FOLDS) & (np.arange(N) > 0)
    decision = X[held_out] @ alone.coef[0, 0, 0] + alone.intercept[0, 0, 0]
    np.testing.assert_allclose(with_it.cv_predictions[0, 0, held_out, 0], 1 / (1 + np.exp(-decision)), atol=1e-9)


def test_the_mean_of_positions_does_not_depend_on_the_order_of_the_rows():
    X, labels = draw(12, "middle", 1e8)
    scores = []
    for order in (np.arange(N), np.r_[30, np.arange(30), np.arange(31, N)]):
        source = MeanPositions(ArrayCellSource(np.stack([X, X], 1)[order, None]))
        options = {"standardize": True, "k_fold": True, "folds": FOLDS[order], "device": "cpu"}
        result = sweep(source, labels[order], **options)
        assert result.status[0, 0] is Status.OK
        scores.append([result.cv_score[0, 0], result.nested_cv.score])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_shuffled_labels_are_fitted_to_the_same_features(kind: str):
    X, labels = draw(12, "first", 1e8)
    if kind == "logistic":
        labels = np.greater(labels, np.median(labels)).astype(float)
    source, options = ArrayCellSource(X[:, None, None]), {"standardize": True, "k_fold": True, "folds": FOLDS}
    result = sweep(source, labels, permutations=5, permutation_statistic="probe", device="cpu", **options)
    plan, grouping = FoldPlan.given(FOLDS, N, nested=False), group_samples(N, None, None)
    shuffles = draw_shuffles(labels, grouping, plan, n_shuffles=5, seed=42)
    assert not isinstance(shuffles, str)
    alone = [sweep(source, labels[order], device="cpu", **options).cv_score[0, 0] for order in shuffles.order]
    np.testing.assert_allclose(result.null_score[0, 0], alone, atol=1e-12)
