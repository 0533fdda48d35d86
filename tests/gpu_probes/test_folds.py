import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from gpu_probes.errors import FoldError
from gpu_probes.folds import FoldPlan, plan_folds
from gpu_probes.moments import fold_moments, training_moments

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


def test_training_moments_are_those_of_the_training_rows():
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((23, 4)), rng.standard_normal((23, 2))
    plan = plan_folds(CONTINUOUS, n_folds=5, seed=0, task_type="regression")
    ours = training_moments(fold_moments(torch.tensor(features), torch.tensor(targets), plan), plan)
    for k in range(6):
        rows = plan.fold_of_sample != k
        assert ours.count[k] == rows.sum()
        np.testing.assert_allclose(ours.gram[k], features[rows].T @ features[rows], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.cross[k], features[rows].T @ targets[rows], rtol=1e-12, atol=1e-12)


def test_a_dominant_fold_does_not_cancel_the_others_away():
    features = torch.tensor([[1e9], [1.0], [1.0]], dtype=torch.float64)
    plan = FoldPlan(np.array([0, 1, 2]), 3)
    ours = training_moments(fold_moments(features, features, plan), plan)
    assert ours.gram[0].item() == 2.0


def test_without_folds_the_only_fit_is_on_everything():
    plan = FoldPlan.without_folds(4)
    np.testing.assert_array_equal(plan.rows_of_fit(), np.ones((1, 4)))
