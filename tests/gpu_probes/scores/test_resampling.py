"""Intervals by counts of draws against the same bootstrap over gathered rows that are ranked anew."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from gpu_probes.scores.intervals import ScoredSides, difference_interval, score_interval

N, RESAMPLES = 48, 40


def area(positive: np.ndarray, values: np.ndarray) -> float:
    """Over all pairs of a row of the class and another; as scikit-learn's, and many times faster."""
    difference = values[positive][:, None] - values[~positive]
    return ((difference > 0) + 0.5 * (difference == 0)).mean() if difference.size else np.nan


def score_of_rows(metric: str, actual: np.ndarray, predicted: np.ndarray) -> float:
    if metric == "roc_auc":
        if predicted.ndim == 1:
            return area(actual == 1, predicted)
        return float(np.mean([area(actual == c, predicted[:, c]) for c in range(predicted.shape[1])]))
    if np.ptp(actual) == 0 or (metric == "spearman" and np.ptp(predicted) == 0):
        return np.nan
    if metric == "r2":
        return 1 - ((actual - predicted) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()
    return float(np.corrcoef(rankdata(actual), rankdata(predicted))[0, 1])


def units_of(rows: np.ndarray, clusters: np.ndarray | None) -> list[np.ndarray]:
    if clusters is None:
        return [rows[[index]] for index in range(len(rows))]
    return [rows[clusters[rows] == name] for name in np.unique(clusters[rows])]


def bootstrap_of_rows(
    metric: str,
    actual: np.ndarray,
    sides: list[np.ndarray],
    clusters: np.ndarray | None,
    folds: np.ndarray | None,
) -> list[float]:
    """Estimate, low and high, from rows that are gathered for each resample and ranked anew."""

    def score(rows: np.ndarray) -> float:
        each = [score_of_rows(metric, actual[rows], side[rows]) for side in sides]
        return each[0] if len(each) == 1 else each[0] - each[1]

    folds = np.zeros(len(actual)) if folds is None else folds
    parts = [units_of(np.flatnonzero(folds == fold), clusters) for fold in np.unique(folds)]
    rng, scores = np.random.default_rng(0), []
    for units in parts:
        drawn = rng.integers(0, len(units), (RESAMPLES, len(units)))
        scores.append([score(np.concatenate([units[place] for place in one])) for one in drawn])
    whole = np.array([score(np.concatenate(units)) for units in parts])
    left_out = []
    for index, units in enumerate(parts):
        block = np.arange(len(units)) * min(len(units), 200) // len(units)
        for out in np.unique(block):
            here = score(np.concatenate([unit for unit, place in zip(units, block, strict=True) if place != out]))
            left_out.append((here + np.delete(whole, index).sum()) / len(parts))
    return [whole.mean(), *bca(whole.mean(), np.mean(scores, axis=0), np.array(left_out))]


def bca(estimate: float, scores: np.ndarray, left_out: np.ndarray) -> tuple[float, float]:
    if np.isnan(scores).mean() > 0.1:
        return np.nan, np.nan
    scores, left_out = scores[~np.isnan(scores)], left_out[~np.isnan(left_out)]
    share = np.mean((scores < estimate - 1e-12) + 0.5 * (np.abs(scores - estimate) <= 1e-12))
    bias = norm.ppf(np.clip(share, 0.5 / len(scores), 1 - 0.5 / len(scores)))
    deviation = left_out.mean() - left_out
    spread = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(scores, norm.cdf(bias + z / (1 - acceleration * z)))
    return low, high


def rows_of(metric: str, n_classes: int, *, ties: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    if metric == "roc_auc":
        actual = rng.permutation(np.arange(N) % n_classes)
        shape = (N,) if n_classes == 2 else (N, n_classes)
        signal = actual if n_classes == 2 else np.eye(n_classes)[actual]
    else:
        actual = signal = rng.standard_normal(N)
        shape = (N,)
        actual = np.round(actual) if ties else actual
    sides = [signal + width * rng.standard_normal(shape) for width in (1.0, 1.5)]
    return actual, [np.round(side * 2) / 2 if ties else side for side in sides]


# Clusters of one to nine rows, and of three.
CLUSTERS = {"rows": None, "uneven": np.sort(np.random.default_rng(1).integers(0, 12, N)), "even": np.arange(N) % 16}
KINDS = [("spearman", 0), ("r2", 0), ("roc_auc", 2), ("roc_auc", 3), ("roc_auc", 5)]


@pytest.mark.slow
@pytest.mark.parametrize(("ties", "clusters"), list(itertools.product([False, True], CLUSTERS)))
@pytest.mark.parametrize(("metric", "n_classes"), KINDS)
def test_counts_score_as_gathered_rows(
    metric: str, n_classes: int, ties: bool, clusters: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gpu_probes.scores.intervals.N_RESAMPLES", RESAMPLES)
    monkeypatch.setattr("gpu_probes.scores.intervals._FEWEST_RESAMPLES", RESAMPLES)
    actual, sides = rows_of(metric, n_classes, ties=ties)
    groups = CLUSTERS[clusters]
    for pair, folded in itertools.product([False, True], [False, True]):
        # Whole clusters are in a fold.
        folds = ((np.arange(N) if groups is None else groups) % 2) if folded else None
        shown = sides if pair else sides[:1]
        if metric == "roc_auc" and n_classes == 2 and groups is None and folds is None:
            continue  # DeLong's
        found = ScoredSides.of(metric, actual, dict(enumerate(shown)), clusters=groups, folds=folds)
        interval = found.difference(0, 1) if pair else found.score(0)
        expected = bootstrap_of_rows(metric, actual.astype(float), shown, groups, folds)
        ours = np.array([interval.estimate, interval.low, interval.high], dtype=float)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["spearman", "r2"])
def test_batches_and_lots_of_sides_draw_the_same(metric: str, monkeypatch: pytest.MonkeyPatch):
    actual, sides = rows_of(metric, 0, ties=True)
    names = {"a": sides[0], "b": sides[1], "c": -sides[0]}
    whole = ScoredSides.of(metric, actual, names, folds=np.arange(N) % 2)
    monkeypatch.setattr("gpu_probes.scores.resampling._BATCH_COUNTS", 7 * N)
    monkeypatch.setattr("gpu_probes.scores.resampling._KEPT_BYTES", 1)
    few = ScoredSides.of(metric, actual, names, folds=np.arange(N) % 2)
    for name in names:
        assert few.score(name) == whole.score(name)
        assert few.difference(name, "c") == whole.difference(name, "c")
    assert whole.score("b") == score_interval(metric, actual, sides[1], folds=np.arange(N) % 2)


def test_sides_together_are_the_sides_alone():
    actual, sides = rows_of("spearman", 0, ties=False)
    found = ScoredSides.of("spearman", actual, dict(enumerate(sides)))
    assert found.score(1) == score_interval("spearman", actual, sides[1])
    assert found.difference(0, 1) == difference_interval("spearman", actual, *sides)
    labels = (actual > 0).astype(int)
    areas = ScoredSides.of("roc_auc", labels, dict(enumerate(sides)))
    assert areas.score(1) == score_interval("roc_auc", labels, sides[1])
    assert areas.difference(0, 1) == difference_interval("roc_auc", labels, *sides)


def test_equal_labels_that_no_sum_rounds_to_zero_have_no_r2():
    actual = np.array([0.1] * 20)
    assert score_interval("r2", actual, np.arange(20.0)).reason == "the score itself is undefined"
    actual[0] = 0.2
    assert score_interval("r2", actual, np.arange(20.0)).reason == "the score is undefined in too many resamples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "n_rows", "n_classes"), [("roc_auc", 1500, 77), ("spearman", 300_000, 0), ("roc_auc", 300_000, 2)]
)
def test_memory_is_a_few_times_the_predictions(
    metric: str, n_rows: int, n_classes: int, monkeypatch: pytest.MonkeyPatch
):
    # Fewer resamples than there are, for the test's sake.
    for name, few in (("intervals._FEWEST_RESAMPLES", 20), ("intervals.N_RESAMPLES", 20)):
        monkeypatch.setattr(f"gpu_probes.scores.{name}", few)
    monkeypatch.setattr("gpu_probes.scores.resampling._JACKKNIFE_BLOCKS", 8)
    rng = np.random.default_rng(0)
    actual = rng.standard_normal(n_rows) if n_classes == 0 else np.arange(n_rows) % n_classes
    predicted = rng.standard_normal((n_rows, n_classes) if n_classes > 2 else n_rows)
    tracemalloc.start()
    try:
        assert score_interval(metric, actual, predicted).estimate is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Some vectors of the rows, whatever the number of classes.
    assert peak < 6 * predicted.nbytes + 20 * 8 * n_rows + 2**21
