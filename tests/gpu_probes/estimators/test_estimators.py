"""The estimators against scikit-learn's own, and as scikit-learn's tools use them."""

import json
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, LeaveOneOut, ShuffleSplit, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from gpu_probes import (
    ArrayCellSource,
    DeviceError,
    FoldError,
    LabelError,
    LogisticProbe,
    LogisticProbeCV,
    PenaltyError,
    ProbeError,
    ProbeWarning,
    RidgeProbe,
    RidgeProbeCV,
    sweep,
)
from gpu_probes.solvers import newton

N, D = 60, 9
RNG = np.random.default_rng(3)
LONG = RNG.standard_normal((N, D)) * np.logspace(0, 2, D) + RNG.standard_normal(D) * 5
LONG[:, 4] = 1.5
WIDE = RNG.standard_normal((N, 80)) + RNG.standard_normal(80)
NEARLY_CONSTANT = np.ones((N, 3))
NEARLY_CONSTANT[::2, 0] = np.nextafter(1.0, 2.0)
NUMBERS = LONG[:, 0] + 0.03 * LONG[:, -1] + 3 + RNG.standard_normal(N)
TWO = np.where(np.median(NUMBERS) < NUMBERS, "yes", "no")
THREE = np.array(["low", "middle", "high"])[np.digitize(NUMBERS, np.quantile(NUMBERS, [0.3, 0.6]))]
WEIGHTS = RNG.integers(0, 3, N).astype(float)
GRID = [0.1, 10.0, 1000.0]
ALL = [RidgeProbe, RidgeProbeCV, LogisticProbe, LogisticProbeCV]

options = pytest.mark.parametrize(
    ("fit_intercept", "standardize", "weights"),
    [(False, False, None), (True, False, None), (False, True, None), (True, True, WEIGHTS), (False, False, WEIGHTS)],
    ids=["plain", "intercept", "standardize", "all", "weights"],
)
shapes = pytest.mark.parametrize("X", [LONG, WIDE], ids=["N>D", "N<D"])


def labels_of(kind: type) -> np.ndarray:
    return NUMBERS if kind in (RidgeProbe, RidgeProbeCV) else TWO


def pipeline(model: Ridge | LogisticRegression, *, standardize: bool, X, y, weights):
    """The model, behind a scaler that is fitted with the same weights."""
    scaler = StandardScaler(with_mean=standardize, with_std=standardize)
    fitted = make_pipeline(scaler, model)
    return fitted.fit(X, y, standardscaler__sample_weight=weights, **{f"{fitted.steps[1][0]}__sample_weight": weights})


def spearman(actual: np.ndarray, predicted: np.ndarray) -> float:
    return float(spearmanr(actual, predicted).statistic)


CHECKS = """
import json, warnings
from sklearn.utils.estimator_checks import check_estimator
from gpu_probes import LogisticProbe, LogisticProbeCV, RidgeProbe, RidgeProbeCV

warnings.simplefilter("ignore")
# Without an intercept no weights of the classes make a probe say the same of nearly all samples, as one check wants.
classifiers = (LogisticProbe, LogisticProbeCV)
outcomes = [
    (kind.__name__, outcome["check_name"], outcome["status"], repr(outcome["exception"]))
    for kind in (RidgeProbe, RidgeProbeCV, LogisticProbe, LogisticProbeCV)
    for probe in [kind(device="cpu", fit_intercept=kind in classifiers)]
    for outcome in check_estimator(probe, on_fail=None, on_skip=None)
]
print(json.dumps(outcomes))
"""


@pytest.mark.slow
def test_scikit_learns_checks_all_pass_and_none_is_skipped():
    # On its own: one check needs a variable that scipy reads when it is first imported, and another passes values of
    # wrong types to the constructors, which the type checks of these tests would not let through.
    environment = os.environ | {"SCIPY_ARRAY_API": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([sys.executable, "-c", CHECKS], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    outcomes = json.loads(finished.stdout)
    assert [outcome for outcome in outcomes if outcome[2] != "passed"] == []
    for kind in ALL:
        assert sum(outcome[0] == kind.__name__ for outcome in outcomes) > 50


@shapes
@options
def test_ridge_is_scikit_learns(X, fit_intercept: bool, standardize: bool, weights, device: str):
    ours = RidgeProbe(0.7, fit_intercept=fit_intercept, standardize=standardize, device=device)
    ours.fit(X, NUMBERS, sample_weight=weights)
    model = Ridge(alpha=0.7, fit_intercept=fit_intercept, solver="svd")
    theirs = pipeline(model, standardize=standardize, X=X, y=NUMBERS, weights=weights)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-7 * NUMBERS.std())
    scale = theirs[0].scale_ if standardize else 1.0
    np.testing.assert_allclose(ours.coef_ * scale, theirs[1].coef_, atol=1e-7 * np.abs(theirs[1].coef_).max())
    assert ours.coef_.shape == (X.shape[1],)
    assert isinstance(ours.intercept_, float)
    assert ours.score(X, NUMBERS, weights) == pytest.approx(theirs.score(X, NUMBERS, weights), abs=1e-9)


FAR = RNG.standard_normal((N, D))
# Numbers of float64 lie 1.5e-11 apart there.
FAR[:, 2] = 1e5 + 1e-8 * RNG.standard_normal(N)


@pytest.mark.slow
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_a_feature_far_from_zero_loses_no_digits(fit_intercept: bool):
    """Against the same features counted from another place, which changes no digit of them."""
    near, numbers = FAR.copy(), FAR[:, 0] + (FAR[:, 2] - 1e5) * 1e8
    near[:, 2] = (near[:, 2] - 1e5) * 2.0**26
    options = {"standardize": True, "fit_intercept": fit_intercept}
    for ours in (RidgeProbe(1.0, **options), RidgeProbeCV([1.0], n_folds=3, **options)):
        ours.fit(FAR, numbers)
        theirs = make_pipeline(StandardScaler(), Ridge(1.0, fit_intercept=fit_intercept)).fit(near, numbers)
        np.testing.assert_allclose(ours.predict(FAR), theirs.predict(near), atol=1e-12 * numbers.std())
    both = RidgeProbe(1.0, **options).fit(FAR, np.stack([numbers, FAR[:, 1]], 1))
    np.testing.assert_allclose(both.predict(FAR)[:, 0], theirs.predict(near), atol=1e-12 * numbers.std())
    classes = np.digitize(numbers, np.quantile(numbers, [0.3, 0.6]))
    for y in (classes, classes > 0):
        ours = LogisticProbe(1.0, **options).fit(FAR, y)
        model = LogisticRegression(fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        expected = make_pipeline(StandardScaler(), model).fit(near, y).predict_proba(near)
        np.testing.assert_allclose(ours.predict_proba(FAR), expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_features_whose_squares_overflow_are_called_that(kind: type):
    with pytest.raises(
        ProbeError, match=r"the largest feature is .*e\+162, and squares .* overflow; divide X by \de\+162"
    ):
        kind().fit(LONG * 1e160, labels_of(kind))


@pytest.mark.parametrize("kind", ALL)
def test_whole_numbers_that_no_float64_holds_are_no_labels(kind: type):
    """scikit-learn makes float64 of whole numbers beside fractions, and of objects."""
    labels = [2**53 + row % 3 for row in range(N)]
    for y in ([*labels[1:], 5.0], np.array(labels), np.array(labels, dtype=object)):
        if isinstance(y, list) or kind in (RidgeProbe, RidgeProbeCV):
            with pytest.raises(LabelError, match=r"y.* has 9007199254740993 in row \d, which float64 cannot represent"):
                kind().fit(LONG, y)
    if kind in (LogisticProbe, LogisticProbeCV):
        assert kind().fit(LONG, np.array(labels)).classes_.tolist() == [2**53, 2**53 + 1, 2**53 + 2]


@shapes
def test_outputs_of_ridge_are_those_of_each_column(X):
    columns = np.stack([NUMBERS, NUMBERS[::-1], X[:, 1]], 1)
    ours = RidgeProbe(2.0, fit_intercept=True).fit(X, columns)
    theirs = Ridge(alpha=2.0, solver="svd").fit(X, columns)
    assert ours.coef_.shape == (3, X.shape[1])
    assert ours.intercept_.shape == (3,)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-7 * columns.std())
    for k in range(3):
        alone = RidgeProbe(2.0, fit_intercept=True).fit(X, columns[:, k])
        np.testing.assert_allclose(ours.coef_[k], alone.coef_, rtol=1e-9, atol=1e-12)
    with pytest.raises(AttributeError, match="direction_ is for one output and there are 3; take a row of coef_"):
        _ = ours.direction_
    assert RidgeProbe().fit(X, NUMBERS[:, None]).predict(X).shape == (N, 1)


@pytest.mark.slow
@shapes
@options
@pytest.mark.parametrize("y", [TWO, THREE], ids=["two", "three"])
def test_logistic_is_scikit_learns(X, y, fit_intercept: bool, standardize: bool, weights, device: str):
    ours = LogisticProbe(0.7, fit_intercept=fit_intercept, standardize=standardize, device=device)
    ours.fit(X, y, sample_weight=weights)
    model = LogisticRegression(
        C=1 / 0.7, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-10, max_iter=500
    )
    theirs = pipeline(model, standardize=standardize, X=X, y=y, weights=weights)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.coef_.shape == theirs[1].coef_.shape
    assert ours.intercept_.shape == theirs[1].intercept_.shape
    assert ours.decision_function(X).shape == theirs.decision_function(X).shape
    scale = theirs[0].scale_ if standardize else 1.0
    np.testing.assert_allclose(ours.coef_ * scale, theirs[1].coef_, atol=1e-5 * np.abs(theirs[1].coef_).max())


@shapes
@pytest.mark.parametrize("standardize", [False, True])
def test_ridge_takes_the_alpha_of_a_search_over_the_same_folds(X, standardize: bool):
    ours = RidgeProbeCV(GRID, standardize=standardize).fit(X, NUMBERS)
    scaler = StandardScaler(with_mean=standardize, with_std=standardize)
    search = GridSearchCV(
        make_pipeline(scaler, Ridge(fit_intercept=False, solver="svd")),
        {"ridge__alpha": GRID},
        scoring=make_scorer(spearman),
        cv=KFold(5, shuffle=True, random_state=42),
    ).fit(X, NUMBERS)
    assert ours.alpha_ == search.best_params_["ridge__alpha"]
    assert ours.cv_score_ == pytest.approx(search.best_score_, abs=1e-12)
    np.testing.assert_allclose(ours.alpha_cv_scores_, search.cv_results_["mean_test_score"], atol=1e-12)
    np.testing.assert_array_equal(ours.alphas_, GRID)
    np.testing.assert_allclose(ours.predict(X), search.predict(X), atol=1e-7 * NUMBERS.std())


@pytest.mark.slow
@shapes
@pytest.mark.parametrize(("y", "scoring"), [(TWO, "roc_auc"), (THREE, "roc_auc_ovr")], ids=["two", "three"])
def test_logistic_takes_the_alpha_of_a_search_over_the_same_folds(X, y, scoring: str):
    ours = LogisticProbeCV(GRID, n_folds=3, seed=5).fit(X, y)
    search = GridSearchCV(
        LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=500),
        {"C": [1 / alpha for alpha in GRID]},
        scoring=scoring,
        cv=StratifiedKFold(3, shuffle=True, random_state=5),
    ).fit(X, y)
    assert ours.alpha_ == pytest.approx(1 / search.best_params_["C"])
    np.testing.assert_allclose(ours.alpha_cv_scores_, search.cv_results_["mean_test_score"], atol=1e-12)
    np.testing.assert_allclose(ours.predict_proba(X), search.predict_proba(X), atol=1e-6)
    assert ours.n_folds_ == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RidgeProbeCV, LogisticProbeCV])
def test_choosing_is_a_sweep_of_one_cell(kind: type):
    y = NUMBERS if kind is RidgeProbeCV else (TWO == "yes") * 1.0
    groups = np.arange(N) // 4
    ours = kind(fit_intercept=True, standardize=True).fit(LONG, y, WEIGHTS, groups)
    changes = {"fit_intercept": True, "standardize": True, "sample_weight": WEIGHTS, "groups": groups}
    swept = sweep(ArrayCellSource(LONG[:, None, None]), y, k_fold=True, alphas="auto", nested_cv=False, **changes)
    assert ours.cv_score_ == swept.cv_score[0, 0]
    assert ours.alpha_ == swept.selected_alpha[0, 0]
    np.testing.assert_array_equal(ours.alphas_, swept.alphas)
    np.testing.assert_array_equal(ours.alpha_cv_scores_, swept.alpha_cv_score[0, 0])
    np.testing.assert_array_equal(np.atleast_2d(ours.coef_), swept.coef[0, 0])


def test_other_splits():
    groups = RNG.integers(0, 6, N)
    by_splitter = RidgeProbeCV(GRID, cv=GroupKFold(3)).fit(LONG, NUMBERS, groups=groups)
    splits = list(GroupKFold(3).split(LONG, groups=groups))
    by_list = RidgeProbeCV(GRID, cv=splits).fit(LONG, NUMBERS)
    np.testing.assert_array_equal(by_splitter.alpha_cv_scores_, by_list.alpha_cv_scores_)
    expected = [
        np.mean([spearman(NUMBERS[b], clone(model).fit(LONG[a], NUMBERS[a]).predict(LONG[b])) for a, b in splits])
        for model in (Ridge(alpha=alpha, fit_intercept=False) for alpha in GRID)
    ]
    np.testing.assert_allclose(by_list.alpha_cv_scores_, expected, atol=1e-12)
    plain = RidgeProbeCV(GRID, cv=KFold(5, shuffle=True, random_state=42)).fit(LONG, NUMBERS)
    assert plain.cv_score_ == RidgeProbeCV(GRID).fit(LONG, NUMBERS).cv_score_


@pytest.mark.parametrize(
    ("cv", "error", "message"),
    [
        (
            ShuffleSplit(3, test_size=0.5, random_state=0),
            FoldError,
            "cv split 1 leaves samples out or holds some out twice",
        ),
        ([(np.arange(1, N), [0])], FoldError, "cv never holds out sample 1; give a cv such as KFold"),
        ([(np.arange(40), np.arange(41, N))] * 2, FoldError, "cv split 0 leaves samples out or holds some out twice"),
        (LeaveOneOut(), ProbeError, "there is no probe for y: a held-out fold has one label value"),
    ],
)
def test_splits_that_cannot_be_used(cv, error: type, message: str):
    with pytest.raises(error, match=message):
        RidgeProbeCV(GRID, cv=cv).fit(LONG, NUMBERS)


def test_fewer_folds_where_a_class_is_small():
    y = np.where(np.arange(N) % 20 == 0, "rare", TWO)
    with pytest.warns(ProbeWarning, match="some of 5 folds would lack a class or .* of y; using 3"):
        assert LogisticProbeCV(GRID).fit(LONG, y).n_folds_ == 3
    y[20] = y[40] = "no"
    with pytest.raises(FoldError, match="cannot be split into two folds that each hold every class"):
        LogisticProbeCV(GRID).fit(LONG, y)


def test_integers_that_do_not_repeat_are_numbers():
    ranks = NUMBERS.argsort().argsort()
    ours = RidgeProbeCV(GRID).fit(LONG, ranks)
    assert ours.cv_score_ == pytest.approx(RidgeProbeCV(GRID).fit(LONG, ranks + 0.5).cv_score_, abs=0.05)
    assert ours.n_folds_ == 5


@pytest.mark.parametrize("kind", ALL)
def test_direction_is_the_unit_coefficient(kind: type):
    ours = kind().fit(LONG, labels_of(kind))
    assert np.linalg.norm(ours.direction_) == pytest.approx(1, abs=1e-15)
    np.testing.assert_allclose(ours.direction_ * np.linalg.norm(ours.coef_), np.ravel(ours.coef_), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_clones_and_pickles(kind: type):
    ours = kind(fit_intercept=True, standardize=True, device="cpu").fit(LONG, labels_of(kind))
    copy = clone(ours)
    assert copy.get_params() == ours.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(LONG)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours)).predict(LONG), ours.predict(LONG))
    np.testing.assert_array_equal(copy.fit(LONG, labels_of(kind)).coef_, ours.coef_)


@pytest.mark.parametrize("kind", ALL)
def test_tags(kind: type):
    tags = get_tags(kind())
    assert tags.target_tags.multi_output == (kind is RidgeProbe)
    assert tags.estimator_type == ("regressor" if kind in (RidgeProbe, RidgeProbeCV) else "classifier")
    assert not tags.input_tags.sparse
    assert not tags.input_tags.allow_nan


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "y"), [(RidgeProbe, NUMBERS), (LogisticProbe, TWO)])
def test_a_step_of_a_pipeline_in_a_search(kind: type, y):
    frame = pd.DataFrame(LONG, columns=[f"feature {k}" for k in range(D)])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), kind(device="cpu")),
        {f"{kind.__name__.lower()}__alpha": GRID, f"{kind.__name__.lower()}__fit_intercept": [False, True]},
        cv=3,
        error_score="raise",
    ).fit(frame, pd.Series(y))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(frame, y) > 0.7
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        search.predict(LONG)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_data_frames(kind: type):
    frame = pd.DataFrame(LONG, columns=[f"feature {k}" for k in range(D)])
    y = labels_of(kind)
    ours = kind().fit(frame, pd.Series(y), sample_weight=pd.Series(WEIGHTS + 1))
    np.testing.assert_array_equal(ours.feature_names_in_, frame.columns)
    assert ours.n_features_in_ == D
    np.testing.assert_array_equal(ours.coef_, kind().fit(LONG, y, WEIGHTS + 1).coef_)
    with pytest.raises(ValueError, match="feature names should match"):
        ours.predict(frame.rename(columns={"feature 1": "other"}))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("kind", [RidgeProbe, LogisticProbe])
def test_narrow_dtypes_give_what_their_values_give_in_float64(kind: type, dtype: type):
    narrow = LONG.astype(dtype)
    ours, wide = kind().fit(narrow, labels_of(kind)), kind().fit(narrow.astype(np.float64), labels_of(kind))
    np.testing.assert_array_equal(ours.coef_, wide.coef_)
    np.testing.assert_allclose(
        ours.predict_proba(narrow) if kind is LogisticProbe else ours.predict(narrow),
        wide.predict_proba(narrow) if kind is LogisticProbe else wide.predict(narrow),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "y", [TWO == "yes", (TWO == "yes") * 2 - 1, THREE.astype(object), np.digitize(NUMBERS, [2, 4])]
)
def test_labels_of_any_type(y):
    ours = LogisticProbe().fit(LONG, y)
    assert ours.classes_.dtype == y.dtype
    assert ours.predict(LONG).dtype == y.dtype
    assert set(ours.predict(LONG)) <= set(y)
    np.testing.assert_allclose(ours.predict_proba(LONG).sum(1), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "X", "y", "error", "message"),
    [
        (RidgeProbe(), np.ones((N, 3)), NUMBERS, ProbeError, "there is no probe for y: every training row is ident"),
        (LogisticProbe(), np.ones((N, 3)), TWO, ProbeError, "there is no probe for y: every training row is identical"),
        (RidgeProbe(), LONG, np.ones(N), ProbeError, "there is no probe for y: all training labels are equal"),
        (RidgeProbe(), LONG, np.stack([NUMBERS, 0 * NUMBERS], 1), ProbeError, "no probe for column 1 of y: all train"),
        (RidgeProbe(0.0), WIDE, NUMBERS, ProbeError, "the solution is not unique at this alpha .* use a larger alpha"),
        (RidgeProbeCV(GRID), NEARLY_CONSTANT, NUMBERS, ProbeError, "the predictions do not differ by more than round"),
        (RidgeProbe(-1.0), LONG, NUMBERS, PenaltyError, "alpha=-1.0 is not a penalty"),
        (RidgeProbeCV([1.0, 1.0]), LONG, NUMBERS, PenaltyError, "holds a value twice"),
        (RidgeProbeCV("best"), LONG, NUMBERS, PenaltyError, "alphas='best' is unknown"),
        (LogisticProbe(0.0), LONG, TWO, PenaltyError, "use an alpha above 0 for classification"),
        (RidgeProbe(device="abacus"), LONG, NUMBERS, DeviceError, "device='abacus' is unknown"),
        (RidgeProbeCV(n_folds=1), LONG, NUMBERS, FoldError, "n_folds=1 is too few"),
        (RidgeProbeCV(n_folds=N + 1), LONG, NUMBERS, FoldError, "n_folds=61 is more than the 60 samples"),
        (LogisticProbe(), LONG, np.full(N, "one"), LabelError, "y has one class, one; a probe tells two or more"),
        (LogisticProbe(), LONG, NUMBERS, ValueError, "Unknown label type: continuous"),
        (RidgeProbe(), np.where(LONG > 100, np.nan, LONG), NUMBERS, ValueError, "Input X contains NaN"),
        (RidgeProbe(), LONG[:5], NUMBERS, ValueError, "inconsistent numbers of samples"),
        (RidgeProbe(), LONG[:1], NUMBERS[:1], ValueError, "a minimum of 2 is required"),
        (RidgeProbeCV(), LONG, np.stack([NUMBERS, NUMBERS], 1), ValueError, "y should be a 1d array"),
    ],
)
def test_what_cannot_be_fitted_says_why(probe, X, y, error: type, message: str):
    with pytest.raises(error, match=message):
        probe.fit(X, y)
    with pytest.raises(NotFittedError):
        probe.predict(X)


@pytest.mark.parametrize("kind", ALL)
def test_weights_that_cannot_be_used(kind: type):
    for weights, message in ((np.zeros(N), "not all zero"), (-np.ones(N), "from -1 to -1"), (np.ones(3), "3 values")):
        with pytest.raises(LabelError, match=message):
            kind().fit(LONG, labels_of(kind), sample_weight=weights)


def test_a_class_without_weight_is_named():
    with pytest.raises(LabelError, match="class no of y has weight 0; a probe tells two or more classes apart"):
        LogisticProbe().fit(LONG, TWO, sample_weight=TWO == "yes")


MISTAKES = """
import json
import numpy as np
from gpu_probes import LogisticProbe, LogisticProbeCV, ProbeError, RidgeProbe, RidgeProbeCV

X, numbers = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40.0)
classes, said = np.where(numbers % 2, "yes", "no"), []
for probe in (
    RidgeProbe(fit_intercept="False"),
    LogisticProbe(standardize=None),
    LogisticProbe(alpha="1"),
    RidgeProbeCV(seed=None),
    LogisticProbeCV(n_folds=2.5),
    LogisticProbe(class_weight="equal"),
    LogisticProbe(class_weight={"maybe": 1}),
    LogisticProbeCV(class_weight={"no": 0}),
):
    try:
        probe.fit(X, numbers if isinstance(probe, RidgeProbe | RidgeProbeCV) else classes)
    except ProbeError as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.mark.slow
def test_parameters_that_are_none():
    # On its own: the type checks of these tests would not let them through.
    finished = subprocess.run([sys.executable, "-c", MISTAKES], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    wanted = [
        "fit_intercept='False' is neither True nor False",
        "standardize=None is neither",
        "alpha='1' is not a penalty",
        "seed=None is not a whole number",
        "n_folds=2.5 is not a whole number",
        "class_weight='equal' is unknown",
        "class_weight names class 'maybe'",
        "class_weight 0 of class 'no' is not a weight",
    ]
    for message, words in zip(json.loads(finished.stdout), wanted, strict=True):
        assert words in message
        assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weights"])
@pytest.mark.parametrize(
    ("y", "class_weight"),
    [(TWO, "balanced"), (THREE, "balanced"), (TWO, {"no": 3.0, "yes": 0.2}), (THREE, {"low": 5.0})],
)
def test_class_weights_are_scikit_learns(y, class_weight, weights):
    X = StandardScaler().fit_transform(LONG)
    ours = LogisticProbe(class_weight=class_weight, fit_intercept=True).fit(X, y, weights)
    theirs = LogisticRegression(class_weight=class_weight, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    np.testing.assert_allclose(ours.coef_, theirs.fit(X, y, weights).coef_, atol=1e-6)
    chosen = LogisticProbeCV(GRID, class_weight=class_weight, fit_intercept=True).fit(X, y, weights)
    one = LogisticProbe(chosen.alpha_, class_weight=class_weight, fit_intercept=True).fit(X, y, weights)
    np.testing.assert_allclose(chosen.coef_, one.coef_, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_tensors_of_bfloat16_give_what_their_values_give(kind: type):
    X, y = torch.tensor(WIDE).bfloat16(), torch.tensor(np.median(NUMBERS) < NUMBERS).int()
    ours = kind().fit(X, y, torch.tensor(WEIGHTS + 1).bfloat16())
    theirs = kind().fit(X.double().numpy(), y.numpy(), WEIGHTS + 1)
    np.testing.assert_array_equal(ours.coef_, theirs.coef_)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X.double().numpy()))


def test_stopping_early_is_a_warning_of_both_kinds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(newton, "MAX_NEWTON_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="the solver stopped before reaching its accuracy") as caught:
        ours = LogisticProbe().fit(LONG, TWO)
    assert isinstance(caught[0].message, ProbeWarning)
    assert np.isfinite(ours.coef_).all()
