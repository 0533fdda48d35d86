"""What a sweep can be asked for, against scikit-learn; how it is cut into blocks does not matter."""

import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from gpu_probes import (
    ArrayCellSource,
    BudgetError,
    FoldError,
    LabelError,
    NotConvergedWarning,
    PenaltyError,
    ProbeError,
    Solver,
    Status,
    SweepOptions,
    sweep,
    sweep_labels,
)
from gpu_probes.search.options import SweepKeywords

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
    alpha = {} if "alphas" in options else {"alpha": ALPHA}
    options = {**alpha, "k_fold": True, "device": "cpu"} | options
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LABELS, CLASSES], ids=["ridge", "logistic"])
@pytest.mark.parametrize("array", [ARRAY, WIDE], ids=["N>D", "N<D"])
def test_doubled_rows_are_doubled_weights(array, labels):
    doubled = run(np.concatenate([array, array]), np.concatenate([labels, labels]), k_fold=False)
    weighted = run(array, labels, k_fold=False, sample_weight=np.full(N, 2.0))
    np.testing.assert_allclose(
        doubled.train_predictions[:, :, :N], weighted.train_predictions, atol=1e-7 * np.abs(labels).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LABELS, CLASSES, np.digitize(LABELS, [2, 4]) * 1.0], ids=["ridge", "two", "three"])
def test_a_small_budget_reads_the_rows_in_pieces_and_gives_the_same(labels: np.ndarray):
    rng = np.random.default_rng(0)
    array = np.concatenate([ARRAY] * 20) + rng.standard_normal((20 * N, 3, 2, D))
    labels = np.concatenate([labels] * 20)
    options = {"alphas": [0.1, 10.0], "fit_intercept": True}
    whole = run(array, labels, **options)
    pieces = run(array, labels, budget_bytes=3_000_000, **options)
    for name in ("cv_predictions", "train_predictions", "cv_score", "selected_alpha"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-6, rtol=1e-6)
    with pytest.raises(
        BudgetError, match=r"one cell needs .* [KM]iB, the budget is 9.7 KiB; allow more with budget_bytes="
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


@pytest.mark.slow
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
    with pytest.raises(PenaltyError, match="use k_fold=True"):
        run(ARRAY, LABELS, alphas="auto", k_fold=False)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(N), "sample_weight ranges from -1 to -1"),
        (np.zeros(N), "not all zero"),
        (np.ones(3), "has 3 values for"),
    ],
)
def test_weights_that_are_none(weights: np.ndarray, message: str):
    with pytest.raises(LabelError, match=message):
        run(ARRAY, LABELS, sample_weight=weights)


@pytest.mark.slow
def test_every_fit_has_a_certificate_and_a_solver():
    result = run(ARRAY, CLASSES, alphas=[1e-6, 1.0])
    assert result.certificate.shape == result.solver.shape == (2, 3, 6, 2)
    assert (result.certificate <= 1e-12).all()
    assert set(np.unique(result.solver)) <= {Solver.NEWTON_CG, Solver.NEWTON_CHOLESKY}
    ridge = run(ARRAY, LABELS)
    assert (ridge.certificate <= 1e-14).all()
    assert (ridge.solver == Solver.CHOLESKY).all()


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LABELS, CLASSES], ids=["ridge", "logistic"])
@pytest.mark.parametrize("array", [ARRAY[:, :1, :1], WIDE[:, :1]], ids=["N>D", "N<D"])
@pytest.mark.parametrize("options", [{"standardize": True, "fit_intercept": True}, {"fit_intercept": True}], ids=str)
def test_features_far_from_zero_are_fitted_as_near_it(array: np.ndarray, labels: np.ndarray, options: dict):
    # Powers of two: adding them changes no digit of the rows, which are rounded so that they have few.
    near = np.round(array * 2**10) / 2**10
    far = near + 2.0**20
    results = [run(rows, labels, **options) for rows in (near, far)]
    np.testing.assert_allclose(
        results[1].cv_predictions, results[0].cv_predictions, atol=1e-6 * np.abs(results[0].cv_predictions).max()
    )


def test_an_intercept_that_dwarfs_the_features_is_right_whatever_the_penalty():
    labels = (np.arange(N) % 5 > 0).astype(float)
    result = run(ARRAY, labels, alpha=1e18, fit_intercept=True, k_fold=False)
    np.testing.assert_allclose(result.train_predictions, 0.8, atol=1e-8)
    assert (result.certificate <= 1e-12).all()


def test_held_out_rows_of_folds_with_fewer_rows_than_features_are_exact_at_a_small_penalty():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((110, 100)) * 10
    X[:, :3] *= 200
    labels = rng.standard_normal(110) + 100.3
    result = run(X[:, None, None], labels, alpha=1e-3)
    splits = KFold(5, shuffle=True, random_state=42).split(labels)
    expected = reference(Ridge(alpha=1e-3, fit_intercept=False, solver="svd"), X, labels, np.ones(110), splits, False)
    np.testing.assert_allclose(result.cv_predictions[0, 0, :, 0], expected, atol=1e-6 * labels.std())


@pytest.mark.slow
def test_auto_alphas_suit_the_features_as_they_are_fitted():
    for array in (ARRAY, 1e-4 * ARRAY, 1e4 * ARRAY):
        grid = run(array, LABELS, alphas="auto", standardize=True).alpha_grid
        # The mean eigenvalue of standardized features: the rows, but for the constant feature.
        assert (grid[0], grid[-1]) == (1e-3, 1e4)
    shifted = ARRAY + 1e6
    assert (
        run(shifted, LABELS, alphas="auto", fit_intercept=True).alpha_grid
        == run(ARRAY, LABELS, alphas="auto", fit_intercept=True).alpha_grid
    )
    tenfold = run(ARRAY, LABELS, alphas="auto", sample_weight=np.full(N, 10.0)).alpha_grid
    np.testing.assert_allclose(tenfold, 10 * np.array(run(ARRAY, LABELS, alphas="auto").alpha_grid))


def test_auto_alphas_do_not_take_rounding_for_a_feature():
    array = np.full((N, 1, 1, 100), 0.1)
    array[..., 0] = ARRAY[:, :1, :1, 0]
    grid = run(array, LABELS, alphas="auto", standardize=True).alpha_grid
    # The mean eigenvalue is 0.6, that of one feature of a hundred.
    assert (grid[0], grid[-1]) == (1e-5, 1e2)


def test_a_grid_may_be_an_array():
    assert run(ARRAY, LABELS, alphas=np.logspace(-1, 1, 3)).alpha_grid == (0.1, 1.0, 10.0)
    with pytest.raises(PenaltyError, match="alphas='all' is unknown; give numbers, or auto"):
        run(ARRAY, LABELS, alphas="all")
    with pytest.raises(PenaltyError, match="alpha=-1"):
        run(ARRAY, LABELS, alpha=-1.0, alphas=[0.1, 1.0])


@pytest.mark.parametrize("constant", [0.1, 3.1, 3.0])
def test_a_constant_feature_beside_an_intercept_is_singular_without_a_penalty(constant: float):
    array = RNG.standard_normal((N, 1, 1, 5))
    array[..., 2] = constant
    result = run(array, LABELS, alpha=0.0, fit_intercept=True)
    assert result.status[0, 0].name == "SINGULAR"


def test_a_fold_without_any_weight_is_an_error():
    with pytest.raises(LabelError, match="sample_weight is 0 for all training rows of 'labels' outside fold"):
        run(ARRAY, LABELS, sample_weight=np.eye(N)[0])


def test_what_is_wrong_with_one_label_shows_before_any_is_fitted():
    fitted = []
    source = ArrayCellSource(ARRAY)
    with pytest.raises(PenaltyError, match="alpha 0 means"):
        sweep_labels(source, {"a": LABELS, "b": CLASSES}, alpha=0.0, device="cpu", progress=fitted.append)
    assert not fitted


@pytest.mark.slow
def test_a_constant_label_and_a_rare_class_harm_no_other_label():
    source = ArrayCellSource(ARRAY)
    rare = np.zeros(N)
    rare[:3] = 1
    labels = {"a": LABELS, "constant": np.ones(N), "rare": rare}
    tested = {"a": LABELS, "constant": CLASSES, "rare": CLASSES}
    results = sweep_labels(source, labels, source, tested, k_fold=True, device="cpu")
    statuses = {name: {status.name for status in result.status.ravel()} for name, result in results.items()}
    assert statuses == {"a": {"OK"}, "constant": {"CONSTANT_LABELS"}, "rare": {"CONSTANT_FOLD"}}
    assert np.isfinite(results["rare"].test_score).all()
    assert np.isnan(results["rare"].cv_score).all()


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["logistic", "lda", "mass_mean"])
def test_a_fold_that_lacks_a_class_is_named_whatever_the_probe(probe: str):
    labels = np.zeros(N)
    labels[:2] = 1
    result = run(ARRAY, labels, task_type="classification", probe=probe, alpha=1.0)
    assert {status.name for status in result.status.ravel()} == {"CONSTANT_FOLD"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit_intercept": "False"}, "fit_intercept='False' is neither True nor False"),
        ({"k_fold": 1}, "k_fold=1 is neither"),
        ({"alpha": 2.0, "alphas": [1.0]}, r"alpha=2.0 and alphas=\.\.\. are both given"),
        ({"alpha": 2.0, "probe": "mass_mean"}, "mass_mean has no penalty"),
        ({"device": None}, "device=None is unknown"),
    ],
)
def test_options_that_contradict_or_are_no_values(options: dict, message: str):
    given = SweepOptions()
    for name, value in options.items():
        # The type checks of these tests would not let the constructor take them.
        object.__setattr__(given, name, value)
    with pytest.raises(ProbeError, match=message):
        given.check()


@pytest.mark.slow
def test_as_many_folds_as_samples_leave_the_score_undefined_and_the_rest_whole():
    result = run(ARRAY[:20], LABELS[:20], n_folds=20)
    assert {status.name for status in result.status.ravel()} == {"CONSTANT_FOLD"}
    assert np.isfinite(result.cv_predictions).all()
    assert np.isfinite(result.train_score).all()


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LABELS, CLASSES], ids=["ridge", "logistic"])
def test_folds_from_elsewhere_replace_the_split(labels):
    planned = run(ARRAY, labels, alphas=[0.1, 10.0], n_folds=3, seed=7)
    given = run(ARRAY, labels, alphas=[0.1, 10.0], folds=planned.fold_of_sample)
    assert given.n_folds == 3
    for name in ("cv_score", "selected_alpha", "cv_predictions", "inner_score", "outer_score", "coef"):
        np.testing.assert_array_equal(getattr(given, name), getattr(planned, name))


def test_folds_that_cannot_be_used():
    folds = np.arange(N) % 3
    with pytest.raises(FoldError, match="folds are given and there is no cross-validation; use k_fold=True"):
        run(ARRAY, LABELS, k_fold=False, folds=folds)
    with pytest.raises(FoldError, match="folds splits the group or prompt of row 1; hold its samples out together"):
        run(ARRAY, LABELS, folds=folds, groups=np.arange(N) // 2)
    assert run(ARRAY, LABELS, folds=folds, groups=np.arange(N) % 6).n_folds == 3


def test_integers_that_do_not_repeat_are_cross_validated_as_numbers():
    labels = np.random.default_rng(0).permutation(30)
    result = sweep(ArrayCellSource(labels[:, None, None, None] + 0.5), labels, task_type="regression", k_fold=True)
    assert result.cv_score[0, 0] > 0.99


PROBES = [("ridge", LABELS), ("mass_mean", LABELS), ("logistic", CLASSES), ("lda", CLASSES), ("mass_mean", CLASSES)]


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "labels"), PROBES, ids=["ridge", "covariance", "logistic", "lda", "mass_mean"])
@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("what", ["features", "weights"])
def test_numbers_beyond_float64_give_scores_or_a_reason(what: str, scale: float, probe: str, labels: np.ndarray):
    options = {"sample_weight": np.full(N, scale)} if what == "weights" else {}
    array = ARRAY * scale if what == "features" else ARRAY
    task_type = "classification" if labels is CLASSES else "regression"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        result = run(array, labels, probe=probe, task_type=task_type, alpha=1.0, **options)
    assert not np.isinf(result.cv_score).any()
    scored = {Status.OK, Status.NOT_CONVERGED}
    for score, status in zip(result.cv_score.ravel(), result.status.ravel(), strict=True):
        assert np.isfinite(score) == (status in scored)
        assert status is not Status.SINGULAR


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e160, 1e200, 1e307])
def test_labels_beyond_float64_say_so(scale: float):
    result = run(ARRAY, LABELS / np.abs(LABELS).max() * scale, task_type="regression")
    assert set(result.status.ravel()) == {Status.OUT_OF_RANGE}
    assert np.isnan(result.cv_score).all()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-100, 1e100])
def test_labels_of_any_size_have_the_same_scores(scale: float):
    ours = run(ARRAY, LABELS * scale, task_type="regression").cv_score
    np.testing.assert_allclose(ours, run(ARRAY, LABELS, task_type="regression").cv_score, atol=0.05)


def test_the_keywords_of_a_sweep_are_its_options():
    assert SweepKeywords.__annotations__.keys() == {field.name for field in fields(SweepOptions)}
    for field in fields(SweepOptions):
        assert SweepKeywords.__annotations__[field.name].__forward_arg__ == field.type
