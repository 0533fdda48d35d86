"""Binomial probes against scikit-learn's logistic regression on doubled rows."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from gpu_probes import (
    About,
    ArrayCellSource,
    BinomialProbe,
    BinomialProbeCV,
    Cell,
    LabelError,
    PenaltyError,
    SavedProbes,
    SweepOptions,
    infer,
    sweep,
)
from gpu_probes.results.documents import Results

N, N_TEST, ALPHAS = 90, 40, [0.1, 10.0, 1000.0]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, rates and numbers of attempts, training rows first."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N + N_TEST, 2, 1, 12)) + 0.3
    n_samples = rng.integers(2, 9, N + N_TEST)
    decision = features[:, 1, 0] @ rng.standard_normal(12) / 2
    return features, rng.binomial(n_samples, expit(decision)) / n_samples, n_samples


def doubled(
    features: np.ndarray, rates: np.ndarray, weights: np.ndarray, alpha: float, **options
) -> LogisticRegression:
    """Every row of both classes, by its share."""
    model = LogisticRegression(C=1 / alpha, solver="newton-cholesky", tol=1e-12, max_iter=1000, **options)
    both, sides = np.concatenate([features, features]), np.repeat([1, 0], len(rates))
    return model.fit(both, sides, np.concatenate([weights * rates, weights * (1 - rates)]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("n_features", [12, 150], ids=["long", "wide"])
def test_coefficients_equal_scikit_learns_on_doubled_rows(weighted: bool, fit_intercept: bool, n_features: int):
    rng = np.random.default_rng(n_features)
    features = rng.standard_normal((N, n_features)) + 0.5
    rates = rng.binomial(8, expit(features[:, 0])) / 8
    weights = rng.integers(1, 9, N) * 1.0 if weighted else np.ones(N)
    for alpha in (0.1, 1.0, 100.0):
        probe = BinomialProbe(alpha, fit_intercept=fit_intercept).fit(features, rates, weights if weighted else None)
        theirs = doubled(features, rates, weights, alpha, fit_intercept=fit_intercept)
        scale = np.linalg.norm(theirs.coef_)
        assert np.linalg.norm(probe.coef_ - theirs.coef_[0]) < 1e-6 * scale
        assert probe.intercept_ == pytest.approx(theirs.intercept_[0] if fit_intercept else 0.0, abs=1e-6)
        np.testing.assert_allclose(probe.predict(features), theirs.predict_proba(features)[:, 1], atol=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_every_fold_and_alpha_equals_scikit_learn(rows, standardize: bool):
    features, rates, n_samples = rows
    folds = np.arange(N) % 3
    weights = n_samples[:N].astype(float)
    given = SweepOptions(
        probe="binomial", k_fold=True, folds=folds, alphas=ALPHAS, sample_weight=weights, standardize=standardize,
        fit_intercept=True,
    )  # fmt: skip
    result = sweep(features[:N], rates[:N], **vars(given))
    for layer in range(2):
        x = features[:N, layer, 0]
        scores, held_out = np.zeros((3, len(ALPHAS))), np.zeros((N, len(ALPHAS)))
        for fold in range(3):
            train, test = folds != fold, folds == fold
            scaler = StandardScaler().fit(x[train], sample_weight=weights[train])
            seen, other = (scaler.transform(x[part]) if standardize else x[part] for part in (train, test))
            for k, alpha in enumerate(ALPHAS):
                model = doubled(seen, rates[:N][train], weights[train], alpha)
                held_out[test, k] = model.decision_function(other)
                scores[fold, k] = spearmanr(rates[:N][test], held_out[test, k]).statistic
        np.testing.assert_allclose(result.alpha_cv_score[0, layer], scores.mean(0), atol=1e-9)
        best = int(scores.mean(0).argmax())
        assert result.selected_alpha[0, layer] == ALPHAS[best]
        np.testing.assert_allclose(result.cv_decision[0, layer, :, 0], held_out[:, best], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(result.cv_predictions[0, layer, :, 0], expit(held_out[:, best]), atol=1e-6)
    assert (result.task_type, result.metric, result.probe) == ("regression", "spearman", "binomial")
    assert (result.certificate <= 1e-12).all()


def test_a_choice_of_alpha_is_that_of_the_sweep(rows):
    features, rates, n_samples = rows
    x, y = features[:N, 1, 0], rates[:N]
    found = BinomialProbeCV(ALPHAS, n_folds=3).fit(x, y, n_samples[:N])
    expected = sweep(x, y, probe="binomial", k_fold=True, n_folds=3, alphas=ALPHAS, sample_weight=n_samples[:N])
    assert found.alpha_ == expected.best.alpha
    np.testing.assert_allclose(found.coef_, expected.coef[0, 0, 0])
    assert found.cv_score_ == expected.best.cv_score
    assert found.direction_ @ found.coef_ > 0


def test_rates_of_0_and_1_are_logistic_regression(rows):
    features, rates, _ = rows
    labels = (rates > 0.5).astype(float)
    ours = sweep(features, labels, probe="binomial", alpha=3.0, k_fold=True)
    theirs = sweep(features, labels, task_type="classification", alpha=3.0, k_fold=True)
    np.testing.assert_allclose(ours.coef, theirs.coef, rtol=1e-7, atol=1e-12)
    assert (ours.task_type, theirs.task_type) == ("regression", "classification")


@pytest.fixture(scope="module")
def everything(rows):
    """A sweep with all statistics."""
    features, rates, n_samples = rows
    train, test = ArrayCellSource(features[:N]), ArrayCellSource(features[N:])
    given = SweepOptions(
        probe="binomial", k_fold=True, n_folds=3, alphas=ALPHAS, sample_weight=n_samples[:N], permutations=19
    )
    result = sweep(train, rates[:N], test, rates[N:], **vars(given))
    prompts = [f"{'high' if rate > 0.5 else 'low'} number {k}" for k, rate in enumerate(rates)]
    about = About(prompts[:N], prompts[N:], None, {"prompt_length": (np.arange(N) % 7, np.arange(N_TEST) % 5)})
    return result, infer(result, train, test, given, about)


@pytest.mark.slow
def test_all_statistics_are_of_the_rate(everything, rows):
    _, rates, n_samples = rows
    result, found = everything
    best = result.best
    at = best.position_index, best.layer_index
    scores = found.scores["test"]
    predicted = expit(result.test_decision[at][:, 0])
    np.testing.assert_allclose(result.test_predictions[at][:, 0], predicted)
    assert scores.r2 == pytest.approx(r2_score(rates[N:], predicted))
    assert scores.mae == pytest.approx(np.abs(rates[N:] - predicted).mean())
    assert scores.spearman == pytest.approx(best.test_score)
    assert 0 <= min(found.nested_cv.predictions) <= max(found.nested_cv.predictions) <= 1
    assert found.intervals.test_score.low < best.test_score < found.intervals.test_score.high
    # Calibrated in log odds, by shares instead of classes: a single slope near 1 for a model that is right.
    assert found.platt.slope > 0
    assert found.calibration.slope is None
    assert found.platt.test_scores.spearman == pytest.approx(best.test_score)
    assert found.baselines["tfidf"].title == "TF-IDF, binomial regression"
    assert found.baselines["tfidf"].test_score > 0.5
    assert found.baselines["prompt_length"].cv_score < best.cv_score
    assert [point.share for point in found.learning_curve] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert found.learning_curve[-1].cv_score == pytest.approx(best.cv_score)
    # Permutations compare least squares on the rates, with the rates' own.
    assert (found.permutation.statistic, found.permutation.p_best) == ("least_squares", 1 / 20)
    centred = sweep(
        rows[0][:N], rates[:N] - 0.5, probe="ridge", k_fold=True, n_folds=3, alphas=ALPHAS,
        sample_weight=n_samples[:N], permutations=19,
    )  # fmt: skip
    np.testing.assert_allclose(np.array(found.permutation.observed), centred.cv_score, atol=1e-9)
    np.testing.assert_allclose(found.permutation.null_max, centred.permutation.null_max, atol=1e-9)


@pytest.mark.slow
def test_permutations_of_the_probe_itself(rows):
    features, rates, _ = rows
    options = {"probe": "binomial", "k_fold": True, "n_folds": 3, "alphas": [1.0, 100.0], "nested_cv": False}
    found = sweep(features[:N], rates[:N], permutations=9, permutation_statistic="probe", **options)
    assert found.permutation_statistic == "probe"
    np.testing.assert_array_equal(found.observed_score, found.cv_score)
    assert found.permutation.p_best == 0.1


@pytest.mark.slow
def test_saved_results_are_read_back(everything, rows, tmp_path: Path):
    features, rates, n_samples = rows
    options = {"probe": "binomial", "k_fold": True, "n_folds": 3, "alphas": ALPHAS, "permutations": 19}
    result = sweep(features[:N], rates[:N], features[N:], rates[N:], sample_weight=n_samples[:N], **options)
    folder = result.save(tmp_path / "out")
    saved = Results.load(folder)
    assert saved.best is not None
    assert saved.best.test_ranked is not None
    np.testing.assert_allclose(saved.best.test_predictions, expit(np.array(saved.best.test_ranked)))
    probes = SavedProbes.load(folder)
    cell = Cell(saved.best.best_layer_number, saved.best.best_position)
    source = ArrayCellSource(features[N:])
    np.testing.assert_allclose(probes.predict(source, cell)[:, 0], saved.best.test_predictions)
    assert probes.score(source, rates[N:], cell) == pytest.approx(saved.best.test_score)


def test_predictions_that_round_to_1_are_ranked_all_the_same(tmp_path: Path):
    """Separable rates at a tiny alpha: decision values beyond 40, whose sigmoids are 1."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 1, 1, 3))
    rates = (features[:, 0, 0, 0] > 0).astype(float)
    rates[np.abs(features[:, 0, 0, 0]) < 0.02] = 0.5
    result = sweep(features, rates, features, rates, probe="binomial", alpha=1e-9, k_fold=True, n_folds=3)
    assert result.test_decision.max() > 40
    Results.load(result.save(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": [0.5, 1.5]}, LabelError, r"train_labels has 45 values outside 0 to 1 \(first: 1.5 in row 1\)"),
        (
            {"test_labels": [0.5, -0.1]},
            LabelError,
            r"test_labels has 20 values outside 0 to 1 \(first: -0.1 in row 1\)",
        ),
        ({"labels": ["a", "b"]}, LabelError, "train_labels are words"),
        ({"task_type": "classification"}, LabelError, "predicts rates, which are numbers"),
        ({"alpha": 0.0}, PenaltyError, "use an alpha above 0"),
        ({"positive_class": "1"}, LabelError, "positive_class"),
    ],
)
def test_what_is_no_rate_is_one_line(rows, changes, error, message):
    features, rates, _ = rows
    labels = np.resize(changes.pop("labels"), N) if "labels" in changes else rates[:N]
    test_labels = np.resize(changes.pop("test_labels"), N_TEST) if "test_labels" in changes else rates[N:]
    with pytest.raises(error, match=message) as caught:
        sweep(features[:N], labels, features[N:], test_labels, probe="binomial", **changes)
    assert "\n" not in str(caught.value)


def test_an_estimator_names_the_row_that_is_no_rate():
    with pytest.raises(LabelError, match=r"y has 1 values outside 0 to 1 \(first: 2 in row 3\)"):
        BinomialProbe().fit(np.eye(4), [0, 0.5, 1, 2])
