"""The permutation test against refits by scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpu_probes import ArrayCellSource, FoldError, SweepResult, sweep
from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.shuffles import Shuffles, draw_shuffles
from gpu_probes.scores.permutation import PermutationTest, compare_with_shuffles
from gpu_probes.search import block

N, LAYERS, POSITIONS = 60, 2, 2
ALPHAS = [1.0, 100.0]
N_SHUFFLES = 6


def cells(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((N, LAYERS, POSITIONS, n_features)) + 0.3
    return array, array[:, 1, 0] @ rng.standard_normal(n_features) / n_features**0.5 + rng.standard_normal(N)


def shuffles_of(result: SweepResult, labels: np.ndarray, stratified: bool, n_shuffles: int = N_SHUFFLES) -> np.ndarray:
    folds = FoldPlan(result.fold_of_sample, 5, stratified=stratified)
    drawn = draw_shuffles(labels, group_samples(N), folds, n_shuffles=n_shuffles, seed=42)
    assert isinstance(drawn, Shuffles)
    return drawn.order


def refit(
    rows: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray | None, **options: bool
) -> float:
    """CV score at the best alpha."""
    by_alpha = []
    for alpha in ALPHAS:
        scores = []
        for fold in range(5):
            train, held_out = folds != fold, folds == fold
            used = None if weights is None else weights[train]
            scaler = StandardScaler() if options.get("standardize") else StandardScaler(with_mean=False, with_std=False)
            centred = {"fit_intercept": options.get("fit_intercept", False)}
            if set(labels) <= {0.0, 1.0}:
                model = LogisticRegression(C=1 / alpha, solver="newton-cholesky", tol=1e-8, **centred)
                pipeline = make_pipeline(scaler, model).fit(rows[train], labels[train])
                scores.append(roc_auc_score(labels[held_out], pipeline.decision_function(rows[held_out])))
            else:
                fitted = scaler.fit(rows[train], sample_weight=used)
                model = Ridge(alpha, solver="cholesky", **centred).fit(
                    fitted.transform(rows[train]), labels[train], used
                )
                scores.append(spearmanr(labels[held_out], model.predict(fitted.transform(rows[held_out]))).statistic)
        by_alpha.append(np.mean(scores))
    return max(by_alpha)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "n_features", "weighted", "options"),
    [
        (False, 8, False, {}),
        (False, 80, False, {}),
        (False, 8, True, {"fit_intercept": True, "standardize": True}),
        (False, 80, True, {"fit_intercept": True}),
        (False, 80, False, {"standardize": True}),
        (True, 5, False, {}),
        (True, 80, False, {"fit_intercept": True}),
    ],
    ids=str,
)
def test_equals_refits_by_scikit_learn(classes: bool, n_features: int, weighted: bool, options: dict[str, bool]):
    array, labels = cells(n_features)
    if classes:
        labels = (labels > 0).astype(float)
    weights = np.random.default_rng(1).integers(1, 3, N).astype(float) if weighted else None
    result = sweep(
        ArrayCellSource(array),
        labels,
        k_fold=True,
        alphas=ALPHAS,
        permutations=N_SHUFFLES,
        permutation_statistic="probe",
        sample_weight=weights,
        **options,
    )
    orders = shuffles_of(result, labels, stratified=classes)
    null = np.array(
        [
            [
                [refit(array[:, i, p], labels[order], result.fold_of_sample, weights, **options) for order in orders]
                for i in range(LAYERS)
            ]
            for p in range(POSITIONS)
        ]
    )
    np.testing.assert_allclose(result.null_score, null, atol=1e-12)
    assert isinstance(result.permutation, PermutationTest)
    reached = (null.max((0, 1)) >= result.cv_score.max() - 1e-12).sum()
    assert result.permutation.p_best == pytest.approx((1 + reached) / (1 + N_SHUFFLES))


def least_squares(
    rows: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray, alpha: float | None, **options: bool
) -> float:
    """CV score of least squares on class indicators; without an alpha that of their covariance with the features."""
    names, scores = np.unique(labels), []
    indicators = (labels[:, None] == names) - 1 / len(names)
    for fold in range(5):
        train, held_out = folds != fold, folds == fold
        scaler = StandardScaler(with_mean=options["standardize"], with_std=options["standardize"])
        scaler.fit(rows[train], sample_weight=weights[train])
        fitted, others = scaler.transform(rows[train]), scaler.transform(rows[held_out])
        if alpha is None:
            mean = np.average(fitted, axis=0, weights=weights[train])
            decision = others @ ((fitted - mean).T @ (weights[train, None] * indicators[train]))
        else:
            model = Ridge(alpha, fit_intercept=options["fit_intercept"], solver="cholesky")
            decision = model.fit(fitted, indicators[train], weights[train]).predict(others)
        # For two classes both areas are the same.
        areas = [
            roc_auc_score(labels[held_out] == name, values) for name, values in zip(names, decision.T, strict=True)
        ]
        scores.append(np.mean(areas))
    return float(np.mean(scores))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "n_classes", "n_features", "options"),
    [
        ("logistic", 2, 8, {}),
        ("logistic", 2, 80, {"fit_intercept": True}),
        ("logistic", 3, 8, {"standardize": True}),
        ("logistic", 4, 80, {}),
        ("lda", 2, 8, {"fit_intercept": True}),
        ("lda", 3, 80, {"fit_intercept": True, "standardize": True}),
        ("mass_mean", 3, 8, {"fit_intercept": True, "standardize": True}),
    ],
    ids=str,
)
def test_classes_are_told_by_least_squares_on_their_indicators(
    probe: str, n_classes: int, n_features: int, options: dict[str, bool]
):
    array, numbers = cells(n_features)
    array = array[:, :, :1]
    labels = np.digitize(numbers, np.quantile(numbers, np.arange(1, n_classes) / n_classes)) * 2.0 + 3
    weights = np.random.default_rng(1).integers(1, 4, N).astype(float)
    grid = {} if probe == "mass_mean" else {"alphas": ALPHAS}
    given = {"probe": probe, "k_fold": True, "permutations": 3, "nested_cv": False, "sample_weight": weights}
    result = sweep(ArrayCellSource(array), labels, **given, **grid, **options)
    orders = shuffles_of(result, labels, stratified=True, n_shuffles=3)
    how = {"fit_intercept": False, "standardize": False} | options
    expected = np.array(
        [
            [
                max(
                    least_squares(array[:, i, 0], shuffled, result.fold_of_sample, weights, alpha, **how)
                    for alpha in grid.get("alphas", [None])
                )
                for shuffled in (labels, *labels[orders])
            ]
            for i in range(LAYERS)
        ]
    )
    np.testing.assert_allclose(result.observed_score[0], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(result.null_score[0], expected[:, 1:], atol=1e-12)
    assert result.permutation_statistic == "least_squares"
    assert isinstance(result.permutation, PermutationTest)
    reached = (expected[:, 1:].max(0) >= expected[:, 0].max() - 1e-12).sum()
    assert result.permutation.p_best == pytest.approx((1 + reached) / 4)
    assert result.permutation.observed_max == pytest.approx(expected[:, 0].max())


def test_groups_move_as_they_do_for_the_probe():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 3)
    labels = np.repeat(np.arange(20) % 2.0, 3)
    source = ArrayCellSource(rng.standard_normal((N, 2, 1, 4)))
    options = {"k_fold": True, "n_folds": 2, "groups": groups, "permutations": N_SHUFFLES, "nested_cv": False}
    fast, slow = (sweep(source, labels, permutation_statistic=name, **options) for name in ("least_squares", "probe"))
    assert fast.shuffle_scheme == slow.shuffle_scheme
    assert fast.shuffle_scheme.startswith("whole groups")
    assert fast.null_score.shape == slow.null_score.shape
    np.testing.assert_array_equal(fast.cv_score, slow.cv_score)
    np.testing.assert_array_equal(slow.observed_score, slow.cv_score)


def test_numbers_have_one_statistic():
    array, labels = cells(8)
    options = {"k_fold": True, "alphas": ALPHAS, "permutations": N_SHUFFLES, "nested_cv": False}
    found = [
        sweep(ArrayCellSource(array), labels, permutation_statistic=name, **options)
        for name in ("least_squares", "probe")
    ]
    assert {result.permutation_statistic for result in found} == {"probe"}
    np.testing.assert_array_equal(*(result.null_score for result in found))
    np.testing.assert_array_equal(found[0].observed_score, found[0].cv_score)


def test_a_cell_without_a_score_has_no_p():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((N, 2, 1, 4))
    array[:, 0] = 1.0
    result = sweep(ArrayCellSource(array), np.arange(N) % 2, k_fold=True, permutations=3, nested_cv=False)
    assert np.isnan(result.observed_score[0]).tolist() == [True, False]
    assert isinstance(result.permutation, PermutationTest)
    assert np.isnan(result.permutation.p[0]).tolist() == [True, False]


def test_shuffles_that_come_at_once_are_ranked_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch):
    array, labels = cells(8)
    ranked: list[int] = []
    scorer = block._scorer

    def counted(*arguments):
        ranked.append(1)
        return scorer(*arguments)

    monkeypatch.setattr(block, "_scorer", counted)
    monkeypatch.setattr("gpu_probes.search.planner._SMALL_BLOCK_BYTES", 0)  # A block for each cell.
    options = {"k_fold": True, "alphas": ALPHAS, "permutations": N_SHUFFLES}
    at_once = sweep(ArrayCellSource(array), labels, **options)
    assert len(ranked) == 5
    monkeypatch.setattr("gpu_probes.search.planner._MOST_SHUFFLES", 4)
    ranked.clear()
    few = sweep(ArrayCellSource(array), labels, **options)
    assert len(ranked) == 5 * 2 * LAYERS * POSITIONS
    np.testing.assert_allclose(few.null_score, at_once.null_score, atol=1e-12)


@pytest.mark.slow
def test_batches_pieces_and_several_labels_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    array, labels = cells(8)
    options = {"k_fold": True, "alphas": ALPHAS, "permutations": N_SHUFFLES, "fit_intercept": True}
    for y, statistic in (
        (labels, "probe"),
        ((labels > 0).astype(float), "probe"),
        ((labels > 0).astype(float), "least_squares"),
        (np.digitize(labels, [-0.5, 0.5]).astype(float), "least_squares"),
    ):
        whole = sweep(ArrayCellSource(array), y, permutation_statistic=statistic, **options)
        with monkeypatch.context() as patch:
            patch.setattr("gpu_probes.search.planner._MOST_SHUFFLES", 4)
            patch.setattr("gpu_probes.search.planner._MOST_COLUMNS", 30)
            few = sweep(ArrayCellSource(array), y, permutation_statistic=statistic, **options)
        np.testing.assert_allclose(few.null_score, whole.null_score, atol=1e-12)
        np.testing.assert_allclose(few.observed_score, whole.observed_score, atol=1e-12)
    rng = np.random.default_rng(0)
    array = np.concatenate([array] * 20) + rng.standard_normal((20 * N, LAYERS, POSITIONS, 8))
    labels = np.concatenate([labels] * 20)
    for y in (labels, (labels > 0).astype(float)):
        whole, pieces = (sweep(ArrayCellSource(array), y, budget_bytes=b, **options) for b in (None, 4_000_000))
        np.testing.assert_allclose(pieces.null_score, whole.null_score, atol=1e-12)
        np.testing.assert_allclose(pieces.observed_score, whole.observed_score, atol=1e-12)


@pytest.mark.slow
def test_more_than_two_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0, 2.0], 20)
    array = rng.standard_normal((N, 2, 1, 4))
    array[:, 1, 0, 0] += labels
    result = sweep(ArrayCellSource(array), labels, k_fold=True, permutations=40)
    assert isinstance(result.permutation, PermutationTest)
    assert result.permutation.p[0, 1] == pytest.approx(1 / 41)
    assert result.permutation.p[0, 0] > 0.1
    assert abs(result.null_score.mean() - 0.5) < 0.05


def test_p_values_by_hand():
    observed = np.array([[0.5, np.nan], [0.2, 0.1]])
    null = np.array([[[0.1, 0.5, 0.0], [9.0, 9.0, 9.0]], [[0.3, 0.0, np.nan], [0.0, 0.1, 0.05]]])
    test = compare_with_shuffles(observed, null, "as drawn")
    assert isinstance(test, PermutationTest)
    np.testing.assert_allclose(test.null_max, [0.3, 0.5, 0.05])
    np.testing.assert_allclose(test.p, [[2 / 4, np.nan], [3 / 4, 3 / 4]])
    np.testing.assert_allclose(test.p_uncorrected, [[2 / 4, np.nan], [2 / 4, 2 / 4]])
    assert test.p_best == 0.5


def test_what_is_undefined_has_a_reason():
    array, labels = cells(4)
    source = ArrayCellSource(array)
    assert sweep(source, labels, k_fold=True).permutation == "permutations were not asked for"
    constant = sweep(ArrayCellSource(np.ones_like(array)), labels, k_fold=True, permutations=3)
    assert constant.permutation == "no cell has a CV score"
    with pytest.raises(FoldError, match="use k_fold=True"):
        sweep(source, labels, permutations=10)
    with pytest.raises(FoldError, match="permutations=-1 is negative"):
        sweep(source, labels, k_fold=True, permutations=-1)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["ridge", "logistic", "lda", "mass_mean"])
@pytest.mark.parametrize("n_features", [6, 150])
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_labels_in_their_own_order_score_as_themselves(
    probe: str, n_features: int, scale: float, monkeypatch: pytest.MonkeyPatch
):
    array, labels = cells(n_features)
    labels = labels if probe == "ridge" else (labels > 0).astype(float)
    as_it_is = Shuffles(np.arange(N)[None], "none")
    monkeypatch.setattr("gpu_probes.search.inputs.draw_shuffles", lambda *_, **__: as_it_is)
    alpha = {} if probe == "mass_mean" else {"alpha": 0.1}
    for statistic in ("probe", "least_squares"):
        options = {"probe": probe, "k_fold": True, "permutations": 1, "permutation_statistic": statistic, **alpha}
        result = sweep(ArrayCellSource(scale * array), labels, **options)
        np.testing.assert_allclose(result.null_score[:, :, 0], result.observed_score, atol=1e-9)
        # But for logistic regression, least squares rank as the probe does.
        if statistic == "probe" or probe != "logistic":
            np.testing.assert_allclose(result.observed_score, result.cv_score, atol=1e-9)


def test_lda_ranks_by_decisions_where_probabilities_round_to_one():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2 * 1.0
    array = rng.standard_normal((480, 1, 1, 300)) + 0.1 * (np.arange(480) % 2)[:, None, None, None]
    source, test = ArrayCellSource(array[:80]), ArrayCellSource(array[80:])
    result = sweep(source, labels, test, np.arange(400) % 2, probe="lda", alpha=0.01)
    assert (result.test_predictions == 1).mean() > 0.2
    decision = array[80:, 0, 0] @ result.coef[0, 0, 0]
    assert result.test_score[0, 0] == pytest.approx(roc_auc_score(np.arange(400) % 2, decision))


def test_shuffles_leave_no_fold_without_a_score():
    rng = np.random.default_rng(0)
    labels = np.zeros(40)
    labels[np.arange(0, 40, 5)] = rng.random(8) + 0.1
    result = sweep(
        ArrayCellSource(rng.standard_normal((40, 2, 1, 5))), labels, task_type="regression", k_fold=True,
        permutations=100, seed=next(seed for seed in range(99) if _folds_vary(labels, seed)),
    )  # fmt: skip
    assert np.isfinite(result.null_score).all()
    assert isinstance(result.permutation, PermutationTest)
    assert np.isfinite(result.permutation.null_max).all()


def _folds_vary(labels: np.ndarray, seed: int) -> bool:
    folds = plan_folds(labels, n_folds=5, seed=seed).fold_of_sample
    return all(np.ptp(labels[folds == fold]) > 0 for fold in range(5))


def test_shuffles_choose_among_the_alphas_that_the_labels_could():
    rng = np.random.default_rng(0)
    source, labels = ArrayCellSource(rng.standard_normal((50, 2, 1, 45))), rng.standard_normal(50)
    both = sweep(source, labels, k_fold=True, alphas=[0.0, 1.0], permutations=20)
    alone = sweep(source, labels, k_fold=True, alpha=1.0, permutations=20)
    assert np.isnan(both.alpha_cv_score[:, :, 0]).all()
    np.testing.assert_allclose(both.null_score, alone.null_score, atol=1e-12)


def test_shuffles_without_any_score_are_left_out():
    observed, null = np.array([[0.5]]), np.array([[[np.nan, 0.6, 0.1]]])
    test = compare_with_shuffles(observed, null, "as drawn")
    assert isinstance(test, PermutationTest)
    assert test.null_max.tolist() == [0.6, 0.1]
    assert test.p_best == pytest.approx(2 / 3)
    assert "no cell has a score" in compare_with_shuffles(observed, np.full((1, 1, 3), np.nan), "as drawn")


def test_orders_that_are_not_kept_give_the_same_null_scores(monkeypatch: pytest.MonkeyPatch):
    array, labels = cells(8)
    options = {"k_fold": True, "alphas": ALPHAS, "permutations": N_SHUFFLES}
    kept = sweep(ArrayCellSource(array), labels, **options)
    monkeypatch.setattr("gpu_probes.search.inputs._KEPT_SHUFFLES", 2**62)
    monkeypatch.setattr("gpu_probes.search.planner._MOST_SHUFFLES", 4)
    anew = sweep(ArrayCellSource(array), labels, **options)
    np.testing.assert_allclose(anew.null_score, kept.null_score, atol=1e-12)


_SHUFFLED = """
import resource, numpy as np
from gpu_probes import ArrayCellSource, sweep
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
rng = np.random.default_rng(0)
source = ArrayCellSource(rng.standard_normal((100_000, 1, 1, 4), dtype=np.float32))
labels = rng.standard_normal(100_000)
options = {"k_fold": True, "nested_cv": False, "budget_bytes": 2**27}
sweep(source, labels, **options)
before = peak()
sweep(source, labels, permutations=125, **options)
print(peak() - before)
"""


@pytest.mark.slow
def test_shuffles_stay_within_the_budget():
    """Kept, these 125 would take 50 MB, and 300 while they are drawn; 1,000 take no more than 125, only longer."""
    ran = subprocess.run([sys.executable, "-c", _SHUFFLED], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 128
