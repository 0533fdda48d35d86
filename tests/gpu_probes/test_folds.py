import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from gpu_probes.errors import FoldError
from gpu_probes.folds import FoldPlan, plan_folds

CONTINUOUS = np.linspace(0.05, 0.95, 23)
BINARY = np.array([0.0, 1.0, 1.0] * 8)
COUNTS = np.array([0.0, 1.0, 2.0, 2.0, 1.0] * 6)


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize("n_folds", [2, 5])
@pytest.mark.parametrize("task_type", ["regression", "classification"])
@pytest.mark.parametrize(
    ("labels", "splitter"), [(CONTINUOUS, KFold), (BINARY, StratifiedKFold), (COUNTS, StratifiedKFold)]
)
def test_splits_are_scikit_learns_whatever_the_task(labels, splitter, task_type, n_folds, seed):
    plan = plan_folds(labels, n_folds=n_folds, seed=seed, task_type=task_type)
    theirs = splitter(n_folds, shuffle=True, random_state=seed).split(labels[:, None], labels)
    for fold, (train, held_out) in enumerate(theirs):
        np.testing.assert_array_equal(np.flatnonzero(plan.fold_of_sample == fold), held_out)
        np.testing.assert_array_equal(np.flatnonzero(plan.rows_of_fit()[fold]), train)


@given(st.integers(2, 30), st.integers(0, 99), st.data())
def test_every_sample_is_held_out_exactly_once(n_samples: int, seed: int, data: st.DataObject):
    n_folds = data.draw(st.integers(2, n_samples))
    plan = plan_folds(np.arange(n_samples) + 0.5, n_folds=n_folds, seed=seed, task_type="regression")
    left_out = 1 - plan.rows_of_fit()
    np.testing.assert_array_equal(left_out.sum(0), 1)
    assert left_out[-1].sum() == 0


def test_rare_values_of_a_regression_may_be_fewer_than_the_folds():
    labels = np.array([0.0] * 10 + [1.0] * 10 + [7.0])
    assert plan_folds(labels, n_folds=5, seed=0, task_type="regression").n_folds == 5


@pytest.mark.parametrize(
    ("labels", "n_folds", "task_type", "message"),
    [
        (CONTINUOUS, 24, "regression", "n_folds 24 is more than the 23 samples; use fewer folds"),
        (CONTINUOUS, 1, "regression", "n_folds 1 is too few; use 2 or more"),
        (BINARY, 9, "classification", "n_folds 9 is more than the 8 samples with label 0, and folds are stratified"),
        (np.arange(9.0), 2, "regression", "n_folds 2 is more than the 1 samples with label 0"),
    ],
)
def test_folds_that_the_labels_do_not_allow(labels, n_folds, task_type, message):
    with pytest.raises(FoldError, match=message):
        plan_folds(labels, n_folds=n_folds, seed=0, task_type=task_type)


def test_without_folds_the_only_fit_is_on_everything():
    plan = FoldPlan.without_folds(4)
    np.testing.assert_array_equal(plan.rows_of_fit(), np.ones((1, 4)))
