"""Intervals against scipy, plain formulas and simulated truth (coverage: python -m benchmarks inference)."""

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score, roc_auc_score

from gpu_probes.display.wording import caution
from gpu_probes.errors import LabelError
from gpu_probes.scores.intervals import Interval, difference_interval, score_interval


def pair(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    return 0.5 * x + rng.standard_normal(n), x


def width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["spearman", "r2"])
def test_bootstrap_is_scipys_bca(metric: str):
    actual, predicted = pair(80)
    predicted = 0.5 * predicted
    score = r2_score if metric == "r2" else lambda y, x: stats.spearmanr(y, x).statistic
    theirs = stats.bootstrap(
        (actual, predicted), score, paired=True, vectorized=False, method="BCa", n_resamples=2000, rng=1
    ).confidence_interval
    ours = score_interval(metric, actual, predicted)
    assert ours.estimate == pytest.approx(score(actual, predicted))
    # Two sets of 2,000 resamples.
    np.testing.assert_allclose([ours.low, ours.high], theirs, atol=0.12 * width(ours))


def placements(actual: np.ndarray, *sides: np.ndarray) -> np.ndarray:
    """DeLong's covariance from all pairs of rows."""
    above, below = [], []
    for predicted in sides:
        difference = predicted[actual == 1][:, None] - predicted[actual == 0]
        wins = (difference > 0) + 0.5 * (difference == 0)
        above.append(wins.mean(1))
        below.append(wins.mean(0))
    return np.atleast_2d(np.cov(above)) / (actual == 1).sum() + np.atleast_2d(np.cov(below)) / (actual == 0).sum()


def test_delong_is_the_formula_over_all_pairs_ties_included():
    rng = np.random.default_rng(0)
    actual = (rng.random(60) < 0.4).astype(float)
    first, second = (np.round(actual + rng.standard_normal(60), 0) for _ in range(2))
    covariance = placements(actual, first, second)
    area = roc_auc_score(actual, first)
    single = score_interval("roc_auc", actual, first)
    half = 1.959964 * covariance[0, 0] ** 0.5 / (area * (1 - area))
    logit = np.log(area / (1 - area))
    assert single.estimate == pytest.approx(area)
    np.testing.assert_allclose(
        [single.low, single.high], 1 / (1 + np.exp(-np.array([logit - half, logit + half]))), rtol=1e-6
    )
    paired = difference_interval("roc_auc", actual, first, second)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert paired.estimate == pytest.approx(area - roc_auc_score(actual, second))
    assert width(paired) == pytest.approx(2 * 1.959964 * variance**0.5, rel=1e-6)


def test_repeated_rows_count_once_when_they_are_clusters():
    actual, predicted = pair(100)
    once = score_interval("spearman", actual, predicted)
    twice = [np.tile(values, 2) for values in (actual, predicted)]
    together = score_interval("spearman", *twice, clusters=np.tile(np.arange(100), 2))
    apart = score_interval("spearman", *twice)
    assert "whole groups" in together.method
    assert width(together) == pytest.approx(width(once), rel=0.1)
    assert width(apart) == pytest.approx(width(once) / 2**0.5, rel=0.1)


def test_clusters_of_many_sizes_and_classes():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    labels = rng.integers(0, 3, len(clusters)).astype(float)
    probabilities = rng.dirichlet(np.ones(3), len(clusters)) + 0.2 * np.eye(3)[labels.astype(int)]
    interval = score_interval("roc_auc", labels, probabilities, clusters=clusters)
    areas = [roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]
    assert interval.estimate == pytest.approx(np.mean(areas))
    assert 0 < width(interval) < 0.4


def test_within_folds_the_score_is_the_mean_over_folds():
    actual, predicted = pair(100)
    folds = np.arange(100) % 5
    predicted = predicted + 10 * folds
    expected = np.mean([stats.spearmanr(actual[folds == k], predicted[folds == k]).statistic for k in range(5)])
    interval = score_interval("spearman", actual, predicted, folds=folds)
    assert interval.estimate == pytest.approx(expected)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < expected < interval.high
    area = score_interval("roc_auc", (actual > 0).astype(float), predicted, folds=folds)
    areas = [roc_auc_score(actual[folds == k] > 0, predicted[folds == k]) for k in range(5)]
    assert area.estimate == pytest.approx(np.mean(areas))


def test_a_seed_gives_the_same_interval():
    actual, predicted = pair(40)
    intervals = [score_interval("spearman", actual, predicted, seed=seed) for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]
    assert intervals[0].to_json()["level"] == 0.95


def test_a_difference_of_equal_predictors_is_zero():
    actual, predicted = pair(60)
    interval = difference_interval("spearman", actual, predicted, predicted)
    assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0)
    area = difference_interval("roc_auc", (actual > 0).astype(float), predicted, predicted)
    assert (area.estimate, area.low, area.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "actual", "predicted", "reason"),
    [
        ("spearman", [1.0] * 20, list(range(20)), "the score itself is undefined"),
        ("spearman", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 2.0, 4.0], "there are fewer than 8 rows or groups"),
        ("spearman", [0.0] * 19 + [1.0], list(range(20)), "the score is undefined in too many resamples"),
        ("spearman", list(range(20)), list(range(20)), "the score is the same in every resample"),
        ("roc_auc", [1.0] + [0.0] * 19, list(range(20)), "there are fewer than two rows of a class"),
        ("roc_auc", [0.0] * 10 + [1.0] * 10, list(range(20)), "the classes are separated without an error"),
    ],
)
def test_what_is_undefined_has_a_reason(metric: str, actual: list[float], predicted: list[float], reason: str):
    interval = score_interval(metric, np.array(actual, dtype=float), np.array(predicted, dtype=float))
    assert interval.low is interval.high is None
    assert interval.reason == reason


def test_any_dtype_but_nothing_undefined():
    actual, predicted = pair(40)
    exact = score_interval("spearman", actual, predicted.astype(np.float32).astype(float))
    assert score_interval("spearman", actual, predicted.astype(np.float32)) == exact
    classes = (actual > 0).astype(int)
    for clusters in (None, np.arange(40) // 2):
        assert score_interval("roc_auc", classes, predicted, clusters=clusters).low is not None
    with pytest.raises(LabelError, match="hold NaN or infinity"):
        score_interval("spearman", actual, np.where(np.arange(40) == 3, np.nan, predicted))
    with pytest.raises(LabelError, match=r"predictions have shape \(39,\) for 40 labels"):
        score_interval("spearman", actual, predicted[1:])
    assert score_interval("roc_auc", classes, np.zeros(40)).reason == "all predictions are equal"


def test_blocks_of_units_give_the_jackknifes_skewness():
    actual, predicted = pair(1000)
    wide, exact = score_interval("r2", actual, 0.5 * predicted), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpu_probes.scores.resampling._JACKKNIFE_BLOCKS", 1000)
        exact = score_interval("r2", actual, 0.5 * predicted)
    np.testing.assert_allclose([wide.low, wide.high], [exact.low, exact.high], atol=0.03 * width(exact))


NAMES = {
    "indices": [0, 1],
    "minus one and one": [-1, 1],
    "one and two": [1, 2],
    "zero and two": [0, 2],
    "halves": [0.25, 0.5],
    "beyond float64": [2**53, 2**53 + 1],
    "truth values": [False, True],
    "texts": ["right", "wrong"],
    "objects": np.array(["no", "yes"], dtype=object),
}


@pytest.mark.slow
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_two_classes_may_have_any_names(names: list[Any]):
    rng = np.random.default_rng(0)
    place = rng.integers(0, 2, 200)
    first, second = place + rng.standard_normal(200), place + 2 * rng.standard_normal(200)
    assert score_interval("roc_auc", [names[k] for k in place], first) == score_interval("roc_auc", place, first)
    actual, options = np.asarray(names)[place], [{}, {"clusters": np.arange(200) // 2}, {"folds": np.arange(200) % 4}]
    for kept in options:
        found, expected = (score_interval("roc_auc", labels, first, **kept) for labels in (actual, place))
        assert found == expected
    assert score_interval("roc_auc", actual, first).estimate == pytest.approx(roc_auc_score(actual == names[1], first))
    for kept in options[:2]:
        found, expected = (difference_interval("roc_auc", labels, first, second, **kept) for labels in (actual, place))
        assert found == expected


def test_several_classes_may_have_any_names():
    rng = np.random.default_rng(0)
    place = rng.integers(0, 3, 90)
    probabilities = rng.dirichlet(np.ones(3), 90) + 0.3 * np.eye(3)[place]
    expected = score_interval("roc_auc", place, probabilities)
    for names in ([-5, 0, 7], ["a", "b", "c"]):
        assert score_interval("roc_auc", np.array(names)[place], probabilities) == expected
    assert score_interval("roc_auc", place.tolist(), probabilities.tolist()) == expected


def test_clusters_may_have_any_names():
    actual, predicted = pair(60)
    expected = score_interval("spearman", actual, predicted, clusters=np.arange(60) // 3)
    for names in (np.char.add("group ", (np.arange(60) // 3 + 100).astype(str)), (np.arange(60) // 3) * 7 - 50):
        assert score_interval("spearman", actual, predicted, clusters=names) == expected


def test_what_is_known_against_an_interval_stands_beside_it():
    actual, predicted = pair(60)
    few = score_interval("spearman", actual, predicted, clusters=np.arange(60) // 4)
    assert few.note is not None
    assert few.note.startswith("made of 15 groups only; with fewer than 20")
    assert score_interval("spearman", actual, predicted, clusters=np.arange(60) // 3).note is None
    assert "heavy tails" in str(score_interval("r2", actual, predicted).note)
    assert caution(few.note) == f" Caution about this interval: {few.note}."
    assert caution(None) == ""


def test_classes_that_no_row_has_leave_the_score_undefined():
    place = np.arange(20) % 2
    columns = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    assert score_interval("roc_auc", place, columns, classes=[0, 1, 2]).reason == "the score itself is undefined"
    one = score_interval("roc_auc", np.ones(20), columns[:, 0], classes=[0, 1])
    assert one.reason == "there are fewer than two rows of a class"


TWENTY, EVEN = np.arange(20.0), np.arange(20) % 2


@pytest.mark.parametrize(
    ("metric", "actual", "predicted", "options", "message"),
    [
        ("roc_auc", np.arange(20) % 3, TWENTY, {}, "columns () for 3 classes; give [row, class]"),
        ("roc_auc", np.arange(20) % 3, np.zeros((20, 4)), {}, "columns (4,) for 3 classes"),
        ("roc_auc", EVEN, np.zeros((20, 3)), {}, "columns (3,) for the classes [0, 1]"),
        ("roc_auc", EVEN, np.zeros((20, 2)), {}, "of two classes give one number for each row"),
        ("roc_auc", EVEN, TWENTY, {"classes": [0, 2]}, "label np.int64(1) is not among the classes [0, 2]"),
        ("roc_auc", EVEN, TWENTY, {"classes": [1, 0]}, "not distinct and sorted"),
        ("roc_auc", [None, *EVEN[1:]], TWENTY, {}, "labels hold NaN or None"),
        ("roc_auc", np.array(["a", 1] * 10, dtype=object), TWENTY, {}, "labels mix kinds that cannot be sorted"),
        ("roc_auc", ["a", 1] * 10, TWENTY, {}, "labels mix kinds that cannot be sorted"),
        ("roc_auc", ("1", 1) * 10, TWENTY, {}, "labels mix kinds that cannot be sorted"),
        ("roc_auc", [float("nan"), "b"] * 10, TWENTY, {}, "labels hold NaN or None"),
        ("roc_auc", ["a", b"a"] * 10, TWENTY, {}, "labels mix kinds that cannot be sorted"),
        ("roc_auc", ["a", "b"] * 10, TWENTY, {"classes": ["a", 1]}, "classes mix kinds that cannot be sorted"),
        ("roc_auc", EVEN, TWENTY, {"clusters": ["a", 1] * 10}, "clusters mix kinds that cannot be sorted"),
        ("roc_auc", EVEN, TWENTY, {"folds": ["1", 1] * 10}, "folds mix kinds that cannot be sorted"),
        ("spearman", ["a"] * 20, TWENTY, {}, "labels are not numbers"),
        ("spearman", EVEN, TWENTY, {"classes": [0, 1]}, "for classes use roc_auc"),
        ("spearman", TWENTY, np.zeros((20, 2)), {}, "one number for each row"),
        ("spearman", TWENTY[:, None], TWENTY, {}, "labels have shape (20, 1)"),
        ("auc", EVEN, TWENTY, {}, "metric='auc' is unknown; use spearman, r2, roc_auc"),
        ("spearman", TWENTY, TWENTY, {"clusters": np.zeros(19)}, "clusters have shape (19,) for 20 labels"),
        ("spearman", TWENTY, TWENTY, {"clusters": [np.nan] * 20}, "clusters hold NaN or None"),
        ("spearman", TWENTY, TWENTY, {"folds": np.zeros((20, 1))}, "folds have shape (20, 1) for 20 labels"),
        ("spearman", TWENTY, TWENTY, {"level": 95.0}, "level=95.0 is not between 0 and 1"),
        ("spearman", TWENTY, TWENTY, {"seed": -1}, "seed=-1 is less than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(metric: Any, actual: Any, predicted: Any, options: Any, message: str):
    with pytest.raises(LabelError, match=re.escape(message)):
        score_interval(metric, actual, predicted, **options)
