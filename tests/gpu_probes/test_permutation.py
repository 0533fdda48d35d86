"""The permutation test against refits by scikit-learn."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpu_probes import ArrayCellSource, FoldError, SweepResult, sweep
from gpu_probes.folds import FoldPlan
from gpu_probes.groups import group_samples
from gpu_probes.permutation import PermutationTest, compare_with_shuffles
from gpu_probes.shuffles import Shuffles, draw_shuffles

N, LAYERS, POSITIONS = 60, 2, 2
ALPHAS = [1.0, 100.0]
N_SHUFFLES = 15


def cells(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((N, LAYERS, POSITIONS, n_features)) + 0.3
    return array, array[:, 1, 0] @ rng.standard_normal(n_features) / n_features**0.5 + rng.standard_normal(N)


def shuffles_of(result: SweepResult, labels: np.ndarray, stratified: bool) -> np.ndarray:
    folds = FoldPlan(result.fold_of_sample, 5, stratified=stratified)
    drawn = draw_shuffles(labels, group_samples(N), folds, n_shuffles=N_SHUFFLES, seed=42)
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


def test_batches_pieces_and_several_labels_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    array, labels = cells(8)
    options = {"k_fold": True, "alphas": ALPHAS, "permutations": N_SHUFFLES, "fit_intercept": True}
    for y in (labels, (labels > 0).astype(float)):
        whole = sweep(ArrayCellSource(array), y, **options)
        with monkeypatch.context() as patch:
            patch.setattr("gpu_probes.planner._MOST_SHUFFLES", 4)
            patch.setattr("gpu_probes.planner._MOST_COLUMNS", 30)
            few = sweep(ArrayCellSource(array), y, **options)
        np.testing.assert_allclose(few.null_score, whole.null_score, atol=1e-12)
    rng = np.random.default_rng(0)
    array = np.concatenate([array] * 20) + rng.standard_normal((20 * N, LAYERS, POSITIONS, 8))
    labels = np.concatenate([labels] * 20)
    whole, pieces = (sweep(ArrayCellSource(array), labels, budget_bytes=b, **options) for b in (None, 2_000_000))
    np.testing.assert_allclose(pieces.null_score, whole.null_score, atol=1e-12)


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
    with pytest.raises(FoldError, match="use --k_fold"):
        sweep(source, labels, permutations=10)
    with pytest.raises(FoldError, match="permutations -1 is less than none"):
        sweep(source, labels, k_fold=True, permutations=-1)
