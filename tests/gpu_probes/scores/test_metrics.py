"""Scores against scipy, scikit-learn and slow versions written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, special, stats
from sklearn import metrics

from gpu_probes.scores.calibration import PlattScaling, TemperatureScaling
from gpu_probes.scores.metrics import calibration_error, classification_scores, regression_scores, reliability_curve

NAMES = ["negative", "neutral", "positive", "mixed", "other"]
# Few distinct values make ties the rule.
tied = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])
pairs = st.integers(2, 30).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=tied)] * 2))


@pytest.mark.slow
@given(pairs)
def test_regression_scores_are_scipys_and_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]):
    actual, predicted = drawn
    scores = regression_scores(actual, predicted)
    assert scores.values["mse"] == pytest.approx(metrics.mean_squared_error(actual, predicted))
    assert scores.values["mae"] == pytest.approx(metrics.mean_absolute_error(actual, predicted))
    correlations = {"spearman": stats.spearmanr, "pearson": stats.pearsonr, "kendall": stats.kendalltau}
    for name, test in correlations.items():
        if np.ptp(actual) == 0 or np.ptp(predicted) == 0:
            assert scores.values[name] is None
            assert scores.reasons[name] == f"all {'labels' if np.ptp(actual) == 0 else 'predictions'} are equal"
        else:
            assert scores.values[name] == pytest.approx(test(actual, predicted).statistic, abs=1e-12)
    if np.ptp(actual) > 0:
        assert scores.values["r2"] == pytest.approx(metrics.r2_score(actual, predicted))


@pytest.mark.slow
@given(pairs)
def test_learnability_is_the_mean_over_all_ways_to_break_ties(drawn: tuple[np.ndarray, np.ndarray]):
    actual, predicted = drawn
    found = regression_scores(actual, predicted).values["learnability"]
    gain, guess = actual * (1 - actual), predicted * (1 - predicted)
    n_top, rng, means = math.ceil(len(actual) / 4), np.random.default_rng(0), []
    for _ in range(400):
        order = rng.permutation(len(actual))
        means.append(gain[order][np.argsort(-guess[order], kind="stable")[:n_top]].mean())
    assert found["selected"] == pytest.approx(np.mean(means), abs=0.03)
    assert found["best"] == pytest.approx(np.sort(gain)[-n_top:].mean())
    assert found["random"] == pytest.approx(gain.mean())
    assert found["best"] >= found["selected"] - 1e-12


def test_learnability_needs_success_rates():
    scores = regression_scores(np.array([0.0, 2.0, 1.0]), np.zeros(3))
    assert scores.values["learnability"] is None
    assert scores.to_json()["undefined"]["learnability"] == "labels are not success rates between 0 and 1"


@pytest.mark.slow
@given(
    st.integers(4, 40).flatmap(
        lambda n: st.tuples(arrays(np.int64, n, elements=st.integers(0, 1)), arrays(np.float64, n, elements=tied))
    )
)
def test_scores_of_two_classes_are_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]):
    actual, probabilities = drawn[0], np.clip(drawn[1], 0.01, 0.99)
    decision = special.logit(probabilities)
    scores = classification_scores(actual, decision[:, None], NAMES[:2]).values
    by_class = np.stack([1 - probabilities, probabilities], 1)
    assert scores["accuracy"] == metrics.accuracy_score(actual, probabilities > 0.5)
    assert scores["log_loss"] == pytest.approx(metrics.log_loss(actual, by_class, labels=[0, 1]))
    assert scores["brier"] == pytest.approx(metrics.brier_score_loss(actual, probabilities))
    if actual.min() == actual.max():
        assert scores["roc_auc"] is scores["average_precision"] is scores["recall_at_1pct_fpr"] is None
        return
    assert scores["roc_auc"] == pytest.approx(metrics.roc_auc_score(actual, probabilities))
    assert scores["average_precision"] == pytest.approx(metrics.average_precision_score(actual, probabilities))
    rates = [
        ((probabilities >= t) & (actual == 1)).sum() / (actual == 1).sum()
        for t in [*np.unique(probabilities), np.inf]
        if ((probabilities >= t) & (actual == 0)).sum() <= 0.01 * (actual == 0).sum()
    ]
    assert scores["recall_at_1pct_fpr"] == pytest.approx(max(rates))


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(3, 5))
def test_scores_of_several_classes_are_scikit_learns(seed: int, n_classes: int):
    rng = np.random.default_rng(seed)
    actual = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 20)])
    probabilities = rng.dirichlet(np.ones(n_classes), len(actual)) + 1e-3
    probabilities /= probabilities.sum(1, keepdims=True)
    scores = classification_scores(actual, np.log(probabilities), NAMES[:n_classes])
    one_hot = np.eye(n_classes)[actual]
    assert scores.values["roc_auc"] == pytest.approx(metrics.roc_auc_score(actual, probabilities, multi_class="ovr"))
    assert scores.values["average_precision"] == pytest.approx(
        metrics.average_precision_score(one_hot, probabilities, average="macro")
    )
    assert scores.values["log_loss"] == pytest.approx(metrics.log_loss(actual, probabilities))
    assert scores.values["brier"] == pytest.approx(np.square(probabilities - one_hot).sum(1).mean())
    assert scores.values["accuracy"] == metrics.accuracy_score(actual, probabilities.argmax(1))
    assert scores.reasons == {"recall_at_1pct_fpr": "there are more than two classes"}
    right = probabilities.argmax(1) == actual
    assert scores.values["ece"] == pytest.approx(slow_calibration_error(right, probabilities.max(1)))


def slow_calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    total = 0.0
    for low in np.arange(10) / 10:
        inside = [
            (r, c) for r, c in zip(right, confidence, strict=True) if low <= c < low + 0.1 or (low == 0.9 and c == 1)
        ]
        if inside:
            total += len(inside) * abs(np.mean([c for _, c in inside]) - np.mean([r for r, _ in inside]))
    return total / len(right)


def test_reliability_by_hand():
    right, confidence = np.array([True, False, True, True]), np.array([0.05, 0.05, 0.95, 1.0])
    curve = reliability_curve(right, confidence)
    assert [point["count"] for point in curve] == [2, *[0] * 8, 2]
    assert curve[0] == {
        "low": 0.0,
        "high": 0.1,
        "count": 2,
        "mean_predicted": pytest.approx(0.05),
        "fraction_positive": 0.5,
    }
    assert curve[5]["mean_predicted"] is curve[5]["fraction_positive"] is None
    assert calibration_error(right, confidence) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_ranking_scores_tell_rows_apart_whose_probabilities_round_to_one():
    rng = np.random.default_rng(0)
    actual, decision = np.arange(60) % 2, 100 + np.arange(60) % 2 + rng.standard_normal(60)
    assert (special.expit(decision) == 1).all()
    scores = classification_scores(actual, decision[:, None], NAMES[:2]).values
    assert scores["roc_auc"] == pytest.approx(metrics.roc_auc_score(actual, decision))
    assert scores["average_precision"] == pytest.approx(metrics.average_precision_score(actual, decision))
    assert 0 < scores["recall_at_1pct_fpr"] < 1


def platts_loss(actual: np.ndarray, decision: np.ndarray, slope: float, intercept: float) -> float:
    targets = np.where(actual == 1, (actual.sum() + 1) / (actual.sum() + 2), 1 / ((1 - actual).sum() + 2))
    odds = slope * decision + intercept
    return float((np.logaddexp(0, odds) - targets * odds).sum())


@pytest.mark.parametrize("kind", ["noisy", "separable", "huge", "tiny", "offset", "falling", "outlier"])
def test_platt_scaling_minimises_platts_objective(kind: str):
    rng = np.random.default_rng(0)
    z = rng.standard_normal(200)
    actual = (z > 0).astype(int) if kind == "separable" else (rng.random(200) < special.expit(2 * z)).astype(int)
    scale, offset = {"huge": (1e9, 0.0), "tiny": (1e-9, 0.0), "offset": (1.0, 1e5)}.get(kind, (3.0, 0.0))
    decision = (-scale if kind == "falling" else scale) * z + offset
    if kind == "outlier":
        decision[0] = 1e6 if actual[0] else -1e6
    fitted = PlattScaling.fit(actual, decision)
    unit = np.median(np.abs(decision - np.median(decision)))
    centred = (decision - np.median(decision)) / unit
    reference = optimize.minimize(
        lambda point: platts_loss(actual, centred, *point),
        [0.1, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000},
    )
    assert platts_loss(actual, decision, fitted.slope, fitted.intercept) <= reference.fun + 1e-6
    assert (fitted.slope < 0) == (kind == "falling")
    np.testing.assert_allclose(fitted.apply(decision), special.expit(fitted.slope * decision + fitted.intercept))


def test_platt_scaling_of_equal_decisions_is_flat():
    fitted = PlattScaling.fit(np.arange(10) % 2, np.full(10, 3.0))
    assert fitted.slope == 0
    assert fitted.apply(np.array([3.0, 50.0])) == pytest.approx(0.5)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_scores_of_each_class_are_scikit_learns(n_classes: int):
    rng = np.random.default_rng(n_classes)
    # The last class is the most probable one of no row, and no row is of the one before it.
    actual = rng.choice([place for place in range(n_classes) if place != n_classes - 2 or n_classes < 4], 40)
    decision = rng.standard_normal((40, n_classes)) + 2 * np.eye(n_classes)[actual]
    if n_classes > 2:
        decision[:, -1] -= 50
    given = decision[:, 1:] - decision[:, :1] if n_classes == 2 else decision
    found = classification_scores(actual, given, NAMES[:n_classes]).values
    chosen = decision.argmax(1)
    np.testing.assert_array_equal(found["confusion"], metrics.confusion_matrix(actual, chosen, labels=range(n_classes)))
    report = metrics.classification_report(
        actual, chosen, labels=range(n_classes), target_names=NAMES[:n_classes], output_dict=True, zero_division=np.nan
    )
    probabilities = special.softmax(decision, axis=1)
    assert [one["name"] for one in found["by_class"]] == NAMES[:n_classes]
    for place, one in enumerate(found["by_class"]):
        expected = report[one["name"]]
        assert one["support"] == expected["support"] == (actual == place).sum()
        for name, theirs in (("precision", "precision"), ("recall", "recall")):
            value = expected[theirs]
            assert one[name] == (None if np.isnan(value) else pytest.approx(value))
            assert (one[name] is None) == (name in one["undefined"])
        if one["f1"] is not None:
            assert one["f1"] == pytest.approx(expected["f1-score"])
        if one["support"]:
            assert one["roc_auc"] == pytest.approx(metrics.roc_auc_score(actual == place, probabilities[:, place]))
        else:
            assert one["undefined"]["roc_auc"] == "no row is of this class"
    if n_classes > 2:
        assert found["by_class"][-1]["undefined"]["precision"] == "this class is predicted for no row"


@pytest.mark.parametrize("scale", [1e-9, 0.2, 5.0, 1e6])
def test_a_temperature_has_the_least_log_loss(scale: float):
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 4, 300)
    decision = scale * (rng.standard_normal((300, 4)) + 1.5 * np.eye(4)[actual]) + rng.standard_normal((300, 1))
    found = TemperatureScaling.fit(actual, decision)
    assert isinstance(found, TemperatureScaling)

    def log_loss(log_temperature: float) -> float:
        logits = decision / scale / math.exp(log_temperature)
        return float((special.logsumexp(logits, axis=1) - logits[np.arange(300), actual]).mean())

    reference = optimize.minimize_scalar(log_loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    assert found.temperature == pytest.approx(scale * math.exp(reference.x), rel=1e-4)
    np.testing.assert_allclose(found.scale(decision), decision / found.temperature)


def test_decisions_without_a_temperature_say_why():
    actual, right = np.arange(12) % 3, np.eye(3)[np.arange(12) % 3]
    assert "first in every row" in str(TemperatureScaling.fit(actual, right))
    assert "do not rise" in str(TemperatureScaling.fit(actual, -right))
    assert "do not rise" in str(TemperatureScaling.fit(actual, np.zeros((12, 3))))
