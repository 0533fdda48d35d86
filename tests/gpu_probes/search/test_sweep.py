import contextlib
import gc
import warnings
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold

import gpu_probes
from gpu_probes import (
    ArrayCellSource,
    BudgetError,
    CellError,
    FoldError,
    LabelError,
    PenaltyError,
    ProbeError,
    ProbeWarning,
    Status,
    check_sweep,
    sweep,
)
from gpu_probes.solvers import newton

N, LAYERS, POSITIONS, D = 60, 3, 2, 8
GRID = [0.1, 10.0, 1000.0]


def activations(seed: int, n: int = N, d: int = D) -> np.ndarray:
    """Cells in which layer 2, position -1 carries most of the label's direction (feature 0)."""
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((n, LAYERS, POSITIONS, d))
    array[:, 2, 1, 0] *= 5
    return array


def continuous_labels(array: np.ndarray) -> np.ndarray:
    return array[:, 2, 1, 0] + 0.5 * array[:, 1, 0, 1] + np.random.default_rng(9).standard_normal(len(array))


TRAIN, TEST = activations(0), activations(1)
LABELS, TEST_LABELS = continuous_labels(TRAIN), continuous_labels(TEST)
BINARY, TEST_BINARY = (LABELS > 0).astype(float), (TEST_LABELS > 0).astype(float)
TERNARY, TEST_TERNARY = np.digitize(LABELS, [-2, 2]) * 1.0, np.digitize(TEST_LABELS, [-2, 2]) * 1.0


def run(train=TRAIN, labels=LABELS, test=TEST, test_labels=TEST_LABELS, **options):
    test_source = None if test is None else ArrayCellSource(test)
    return sweep(
        ArrayCellSource(train), labels, test_source, test_labels, **({"k_fold": True, "device": "cpu"} | options)
    )


def test_ridge_sweep_equals_a_scikit_learn_loop(device: str):
    result = run(alphas=GRID, device=device)
    for p in range(POSITIONS):
        for i in range(LAYERS):
            X, T = TRAIN[:, i, p], TEST[:, i, p]
            path = []
            for alpha in GRID:
                folds = KFold(5, shuffle=True, random_state=42).split(X)
                scores = []
                for a, b in folds:
                    model = Ridge(alpha=alpha, fit_intercept=False).fit(X[a], LABELS[a])
                    scores.append(spearmanr(LABELS[b], model.predict(X[b])).statistic)
                path.append(np.mean(scores))
            np.testing.assert_allclose(result.alpha_cv_score[p, i], path, atol=1e-12)
            chosen = GRID[int(np.argmax(path))]
            assert result.selected_alpha[p, i] == chosen
            model = Ridge(alpha=chosen, fit_intercept=False).fit(X, LABELS)
            np.testing.assert_allclose(result.coef[p, i, 0], model.coef_, rtol=1e-9)
            assert result.train_score[p, i] == pytest.approx(spearmanr(LABELS, model.predict(X)).statistic)
            assert result.test_score[p, i] == pytest.approx(spearmanr(TEST_LABELS, model.predict(T)).statistic)
            np.testing.assert_allclose(result.test_predictions[p, i, :, 0], model.predict(T), rtol=1e-8, atol=1e-10)
    assert result.best.cell == (2, -1)
    assert (result.best.layer_index, result.best.position_index) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "test_labels"), [(BINARY, TEST_BINARY), (TERNARY, TEST_TERNARY)], ids=["two", "three"]
)
def test_classification_sweep_equals_a_scikit_learn_loop(labels: np.ndarray, test_labels: np.ndarray, device: str):
    result = run(labels=labels, test_labels=test_labels, alpha=0.5, device=device)
    binary = len(np.unique(labels)) == 2
    assert result.metric == "roc_auc"

    def predict(model: LogisticRegression, X: np.ndarray) -> np.ndarray:
        return model.predict_proba(X)[:, 1:] if binary else model.predict_proba(X)

    def auc(y: np.ndarray, predicted: np.ndarray) -> float:
        return roc_auc_score(y, predicted[:, 0]) if binary else roc_auc_score(y, predicted, multi_class="ovr")

    for p in range(POSITIONS):
        for i in range(LAYERS):
            X, T = TRAIN[:, i, p], TEST[:, i, p]
            model = LogisticRegression(C=2.0, fit_intercept=False, solver="newton-cholesky", tol=1e-10)
            scores = []
            for a, b in StratifiedKFold(5, shuffle=True, random_state=42).split(X, labels):
                held_out = predict(model.fit(X[a], labels[a]), X[b])
                scores.append(auc(labels[b], held_out))
                np.testing.assert_allclose(result.cv_predictions[p, i, b], held_out, atol=1e-7)
            assert result.cv_score[p, i] == pytest.approx(np.mean(scores), abs=1e-12)
            model.fit(X, labels)
            np.testing.assert_allclose(result.coef[p, i], model.coef_, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(result.test_predictions[p, i], predict(model, T), atol=1e-7)
            assert result.test_score[p, i] == pytest.approx(auc(test_labels, predict(model, T)), abs=1e-12)


def test_regression_on_binary_labels_still_splits_by_label():
    result = run(labels=BINARY, test_labels=TEST_BINARY, task_type="regression")
    assert result.metric == "spearman"
    for fold, (_, held_out) in enumerate(StratifiedKFold(5, shuffle=True, random_state=42).split(TRAIN, BINARY)):
        np.testing.assert_array_equal(np.flatnonzero(result.fold_of_sample == fold), held_out)


@pytest.mark.slow
@pytest.mark.parametrize("d", [8, 90], ids=["N>D", "N<D"])
@given(seed=st.integers(0, 999), row=st.integers(0, N - 1))
@settings(max_examples=8)
def test_cv_prediction_of_a_row_does_not_depend_on_its_label(d: int, seed: int, row: int):
    train = activations(seed, d=d)[:, :1, :1]
    labels = continuous_labels(TRAIN)
    changed = labels.copy()
    changed[row] += 100
    before = run(train, labels, None, None).cv_predictions[0, 0]
    after = run(train, changed, None, None).cv_predictions[0, 0]
    np.testing.assert_allclose(after[row], before[row], rtol=1e-9, atol=1e-11)
    assert not np.allclose(after, before, rtol=1e-3)


@pytest.mark.slow
@given(order=st.permutations(range(LAYERS)), turned=st.permutations(range(POSITIONS)))
@settings(max_examples=5)
def test_permuted_cells_permute_results(order: list[int], turned: list[int]):
    straight = run(alphas=GRID)
    mixed = run(TRAIN[:, order][:, :, turned], LABELS, TEST[:, order][:, :, turned], TEST_LABELS, alphas=GRID)
    for field in (
        "train_score",
        "test_score",
        "cv_score",
        "alpha_cv_score",
        "coef",
        "selected_alpha",
        "cv_predictions",
    ):
        np.testing.assert_allclose(getattr(mixed, field), getattr(straight, field)[turned][:, order], rtol=1e-12)


@pytest.mark.slow
def test_cells_together_equal_cells_alone():
    together = run(labels=BINARY, test_labels=TEST_BINARY, alphas=GRID)
    alone = run(TRAIN[:, 1:2, :1], BINARY, TEST[:, 1:2, :1], TEST_BINARY, alphas=GRID)
    np.testing.assert_array_equal(together.coef[:1, 1:2], alone.coef)
    np.testing.assert_array_equal(together.alpha_cv_score[:1, 1:2], alone.alpha_cv_score)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_narrow_dtypes_give_what_their_values_give_in_float64(dtype):
    narrow = TRAIN.astype(dtype)
    ours, wide = run(narrow), run(narrow.astype(np.float64))
    np.testing.assert_array_equal(ours.coef, wide.coef)
    np.testing.assert_array_equal(ours.cv_score, wide.cv_score)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LABELS, BINARY, TERNARY], ids=["regression", "binary", "multiclass"])
@pytest.mark.parametrize("alphas", [[1.0], GRID], ids=["one alpha", "grid"])
def test_a_constant_cell_is_null_everywhere_and_never_wins(labels: np.ndarray, alphas: list[float]):
    train, test = TRAIN.copy(), TEST.copy()
    train[:, 0, 1] = test[:, 0, 1] = np.random.default_rng(3).standard_normal(D) * 100
    result = run(train, labels, test, labels, alphas=alphas)
    assert result.status[1, 0] is Status.CONSTANT_CELL
    for field in ("train_score", "test_score", "cv_score", "alpha_cv_score", "coef", "cv_predictions"):
        assert np.isnan(getattr(result, field)[1, 0]).all(), field
    assert result.best.cell != (0, -1)
    clean = run(TRAIN, labels, TEST, labels, alphas=alphas)
    others = np.arange(LAYERS) != 0
    np.testing.assert_array_equal(result.cv_score[:, others], clean.cv_score[:, others])
    assert set(result.status[:, others].ravel()) == {Status.OK}


def test_nothing_wins_when_every_cell_is_constant():
    assert run(np.ones_like(TRAIN), test=None, test_labels=None).best is None


def nearly_constant(array: np.ndarray) -> np.ndarray:
    """Rows that differ, but only in the last bits of a feature."""
    near = array.copy()
    near[:, 0, 0] = 1.0
    near[::2, 0, 0, 0] += 2e-16
    near[::2, 0, 0, 0] = np.nextafter(1.0, 2.0)
    return near


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "status", "undefined"),
    [
        (lambda a, b: a.__setitem__((3, 0, 0, 2), np.nan), Status.NON_FINITE, "train_score test_score cv_score"),
        (lambda a, b: a.__setitem__((3, 0, 0, 2), np.inf), Status.NON_FINITE, "train_score test_score cv_score"),
        (
            lambda a, b: a.__setitem__(slice(None), nearly_constant(a)),
            Status.CONSTANT_PREDICTIONS,
            "train_score cv_score",
        ),
        (lambda a, b: b.__setitem__((slice(None), 0, 0), 2.0), Status.TEST_CONSTANT_CELL, "test_score"),
        (lambda a, b: b.__setitem__((1, 0, 0, 2), np.nan), Status.TEST_NON_FINITE, "test_score"),
        (lambda a, b: b.__setitem__(slice(None), nearly_constant(b)), Status.TEST_CONSTANT_PREDICTIONS, "test_score"),
    ],
    ids=["nan", "inf", "nearly constant", "constant test", "nan in test", "nearly constant test"],
)
def test_a_bad_cell_is_data_and_harms_no_other(spoil, status: Status, undefined: str):
    train, test = TRAIN.copy(), TEST.copy()
    spoil(train, test)
    result, clean = run(train, test=test), run()
    assert result.status[0, 0] is status
    assert result.reason(0, 0) == status.value
    for field in ("train_score", "test_score", "cv_score"):
        score = getattr(result, field)
        if field in undefined.split():
            assert np.isnan(score[0, 0]), field
        elif status.name.startswith("TEST"):
            assert np.isfinite(score[0, 0]), field
        np.testing.assert_array_equal(score.ravel()[1:], getattr(clean, field).ravel()[1:])


def test_constant_labels_leave_every_score_undefined():
    for labels in (np.full(N, 0.5), np.ones(N)):
        result = run(labels=labels, test_labels=labels)
        assert set(result.status.ravel()) == {Status.CONSTANT_LABELS}
        assert np.isnan(result.train_score).all()
        assert result.best is None


def test_a_fold_with_one_label_value_leaves_cv_undefined_and_train_defined():
    labels = np.zeros(N)
    labels[:4] = [0.25, 0.5, 0.125, 0.75]
    result = run(labels=labels, test=None, test_labels=None, n_folds=6, task_type="regression", seed=0)
    assert set(result.status.ravel()) == {Status.CONSTANT_FOLD}
    assert np.isnan(result.cv_score).all()
    assert np.isfinite(result.train_score).all()
    assert result.best is None


def test_test_labels_without_every_class_leave_the_test_score_undefined():
    result = run(labels=BINARY, test_labels=np.ones(N))
    assert set(result.status.ravel()) == {Status.TEST_CONSTANT_LABELS}
    assert np.isnan(result.test_score).all()
    assert result.best.test_score is None


def test_a_singular_alpha_is_passed_over_and_alone_is_null():
    train = TRAIN.copy()
    train[:, 0, 0, 1] = train[:, 0, 0, 0]
    grid = run(train, test=None, test_labels=None, alphas=[0.0, 1.0])
    assert np.isnan(grid.alpha_cv_score[0, 0, 0])
    assert (grid.selected_alpha[0, 0], grid.status[0, 0]) == (1.0, Status.OK)
    alone = run(train, test=None, test_labels=None, alpha=0.0)
    assert alone.status[0, 0] is Status.SINGULAR
    assert np.isnan(alone.train_score[0, 0])
    assert alone.status[0, 1] is Status.OK


def test_the_first_alpha_wins_a_tie():
    train = np.zeros((N, 1, 1, 1))
    train[:, 0, 0, 0] = TRAIN[:, 2, 1, 0]  # one feature: every alpha ranks the same
    result = run(train, test=None, test_labels=None, alphas=[10.0, 0.1, 1.0])
    assert len(set(result.alpha_cv_score.ravel())) == 1
    assert result.selected_alpha[0, 0] == 10.0


def test_the_first_position_then_layer_wins_a_tie():
    same = np.repeat(np.repeat(TRAIN[:, 2:, 1:], LAYERS, axis=1), POSITIONS, axis=2)
    assert run(same, test=None, test_labels=None).best.cell == (0, -2)


def test_without_folds_nothing_is_chosen():
    result = run(k_fold=False)
    assert result.best is None
    assert np.isnan(result.cv_score).all()
    assert result.cv_predictions is None
    np.testing.assert_allclose(result.test_score, run().test_score)


def test_unconverged_fits_are_counted_in_one_warning_and_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(newton, "MAX_NEWTON_STEPS", 1)
    with pytest.warns(ProbeWarning, match="6 of 6 cells: the solver stopped before reaching its accuracy"):
        result = run(labels=BINARY, test_labels=TEST_BINARY)
    assert set(result.status.ravel()) == {Status.NOT_CONVERGED}
    assert np.isfinite(result.cv_score).all()


def test_no_warnings_from_a_clean_sweep():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(labels=BINARY, test_labels=TEST_BINARY)


def test_progress_sees_every_block_of_cells_with_a_length():
    seen = []

    def watch(blocks):
        assert len(blocks) > 0
        for block in blocks:
            seen.extend(block)
            yield block

    run(progress=watch)
    assert seen == [(layer, position) for position in (-2, -1) for layer in range(LAYERS)]


def test_the_default_seed_and_labels_kind_do_not_matter_for_series():
    import pandas as pd

    np.testing.assert_array_equal(run(labels=pd.Series(LABELS, index=range(5, 5 + N))).cv_score, run().cv_score)


def test_a_grid_may_be_a_text():
    np.testing.assert_array_equal(run(alphas="0.1,1").alpha_cv_score, run(alphas=[0.1, 1.0]).alpha_cv_score)


class Unread(ArrayCellSource):
    """Cells that are not there yet."""

    def cell_blocks(self, layer: int, position: int):
        raise AssertionError("a cell was read")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, None, ""),
        ({"alphas": "auto", "permutations": 5}, None, ""),
        ({"labels": BINARY, "test_labels": TEST_LABELS > 0}, None, ""),
        ({"labels": np.ones(N)}, LabelError, "all training labels are equal"),
        ({"labels": np.eye(N)[0], "test_labels": TEST_LABELS > 0}, LabelError, "lacks a class"),
        ({"n_folds": N}, LabelError, "has one label value"),
        ({"test_labels": np.zeros(len(TEST))}, LabelError, "test labels hold only one value"),
        ({"labels": BINARY}, LabelError, "test label 'a' has .* labels that training never saw"),
        ({"n_folds": N + 1}, FoldError, "more than the 60 samples"),
        ({"alpha": 0.0, "labels": BINARY, "test_labels": TEST_LABELS > 0}, PenaltyError, "use an alpha above 0"),
        ({"budget_bytes": 10}, BudgetError, "one cell needs .*, the budget is 10 bytes"),
        ({"permutations": 5, "groups": np.repeat([0, 1], [20, 40]), "n_folds": 2}, None, ""),
    ],
)
def test_rows_are_checked_before_the_cells_are_there(options: dict, kind: type[ProbeError] | None, message: str):
    given = {"labels": LABELS, "test_labels": TEST_LABELS, "k_fold": True, "device": "cpu"} | options
    labels, test_labels = ({"a": given.pop(name)} for name in ("labels", "test_labels"))
    expected = contextlib.nullcontext() if kind is None else pytest.raises(kind, match=message)
    with expected:
        check_sweep(Unread(TRAIN), labels, Unread(TEST), test_labels, **given)


class ShortCell(ArrayCellSource):
    def cell(self, layer: int, position: int) -> np.ndarray:
        return super().cell(layer, position)[:-1]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"alpha": -1.0}, PenaltyError, "alpha=-1.0 is not a penalty; use a finite number of 0 or more"),
        ({"alpha": float("nan")}, PenaltyError, "alpha=nan is not a penalty"),
        ({"alphas": []}, PenaltyError, r"alphas=\[\] is empty; give at least one"),
        ({"alphas": [1.0, 2.0, 1.0]}, PenaltyError, r"alphas=\[1.0, 2.0, 1.0\] holds a value twice"),
        (
            {"alphas": GRID, "k_fold": False},
            PenaltyError,
            "choosing among several alphas needs cross-validation; use",
        ),
        (
            {"alpha": 0.0, "labels": BINARY, "test_labels": BINARY},
            PenaltyError,
            "alpha 0 means C = 1/alpha = infinity; use an alpha above 0",
        ),
        ({"alpha": float("inf")}, PenaltyError, "alpha=inf is not a penalty"),
        ({"alphas": "1;2"}, PenaltyError, "write numbers with commas between"),
        ({"alphas": ""}, PenaltyError, "write numbers with commas between"),
        ({"n_folds": 1, "k_fold": False}, FoldError, "n_folds=1 is too few; use 2 or more"),
        ({"seed": -1, "k_fold": False}, FoldError, "seed=-1 is not a valid NumPy seed"),
        ({"probe": "svm"}, LabelError, "probe='svm' is unknown; use auto, ridge"),
        ({"budget_bytes": -1}, BudgetError, "budget_bytes=-1 is not a number of bytes"),
        ({"n_folds": N + 1}, ProbeError, "n_folds=61 is more than the 60 samples"),
        ({"labels": LABELS[:-1]}, LabelError, "train_labels has 59 values for 60 samples"),
        ({"test_labels": TEST_LABELS[:-1]}, LabelError, "test_labels has 59 values for 60 samples"),
        ({"test_labels": None}, LabelError, "test_labels is missing; give test and test_labels together, or neither"),
        ({"test": None}, LabelError, "test is missing; give test and test_labels together, or neither"),
        (
            {"labels": BINARY, "test_labels": BINARY * 2},
            LabelError,
            "test_labels has .* labels that training never saw",
        ),
        ({"test": TEST[:, :2]}, CellError, "train has layers .* and test has"),
        ({"train": TRAIN[:0], "labels": [], "test": None, "test_labels": None}, CellError, "train has no samples"),
        ({"task_type": "rank"}, LabelError, "task_type='rank' is unknown"),
    ],
)
def test_misuse_is_one_line_that_says_how_to_mend_it(options: dict, kind: type[ProbeError], message: str):
    with pytest.raises(kind, match=message) as caught:
        run(**options)
    assert "\n" not in str(caught.value)
    # Rows that do not fit one another are in no option.
    assert caught.value.argument in {*options, "n_folds", "train_labels", "test_labels", "test"}


def test_a_source_that_breaks_its_promise():
    with pytest.raises(
        CellError,
        match=r"layer 0, position -2 came with rows 0-59 of shape \(59, 8\); the source promises rows 0-59 with 8",
    ):
        sweep(ShortCell(TRAIN), LABELS, device="cpu")


def test_public_names_are_the_documented_ones():
    assert sorted(gpu_probes.__all__) == gpu_probes.__all__
    assert all(hasattr(gpu_probes, name) for name in gpu_probes.__all__)


def test_memory_is_free_as_soon_as_a_sweep_is_done():
    """Cycles keep the rows until the garbage collector comes: a budget was exceeded by what sweeps before had left."""
    rows = TRAIN.copy()
    kept = weakref.ref(rows)
    gc.collect()
    gc.disable()
    try:
        assert np.isfinite(run(rows).cv_score).all()
        del rows
        assert kept() is None
    finally:
        gc.enable()


def test_labels_are_in_the_plan():
    sources = ArrayCellSource(TRAIN), ArrayCellSource(TEST)
    held = []
    for n_labels in (1, 11):
        names = [str(k) for k in range(n_labels)]
        memory, _ = check_sweep(
            sources[0], dict.fromkeys(names, LABELS), sources[1], dict.fromkeys(names, TEST_LABELS),
            k_fold=True, device="cpu", budget_bytes=2**26,
        )  # fmt: skip
        held.append(memory.held_nbytes - memory.result_nbytes)
    # Labels of training and test, and folds.
    assert held[1] - held[0] == 10 * 3 * N * 8
