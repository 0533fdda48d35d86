"""Labels that are words, next to scikit-learn's LogisticRegression on the same words."""

import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from gpu_probes import (
    About,
    ArrayCellSource,
    LabelError,
    LogisticProbe,
    LogisticProbeCV,
    SavedProbes,
    SweepOptions,
    SweepResult,
    check_sweep,
    infer,
    sweep,
)

N, D = 90, 6
RNG = np.random.default_rng(0)
TRAIN, TEST = RNG.standard_normal((2, N, 1, 1, D))
CUTS = [-0.5, 0.5]
NAMES = np.array(["neutral", "positive", "negative"])


def words(array: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(N)
    return NAMES[np.digitize(array[:, 0, 0, 0] + noise / 2, CUTS)]


WORDS, TEST_WORDS = words(TRAIN, 1), words(TEST, 2)
TWO, TEST_TWO = (np.where(each == "negative", "negative", "positive") for each in (WORDS, TEST_WORDS))
OPTIONS = {"alpha": 1.0, "k_fold": True, "device": "cpu", "fit_intercept": True}


def fit(labels, test_labels=None, **options) -> SweepResult:
    tested = () if test_labels is None else (ArrayCellSource(TEST), test_labels)
    return sweep(ArrayCellSource(TRAIN), labels, *tested, **(OPTIONS | options))


def reference(labels) -> LogisticRegression:
    return LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(TRAIN[:, 0, 0], np.asarray(labels))


@pytest.mark.parametrize(("labels", "tested"), [(WORDS, TEST_WORDS), (TWO, TEST_TWO)], ids=["three", "two"])
def test_words_are_the_classes_of_scikit_learn(labels, tested):
    result, theirs = fit(labels, tested), reference(labels)
    assert list(result.class_names or ()) == theirs.classes_.tolist()
    assert result.task_type == "classification"
    expected = theirs.predict_proba(TEST[:, 0, 0])
    found = result.test_predictions[0, 0]
    np.testing.assert_allclose(found, expected if found.shape[1] > 1 else expected[:, 1:], atol=1e-6)
    scored = expected if found.shape[1] > 1 else expected[:, 1]
    auc = roc_auc_score(tested, scored, multi_class="ovr", average="macro", labels=theirs.classes_)
    assert result.test_score[0, 0] == pytest.approx(auc, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "tested"), [(WORDS, TEST_WORDS), (TWO, TEST_TWO)], ids=["three", "two"])
def test_scores_by_class_and_the_confusion_matrix_are_of_held_out_rows(labels, tested):
    given = SweepOptions(**OPTIONS, nested_cv=False)
    sources = ArrayCellSource(TRAIN), ArrayCellSource(TEST)
    result = sweep(sources[0], labels, sources[1], tested, **vars(given))
    found = infer(result, *sources, given, About())
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
    folds = StratifiedKFold(5, shuffle=True, random_state=42)
    chosen = cross_val_predict(model, TRAIN[:, 0, 0], labels, cv=folds)
    names = list(result.class_names or ())
    assert found.scores is not None
    for split, actual, predicted in (
        ("cv", labels, chosen),
        ("test", tested, reference(labels).predict(TEST[:, 0, 0])),
    ):
        held = found.scores[split]
        assert np.array_equal(held.confusion, confusion_matrix(actual, predicted, labels=names))
        report = classification_report(actual, predicted, labels=names, output_dict=True, zero_division=np.nan)
        for one in held.by_class:
            assert one.support == report[one.name]["support"]
            assert one.f1 == pytest.approx(report[one.name]["f1-score"])
    if len(names) == 2:
        assert found.temperature is None
        return
    assert found.temperature is not None
    assert found.temperature.temperature is not None
    assert found.temperature.test_scores is not None
    scaled = special.softmax(result.test_decision[0, 0] / found.temperature.temperature, axis=1)
    places = [names.index(word) for word in tested]
    log_loss = -np.log(scaled[np.arange(N), places]).mean()
    assert found.temperature.test_scores.log_loss == pytest.approx(log_loss)


@pytest.mark.parametrize(
    "labels",
    [
        TWO.tolist(),
        TWO.astype(object),
        pd.Series(TWO, index=np.arange(N)[::-1]),
        pd.Series(TWO, dtype="string"),
        pd.array(TWO, dtype="string"),
        pd.Categorical(TWO),
        pd.Series(TWO, dtype="category"),
        pd.Index(TWO),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_a_column_of_words_reads_the_same_whatever_holds_it(labels):
    found, expected = fit(labels, nested_cv=False), fit(TWO, nested_cv=False)
    assert found.class_names == expected.class_names == ("negative", "positive")
    np.testing.assert_array_equal(found.coef, expected.coef)


@pytest.mark.parametrize(
    "labels",
    [TWO == "positive", (TWO == "positive").tolist(), pd.array(TWO == "positive", dtype="boolean")],
    ids=["bool", "list", "boolean"],
)
def test_booleans_are_false_and_true(labels):
    found = fit(labels, (TEST_TWO == "positive").astype(int), nested_cv=False)
    assert (found.class_names, found.positive_class) == (("false", "true"), "true")
    np.testing.assert_array_equal(found.coef, fit(TWO, nested_cv=False).coef)
    assert found.classes == (0.0, 1.0)


def test_nullable_numbers_are_numbers():
    found = fit(pd.array((TWO == "positive").astype(int), dtype="Int64"), nested_cv=False)
    assert (found.class_names, found.classes, found.positive_class) == (None, (0.0, 1.0), "1")


def test_an_ordered_categorical_has_its_order_and_any_other_is_sorted():
    own = ["positive", "unused", "neutral", "negative"]
    ordered = fit(pd.Categorical(WORDS, categories=own, ordered=True), TEST_WORDS, nested_cv=False)
    assert ordered.class_names == ("positive", "neutral", "negative")
    plain = fit(pd.Categorical(WORDS, categories=own), TEST_WORDS, nested_cv=False)
    assert plain.class_names == ("negative", "neutral", "positive")
    np.testing.assert_allclose(ordered.test_predictions[..., ::-1], plain.test_predictions, atol=1e-9)


@pytest.mark.parametrize(
    "labels", [TWO, TWO == "negative", (TWO == "negative") * 1.0], ids=["words", "bool", "numbers"]
)
def test_the_positive_class_is_the_one_that_is_scored(labels):
    names = [str(name).lower() if labels.dtype != float else f"{name:g}" for name in np.unique(labels)]
    for positive in names:
        found = fit(labels, labels, positive_class=positive, nested_cv=False)
        assert found.positive_class == positive
        right = (
            np.array([str(label).lower() if labels.dtype != float else f"{label:g}" for label in labels]) == positive
        )
        expected = reference(right).predict_proba(TRAIN[:, 0, 0])[:, 1]
        np.testing.assert_allclose(found.train_predictions[0, 0, :, 0], expected, atol=1e-6)


def test_classes_of_test_rows_are_matched_by_name_not_by_place():
    """Sorted among the test rows alone, the two names have other places than in training."""
    kept = TEST_WORDS != "negative"
    source = ArrayCellSource(TEST[kept])
    result = sweep(ArrayCellSource(TRAIN), WORDS, source, TEST_WORDS[kept], **OPTIONS, nested_cv=False)
    assert result.class_names == ("negative", "neutral", "positive")
    assert [result.class_names[int(place)] for place in result.test_labels] == TEST_WORDS[kept].tolist()


@pytest.mark.parametrize(
    ("labels", "tested", "options", "argument", "message"),
    [
        (WORDS, np.where(TEST_WORDS == "neutral", "mixed", TEST_WORDS), {}, "test_labels",
         r"never saw \(first: 'mixed' in row \d+; classes: 'negative', 'neutral', 'positive'\); drop those rows"),
        (WORDS, np.arange(N) % 3, {}, "test_labels", r"never saw \(first: '0' in row 0; classes: 'negative'"),
        (np.arange(N) % 3, TEST_WORDS, {}, "test_labels", "text values"),
        (np.arange(N).astype(str), None, {}, "train_labels",
         r"train_labels has 90 numbers stored as text of 90 \(first: '0' in row 0\); convert them \(astype\(float\)\)"),
        ([*WORDS[:-1], None], None, {}, "train_labels", r"has 1 null values of 90 \(first: .* in row 89\); drop"),
        ([*WORDS[:-1], np.nan], None, {}, "train_labels", r"has 1 null values of 90 \(first: nan in row 89\)"),
        (pd.array([*WORDS[:-1], None], dtype="string"), None, {}, "train_labels", "has 1 null values of 90"),
        ([*WORDS[:-1], 3], None, {}, "train_labels", "has 1 values that are no text of 90 .*use only words"),
        (WORDS, None, {"task_type": "regression"}, "task_type", "are words .* use task_type='classification'"),
        (WORDS, None, {"positive_class": "positive"}, "positive_class", "is for two classes, and train_labels has 3"),
        (TWO, None, {"positive_class": "good"}, "positive_class", "no.* class of .*one of 'negative', 'positive'"),
        (TRAIN[:, 0, 0, 0], None, {"positive_class": "1"}, "positive_class", "train_labels are numbers; leave it out"),
        (TWO, None, {"positive_class": "positive", "task_type": "regression"}, "positive_class", "leave out one of"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used_are_one_line(labels, tested, options, argument, message):
    with pytest.raises(LabelError, match=message) as error:
        fit(labels, tested, **options)
    assert error.value.argument == argument
    assert "\n" not in str(error.value)


def test_one_class_has_no_score_and_is_refused_before_a_sweep():
    result = fit(np.full(N, "same"), np.full(N, "other"), nested_cv=False)
    assert np.isnan(result.cv_score).all()
    with pytest.raises(LabelError, match="choose another label"):
        check_sweep(ArrayCellSource(TRAIN), {"labels": np.full(N, "same")}, **OPTIONS)


@pytest.mark.slow
def test_saved_probes_know_the_names(tmp_path):
    result = fit(WORDS, TEST_WORDS)
    result.save(tmp_path)
    saved = SavedProbes.load(tmp_path)
    assert result.best is not None
    cell = result.best.cell
    assert saved.score(ArrayCellSource(TEST), TEST_WORDS, cell) == pytest.approx(result.test_score[0, 0])
    with pytest.raises(LabelError, match="never saw"):
        saved.score(ArrayCellSource(TEST), np.full(N, "mixed"), cell)


@pytest.mark.parametrize("labels", [TWO, WORDS, pd.array(TWO, "string"), pd.Categorical(WORDS), TWO == "positive"])
def test_estimators_have_scikit_learns_classes(labels):
    theirs, rows = reference(labels), TRAIN[:, 0, 0]
    for probe in (LogisticProbe(1.0, fit_intercept=True), LogisticProbeCV([1.0], fit_intercept=True)):
        probe.fit(rows, labels)
        assert probe.classes_.tolist() == theirs.classes_.tolist()
        assert probe.predict(TEST[:, 0, 0]).tolist() == theirs.predict(TEST[:, 0, 0]).tolist()


def test_a_summary_names_classes_and_averaging():
    text = repr(fit(WORDS, nested_cv=False))
    assert "roc_auc (one-vs-rest, macro)" in text
    assert "classes: negative, neutral, positive" in text
