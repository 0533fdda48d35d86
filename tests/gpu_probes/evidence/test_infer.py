"""Everything that stands in inference.json, against fits by scikit-learn on the same folds."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import roc_auc_score

from gpu_probes import (
    About,
    ArrayCellSource,
    LabelError,
    SavedProbes,
    SweepOptions,
    SweepResult,
    compare_overlap,
    infer,
    sweep,
)
from gpu_probes.evidence.baselines import TFIDF_ALPHAS
from gpu_probes.evidence.infer import _calibration
from gpu_probes.results.inference import Line
from gpu_probes.samples.labels import Task

N, N_TEST = 80, 40
WORDS = ["add", "capital", "story", "letter", "largest"]


class Case:
    """Rows of which layer 1 knows the labels, layer 0 nothing, and words half."""

    def __init__(self, classes: bool) -> None:
        rng = np.random.default_rng(0)
        features = rng.standard_normal((N + N_TEST, 2, 2, 6))
        topic = rng.integers(0, len(WORDS), N + N_TEST)
        labels = features[:, 1, 0] @ np.arange(6.0) + topic + 2 * rng.standard_normal(N + N_TEST)
        if classes:
            labels = (labels > np.median(labels)).astype(float)
        prompts = [f"{WORDS[kind]} number {k}" for k, kind in enumerate(topic)]
        self.length = np.array([len(prompt) for prompt in prompts])
        self.features, self.labels, self.prompts = features, labels, prompts
        self.train, self.test = ArrayCellSource(features[:N]), ArrayCellSource(features[N:])
        self.about = About(prompts[:N], prompts[N:], None, {"prompt_length": (self.length[:N], self.length[N:])})

    def run(self, **changes: Any) -> tuple[SweepResult, dict[str, Any]]:
        options = SweepOptions(k_fold=True, **changes)
        result = sweep(self.train, self.labels[:N], self.test, self.labels[N:], **vars(options))
        return result, infer(result, self.train, self.test, options, self.about).to_json()


@pytest.fixture(scope="module", params=[False, True], ids=["numbers", "classes"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def found(case: Case) -> tuple[SweepResult, dict[str, Any]]:
    return case.run(alphas=[1.0, 100.0], permutations=30)


def metric(labels: np.ndarray, predictions: np.ndarray) -> float:
    return roc_auc_score(labels, predictions) if set(labels) <= {0, 1} else spearmanr(labels, predictions).statistic


@pytest.mark.slow
def test_is_json_and_complete(found):
    _, inference = found
    assert json.loads(json.dumps(inference, allow_nan=False)) == inference
    assert set(inference["baselines"]) == {"prompt_length", "tfidf", "layer_0", "random_direction", "random_labels"}
    assert inference["permutation"]["p_best"] == pytest.approx(1 / 31)
    assert len(inference["permutation"]["null_max"]) == 30
    nested = inference["nested_cv"]
    assert nested["score"] == pytest.approx(np.mean([fold["score"] for fold in nested["folds"]]))
    assert nested["optimism"] == pytest.approx(nested["best_cv_score"] - nested["score"])
    assert len(nested["predictions"]) == N
    for name in ("test_score", "nested_cv_score"):
        interval = inference["intervals"][name]
        assert interval["low"] < interval["estimate"] < interval["high"]
    result, _ = found
    best = result.best
    (lead,) = inference["intervals"]["best_minus_cell"]
    other = result.positions.index(lead["position"]), result.layers.index(lead["layer"])
    assert other[0] != best.position_index
    assert result.cv_score[other] == np.nanmax(result.cv_score[other[0]])
    assert lead["test_score"]["estimate"] == pytest.approx(best.test_score - result.test_score[other])
    assert inference["intervals"]["nested_cv_score"]["estimate"] == pytest.approx(nested["score"])


def test_scores_of_the_best_probe(case: Case, found):
    result, inference = found
    best = result.best
    assert best is not None
    predictions = result.test_predictions[best.position_index, best.layer_index, :, 0]
    name = "roc_auc" if result.classes else "spearman"
    assert inference["scores"]["test"][name] == pytest.approx(best.test_score)
    assert inference["scores"]["test"][name] == pytest.approx(metric(case.labels[N:], predictions))
    assert set(inference["scores"]) == {"train", "cv", "test"}
    if result.classes:
        assert inference["platt"]["test_scores"]["roc_auc"] == pytest.approx(best.test_score)
        assert inference["platt"]["slope"] > 0
    else:
        assert inference["platt"]["reason"] == "Platt scaling is for two classes and for rates"


def test_number_baseline_is_a_line_on_the_number(case: Case, found):
    result, inference = found
    length = case.length[:, None].astype(float)
    scores = []
    for fold in range(5):
        train, held_out = result.fold_of_sample != fold, result.fold_of_sample == fold
        line = LinearRegression().fit(length[:N][train], case.labels[:N][train])
        scores.append(metric(case.labels[:N][held_out], line.predict(length[:N][held_out])))
    baseline = inference["baselines"]["prompt_length"]
    assert baseline["cv_score"] == pytest.approx(np.mean(scores))
    line = LinearRegression().fit(length[:N], case.labels[:N])
    assert baseline["test_score"] == pytest.approx(metric(case.labels[N:], line.predict(length[N:])))
    best = result.best
    assert best is not None
    assert baseline["difference"]["estimate"] == pytest.approx(best.test_score - baseline["test_score"])


def test_tfidf_baseline_counts_words_of_each_folds_training_rows(case: Case, found):
    result, inference = found
    if result.classes:
        assert 0.5 < inference["baselines"]["tfidf"]["cv_score"] < 0.9
        return
    texts, by_alpha = np.array(case.prompts, dtype=object), []
    for alpha in TFIDF_ALPHAS:
        scores = []
        for fold in range(5):
            train, held_out = result.fold_of_sample != fold, result.fold_of_sample == fold
            words = TfidfVectorizer(sublinear_tf=True).fit(texts[:N][train])
            model = Ridge(alpha).fit(words.transform(texts[:N][train]), case.labels[:N][train])
            scores.append(metric(case.labels[:N][held_out], model.predict(words.transform(texts[:N][held_out]))))
        by_alpha.append(np.mean(scores))
    assert inference["baselines"]["tfidf"]["cv_score"] == pytest.approx(max(by_alpha), abs=1e-6)


def test_random_baselines_know_nothing_and_layer_zero_is_its_best_cell(found):
    result, inference = found
    chance = 0.5 if result.classes else 0.0
    assert abs(inference["baselines"]["random_labels"]["cv_score"] - chance) < 0.15
    # A random direction of six knows something.
    assert chance < inference["baselines"]["random_direction"]["cv_score"] < result.best.cv_score
    for name in ("random_labels", "random_direction"):
        assert inference["baselines"][name]["test_interval"] is None
    assert inference["baselines"]["layer_0"]["cv_score"] == pytest.approx(result.cv_score[:, 0].max())


def test_learning_curve_is_fits_on_parts_of_the_rows(case: Case, found):
    result, inference = found
    curve = inference["learning_curve"]
    assert [point["share"] for point in curve] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert [point["n_rows"] for point in curve] == sorted(point["n_rows"] for point in curve)
    best = result.best
    assert best is not None
    assert curve[-1]["n_rows"] == N
    assert curve[-1]["cv_score"] == pytest.approx(best.cv_score)
    assert curve[-1]["test_score"] == pytest.approx(best.test_score)
    assert curve[0]["test_score"] < curve[-1]["test_score"]


@pytest.mark.slow
def test_rows_that_train_and_test_share_are_scored_apart(case: Case):
    result, _ = case.run()
    both = ArrayCellSource(np.concatenate([case.features[:20], case.features[N:]]))
    labels, shared = np.concatenate([case.labels[:20], case.labels[N:]]), np.arange(20 + N_TEST) < 20
    overlap = compare_overlap(result, both, labels, shared, dropped=True).to_json()
    assert (overlap["n_shared"], overlap["rows"]) == (20, list(range(20)))
    best, name = result.best, "roc_auc" if result.classes else "spearman"
    assert best is not None
    assert overlap["scores_of_others"][name] == pytest.approx(best.test_score)
    predictions = result.train_predictions[best.position_index, best.layer_index, :20, 0]
    assert overlap["scores_of_shared"][name] == pytest.approx(metric(labels[:20], predictions))


def test_without_folds_only_what_needs_none(case: Case):
    options = SweepOptions()
    result = sweep(case.train, case.labels[:N], case.test, case.labels[N:])
    inference = infer(result, case.train, case.test, options, case.about).to_json()
    assert set(inference["baselines"]) == {"prompt_length", "tfidf"}
    assert inference["nested_cv"]["reason"] == "there are no folds (k_fold)"
    assert inference["scores"] is None
    assert inference["learning_curve"] == []
    assert inference["baselines"]["tfidf"]["cv_score"] is None
    assert inference["baselines"]["tfidf"]["test_score"] is not None


@pytest.mark.slow
def test_groups_weights_and_other_probes(case: Case):
    groups = np.arange(N) // 2
    for probe in ("auto", "mass_mean"):
        result, inference = case.run(
            groups=groups, prompts=case.prompts[:N], sample_weight=np.linspace(0.5, 2, N), probe=probe
        )
        assert all(len(set(result.fold_of_sample[groups == g])) == 1 for g in range(N // 2))
        assert inference["groups"]["n_groups"] == N // 2
        assert inference["groups"]["column"]
        assert "whole groups" in inference["intervals"]["nested_cv_score"]["method"]
        assert inference["learning_curve"][-1]["cv_score"] == pytest.approx(result.best.cv_score)


def awkward(n: int, labels: np.ndarray, **options: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sources = [ArrayCellSource(rng.standard_normal((rows, 2, 2, 5))) for rows in (n, 20)]
    test_labels = labels[rng.permutation(len(labels))[:20]]
    given = SweepOptions(k_fold=True, permutations=5, **options)
    result = sweep(sources[0], labels, sources[1], test_labels, **vars(given))
    texts = [f"word{k % 7}" for k in range(n)], [f"word{k % 7}" for k in range(20)]
    return infer(
        result, *sources, given, About(*texts, None, {"prompt_length": (np.arange(n), np.arange(20))})
    ).to_json()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "options", "reason"),
    [
        (np.full(40, 0.5), {}, "no cell has a CV score without fold 0"),
        (np.linspace(0, 1, 40), {"n_folds": 2}, "lacks a third fold"),
        (np.r_[np.zeros(37), np.ones(3)], {}, "no cell has a CV score without fold 0"),
        (np.arange(42) % 3 * 1.0, {}, None),
        (np.linspace(0, 1, 40), {"sample_weight": np.r_[np.zeros(20), np.ones(20)]}, None),
        (np.linspace(0, 1, 40), {"alphas": [0.0, 1.0]}, None),
    ],
    ids=["constant", "two folds", "rare class", "three classes", "weights of zero", "alpha 0"],
)
def test_awkward_labels_and_options_are_json_with_reasons(labels, options, reason):
    inference = awkward(len(labels), labels, **options)
    json.dumps(inference, allow_nan=False)
    if reason is None:
        assert inference["nested_cv"]["score"] is not None
        assert len(inference["nested_cv"]["predictions"]) == len(labels)
        assert 0 < inference["permutation"]["p_best"] <= 1
    else:
        assert reason in inference["nested_cv"]["reason"]
    for baseline in inference["baselines"].values():
        assert baseline["note"]


@pytest.mark.slow
def test_a_test_row_that_is_not_finite_leaves_no_interval():
    case = Case(classes=False)
    features = case.features[N:].copy()
    features[0] = np.inf
    options, test = SweepOptions(k_fold=True), ArrayCellSource(features)
    result = sweep(case.train, case.labels[:N], test, case.labels[N:], k_fold=True)
    inference = infer(result, case.train, test, options, case.about).to_json()
    assert inference["intervals"]["test_score"] is None
    assert "test" not in inference["scores"]
    overlap = compare_overlap(result, test, case.labels[N:], np.arange(N_TEST) < 5, dropped=True).to_json()
    assert overlap["n_unscored"] == 1


@pytest.mark.slow
def test_dropped_rows_of_another_class_are_not_scored():
    case = Case(classes=True)
    result, _ = case.run()
    labels = case.labels[N:].copy()
    labels[:2] = 7.0
    overlap = compare_overlap(result, case.test, labels, np.arange(N_TEST) < 5, dropped=True).to_json()
    assert overlap["n_unscored"] == 2


def test_a_class_without_weight_is_refused():
    case = Case(classes=True)
    weights = np.where(case.labels[:N] == 1, 0.0, 1.0)
    with pytest.raises(LabelError, match="sample_weight is 0 for all rows of class 1"):
        sweep(case.train, case.labels[:N], sample_weight=weights)


def drawn(kind: str, *, wide: bool) -> tuple[ArrayCellSource, np.ndarray, ArrayCellSource, np.ndarray]:
    """Rows and labels; classes have names that are no indices."""
    n_classes = {"numbers": 0, "two": 2, "three": 3, "ten": 10}[kind]
    rng = np.random.default_rng(1)
    n, n_test = 20 * max(n_classes, 4), 8 * max(n_classes, 4)
    n_features = n + 40 if wide else 12
    features = rng.standard_normal((n + n_test, 2, 2, n_features))
    if n_classes == 0:
        labels = features[:, 1, 0, :12] @ np.arange(12.0) + 20 * rng.standard_normal(n + n_test)
    else:
        labels = np.arange(n + n_test) % n_classes
        features[:, 1, 0] += 0.7 * rng.standard_normal((n_classes, n_features))[labels]
        labels = 3.0 * labels - 4
    sources = [ArrayCellSource(part) for part in (features[:n], features[n:])]
    return sources[0], labels[:n], sources[1], labels[n:]


@pytest.mark.slow
@pytest.mark.parametrize("saturated", [False, True], ids=["usual", "saturated"])
@pytest.mark.parametrize("kind", ["numbers", "two", "three", "ten"])
@pytest.mark.parametrize("grouped", [False, True], ids=["rows", "groups"])
def test_scores_and_the_estimates_of_their_intervals_are_the_same(kind: str, saturated: bool, grouped: bool):
    train, labels, test, test_labels = drawn(kind, wide=saturated)
    # Where features outnumber rows, classes have next to no scatter within, and decision values are large.
    lda = saturated and kind != "numbers"
    options = SweepOptions(k_fold=True, probe="lda" if lda else "auto", alpha=0.01 if lda else 1.0)
    result = sweep(train, labels, test, test_labels, **vars(options))
    groups = np.arange(len(test_labels)) // 2 if grouped else None
    prompts = [[f"{WORDS[int(y) % 5]} {k}" for k, y in enumerate(values)] for values in (labels, test_labels)]
    lengths = tuple(np.random.default_rng(2).integers(0, 9, len(values)) + values for values in (labels, test_labels))
    about = About(*prompts, groups, {"prompt_length": lengths})
    inference = infer(result, train, test, options, about).to_json()
    best, name = result.best, result.metric
    assert best is not None
    intervals = inference["intervals"]
    assert intervals["test_score"]["estimate"] == pytest.approx(best.test_score, abs=1e-12)
    assert intervals["nested_cv_score"]["estimate"] == pytest.approx(inference["nested_cv"]["score"], abs=1e-12)
    assert inference["scores"]["test"][name] == pytest.approx(best.test_score, abs=1e-12)
    for lead in intervals["best_minus_cell"]:
        other = result.positions.index(lead["position"]), result.layers.index(lead["layer"])
        assert lead["test_score"]["estimate"] == pytest.approx(best.test_score - result.test_score[other], abs=1e-12)
    for baseline in inference["baselines"].values():
        if baseline["test_interval"] is not None:
            score = baseline["test_score"]
            assert baseline["test_interval"]["estimate"] == pytest.approx(score, abs=1e-12)
            assert baseline["difference"]["estimate"] == pytest.approx(best.test_score - score, abs=1e-12)
    overlap = compare_overlap(result, test, test_labels, np.arange(len(test_labels)) < 1, dropped=False).to_json()
    assert overlap["n_shared"] == 1
    if kind == "two":
        assert inference["platt"]["test_scores"]["roc_auc"] == pytest.approx(best.test_score, abs=1e-12)
    if saturated and result.classes is not None:
        at = best.position_index, best.layer_index
        assert len(np.unique(result.test_predictions[at])) < result.test_predictions[at].size


@pytest.mark.parametrize("exponent", [-600, -1000, 600])
def test_a_calibration_is_the_same_line_whatever_the_size_of_predictions(exponent: int):
    """A huge penalty leaves predictions whose squares are 0."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((40, 1, 1, 4))
    labels = features[:, 0, 0, 0] + rng.standard_normal(40)
    source, scale = ArrayCellSource(features), float(np.ldexp(1.0, exponent))
    options = SweepOptions(k_fold=True, nested_cv=False)
    result = sweep(source, labels, **vars(options))
    scaled = replace(result, cv_decision=result.cv_decision * scale)
    found, expected = (_calibration(one, one.best) for one in (scaled, result))
    assert found.slope * scale == expected.slope > 0
    assert found.intercept == expected.intercept


def test_a_calibration_that_no_number_can_express_is_null_with_a_reason():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((40, 1, 1, 4))
    labels = 1e10 * features[:, 0, 0, 0]
    source = ArrayCellSource(features)
    result = sweep(source, labels, k_fold=True, nested_cv=False)
    tiny = replace(result, cv_decision=result.cv_decision * 1e-310)
    reason = "predictions are so small that no number takes them to the labels"
    assert _calibration(tiny, tiny.best) == Line(slope=None, intercept=None, reason=reason)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [False, True], ids=["numbers", "classes"])
def test_a_calibration_never_turns_a_ranking_round(classes: bool):
    """Held-out predictions of labels without a pattern fall as often as not; a slope below 0 would swap them."""
    rng = np.random.default_rng(3)
    falling = 0
    for _ in range(10):
        features, labels = rng.standard_normal((40, 1, 1, 8)), rng.standard_normal(40)
        labels = (labels > np.median(labels)).astype(float) if classes else labels
        source = ArrayCellSource(features)
        options = SweepOptions(k_fold=True, nested_cv=False)
        result = sweep(source, labels, source, labels, **vars(options))
        found = infer(result, source, source, options, About()).to_json()["platt" if classes else "calibration"]
        held_out = result.cv_decision[0, 0, :, 0]
        if found["slope"] is None:
            falling += 1
            assert found["reason"] == "labels do not rise with the held-out predictions"
            assert np.corrcoef(held_out, labels)[0, 1] < 0.05
        else:
            assert found["slope"] > 0
    assert 0 < falling < 10


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [0, 2, 3])
def test_what_the_sweep_calls_undefined_has_no_score_anywhere(n_classes: int):
    """Test rows of the best cell are all the same: rounding could be ranked, and ties have an AUC of 0.5."""
    rng = np.random.default_rng(0)
    features, test_features = rng.standard_normal((90, 2, 1, 67)), rng.standard_normal((33, 2, 1, 67))
    test_features[:, 1] = 100 * test_features[0, 1]
    numbers = features[:, 1, 0, :8] @ np.arange(8.0)
    labels = np.digitize(numbers, np.quantile(numbers, [0.3, 0.7][: n_classes - 1])) * 1.0 if n_classes else numbers
    test_labels = np.arange(33.0) % n_classes if n_classes else rng.standard_normal(33)
    train, test = ArrayCellSource(features), ArrayCellSource(test_features)
    texts = ["a word"] * 45 + ["another word"] * 45, [f"foreign {k}" for k in range(33)]
    options = SweepOptions(k_fold=True, nested_cv=False)
    result = sweep(train, labels, test, test_labels, **vars(options))
    best, name = result.best, result.metric
    assert best is not None
    assert best.cell.layer == 1
    assert best.test_score is None
    task = Task(result.task_type, None if result.classes is None else np.array(result.classes))
    saved = SavedProbes(result.layers, result.positions, task, result.coef, result.intercept, best.cell, result.probe)
    assert np.isnan(saved.score(test, test_labels, best.cell))
    inference = infer(result, train, test, options, About(*texts)).to_json()
    reason = "every test row is identical here, so the test score is undefined"
    scores = inference["scores"]["test"]
    assert scores["undefined"] == dict.fromkeys(inference["scores"]["cv"].keys() - {"undefined"}, reason)
    assert {scores[each] for each in scores["undefined"]} == {None}
    assert inference["scores"]["cv"][name] is not None
    # No word of the test prompts also occurs in the training.
    assert inference["baselines"]["tfidf"]["cv_score"] is not None
    assert inference["baselines"]["tfidf"]["test_score"] is None
    assert inference["baselines"]["tfidf"]["test_interval"] is None
    overlap = compare_overlap(result, test, test_labels, np.arange(33) < 15, dropped=False).to_json()
    for rows in ("scores_of_shared", "scores_of_others"):
        assert overlap[rows][name] is None
        assert overlap[rows]["undefined"][name] == "the test predictions do not differ by more than rounding error"
    json.dumps([inference, overlap], allow_nan=False)
