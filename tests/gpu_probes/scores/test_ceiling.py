"""Ceilings against simulations that know the true rates, and against scipy's beta-binomial."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import r2_score, roc_auc_score

from benchmarks.label.ceiling import SHAPES
from gpu_probes import LabelError, score_ceiling
from gpu_probes.scores.ceiling import Pairs
from gpu_probes.scores.intervals import Interval

N = 20_000


def simulate(shape: str, n_samples: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rates = SHAPES[shape](rng, len(n_samples))
    return rates, rng.binomial(n_samples, rates)


def value(interval: Interval) -> float:
    assert interval.estimate is not None
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= interval.estimate <= interval.high
    return interval.estimate


@pytest.mark.slow
@pytest.mark.parametrize("n_attempts", [(4,), (8,), (2, 5, 9)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_ceilings_are_what_the_true_rates_score(shape: str, n_attempts: tuple[int, ...]):
    n_samples = np.resize(n_attempts, N)
    rates, n_correct = simulate(shape, n_samples)
    labels = n_correct / n_samples
    found = {name: value(one) for name, one in score_ceiling(n_correct, n_samples).items()}
    assert found["spearman"] == pytest.approx(stats.spearmanr(rates, labels).statistic, abs=0.02)
    assert found["pearson"] == pytest.approx(stats.pearsonr(rates, labels).statistic, abs=0.02)
    assert found["r2"] == pytest.approx(r2_score(labels, rates), abs=0.02)
    above = score_ceiling(n_correct, n_samples, threshold=0.55)
    assert set(above) == {"roc_auc"}
    assert value(above["roc_auc"]) == pytest.approx(roc_auc_score(labels > 0.55, rates), abs=0.02)


def test_pearson_is_the_root_of_the_reliability():
    n_samples = np.resize([3, 8], 200)
    _, n_correct = simulate("Beta(4, 4)", n_samples)
    p = n_correct / n_samples
    reliability = 1 - np.mean(p * (1 - p) / (n_samples - 1)) / p.var(ddof=1)
    found = score_ceiling(n_correct, n_samples)
    assert found["r2"].estimate == pytest.approx(reliability)
    assert found["pearson"].estimate == pytest.approx(reliability**0.5)


@pytest.mark.parametrize("parameters", [(0.3, 0.4), (5.0, 2.0), (30.0, 60.0)])
def test_the_smooth_fit_is_scipys_of_the_highest_likelihood(parameters: tuple[float, float]):
    rng = np.random.default_rng(0)
    n_samples = np.resize([4, 11], 3000)
    n_correct = rng.binomial(n_samples, rng.beta(*parameters, len(n_samples)))
    pairs, counts = np.unique(np.stack([n_samples, n_correct]), axis=1, return_counts=True)
    ours = Pairs(*pairs.astype(float), None)._fit_beta((counts / counts.sum())[None])
    theirs = optimize.minimize(
        lambda logs: -stats.betabinom.logpmf(n_correct, n_samples, *np.exp(logs)).sum(), np.zeros(2), method="BFGS"
    )
    np.testing.assert_allclose(np.log(ours).ravel(), theirs.x, atol=1e-3)


def test_a_question_with_one_attempt_takes_part():
    n_samples = np.resize([8], N)
    rates, n_correct = simulate("Beta(.4, 1.6)", n_samples)
    one = np.arange(N) % 10 == 0
    n_samples[one], n_correct[one] = 1, np.random.default_rng(1).random(one.sum()) < rates[one]
    labels = n_correct / n_samples
    found = score_ceiling(n_correct, n_samples)
    assert found["pearson"].estimate == pytest.approx(stats.pearsonr(rates, labels).statistic, abs=0.01)
    assert found["spearman"].estimate == pytest.approx(stats.spearmanr(rates, labels).statistic, abs=0.02)


def test_questions_of_a_cluster_are_resampled_together():
    n_samples = np.full(300, 4)
    _, n_correct = simulate("Beta(4, 4)", n_samples)
    twice = np.tile(n_correct, 2), np.tile(n_samples, 2)
    alone, together = score_ceiling(*twice), score_ceiling(*twice, clusters=np.tile(np.arange(300), 2))
    widths = []
    for found in (alone, together):
        value(found["pearson"])
        widths.append(found["pearson"].high - found["pearson"].low)
    assert widths[1] / widths[0] == pytest.approx(2**0.5, rel=0.15)
    assert alone["pearson"].method == "bootstrap, BCa"
    assert together["pearson"].method == "bootstrap, BCa, whole groups"


def test_the_same_seed_gives_the_same_interval():
    n_samples = np.full(100, 4)
    _, n_correct = simulate("Beta(.3, .3)", n_samples)
    assert score_ceiling(n_correct, n_samples, seed=3) == score_ceiling(n_correct, n_samples, seed=3)
    assert score_ceiling(n_correct, n_samples, seed=3) != score_ceiling(n_correct, n_samples, seed=4)


def test_two_attempts_are_called_approximate():
    n_samples = np.full(300, 2)
    _, n_correct = simulate("Beta(.3, .3)", n_samples)
    for interval in score_ceiling(n_correct, n_samples).values():
        value(interval)
        assert "approximate: made of 2 attempts per question" in str(interval.note)
    eight = np.full(300, 8)
    assert score_ceiling(simulate("Beta(.3, .3)", eight)[1], eight)["spearman"].note is None


@pytest.mark.parametrize(
    ("n_correct", "n_samples", "threshold", "reason"),
    [
        ([0, 1, 1, 0], [1, 1, 1, 1], None, "every question has one attempt"),
        ([1, 2, 4], [2, 4, 8], None, "all success rates are equal"),
        ([4, 3, 5, 4, 4, 5], [8] * 6, None, "differ no more between questions than they would by luck"),
        ([1, 4, 8], [8] * 3, 1.0, "all success rates are on one side of the threshold"),
    ],
)
def test_what_is_undefined_is_null_with_a_reason(n_correct, n_samples, threshold, reason):
    for interval in score_ceiling(n_correct, n_samples, threshold=threshold).values():
        assert (interval.estimate, interval.low, interval.high) == (None, None, None)
        assert reason in str(interval.reason)


@pytest.mark.parametrize(
    ("n_correct", "n_samples", "message"),
    [
        ([1.5, 2], [4, 4], "n_correct is 1.5 in row 0"),
        ([1, 5], [4, 4], "n_correct is 5 in row 1"),
        ([1, 2], [4.5, 4], "n_samples is 4.5 in row 0"),
        ([1, 2], [0, 4], "n_samples is 0"),
        ([1, 2], [4], "have shapes"),
        ([], [], "have shapes"),
    ],
)
def test_what_are_no_counts_is_an_error(n_correct, n_samples, message):
    with pytest.raises(LabelError, match=message):
        score_ceiling(n_correct, n_samples)
