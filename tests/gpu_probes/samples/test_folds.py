import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from gpu_probes.errors import FoldError
from gpu_probes.samples.folds import FoldPlan, plan_folds

CONTINUOUS = np.linspace(0.05, 0.95, 23)
# Eight of 0.
BINARY = np.array([0.0, 1.0, 1.0] * 8)
COUNTS = np.array([0.0, 1.0, 2.0, 2.0, 1.0] * 6)


def rows_of_fit(plan: FoldPlan) -> np.ndarray:
    """1.0 where the sample is in the fit's training set."""
    return plan.lots_of_fit()[:, plan.fold_of_sample]


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize("n_folds", [2, 5])
@pytest.mark.parametrize(
    ("labels", "splitter"), [(CONTINUOUS, KFold), (BINARY, StratifiedKFold), (COUNTS, StratifiedKFold)]
)
def test_splits_are_scikit_learns(labels, splitter, n_folds, seed):
    plan = plan_folds(labels, n_folds=n_folds, seed=seed)
    theirs = splitter(n_folds, shuffle=True, random_state=seed).split(labels[:, None], labels)
    for fold, (train, held_out) in enumerate(theirs):
        np.testing.assert_array_equal(np.flatnonzero(plan.fold_of_sample == fold), held_out)
        np.testing.assert_array_equal(np.flatnonzero(rows_of_fit(plan)[fold]), train)


@given(st.integers(2, 30), st.integers(0, 99), st.data())
def test_every_sample_is_held_out_exactly_once(n_samples: int, seed: int, data: st.DataObject):
    n_folds = data.draw(st.integers(2, n_samples))
    plan = plan_folds(np.arange(n_samples) + 0.5, n_folds=n_folds, seed=seed)
    left_out = 1 - rows_of_fit(plan)
    np.testing.assert_array_equal(left_out.sum(0), 1)
    assert left_out[-1].sum() == 0


def test_rare_values_may_be_fewer_than_the_folds():
    labels = np.array([0.0] * 10 + [1.0] * 10 + [7.0])
    assert plan_folds(labels, n_folds=5, seed=0).n_folds == 5


@pytest.mark.parametrize(
    ("labels", "n_folds", "seed", "message"),
    [
        (CONTINUOUS, 24, 0, "n_folds=24 is more than the 23 samples; use fewer folds"),
        (CONTINUOUS, 1, 0, "n_folds=1 is too few; use 2 or more"),
        (BINARY, 17, 0, "n_folds=17 is more than the 16 samples of the most frequent label, and folds are stratified"),
        (np.arange(9.0), 2, 0, "n_folds=2 is more than the 1 samples of the most frequent label"),
        (CONTINUOUS, 2, -1, "seed=-1 is not a valid NumPy seed; use 0 to 4294967295"),
        (CONTINUOUS, 2, 2**32, "seed=4294967296 is not a valid NumPy seed"),
    ],
)
def test_folds_that_cannot_be(labels, n_folds, seed, message):
    with pytest.raises(FoldError, match=message):
        plan_folds(labels, n_folds=n_folds, seed=seed)


def test_without_folds_the_only_fit_is_on_everything():
    plan = FoldPlan.without_folds(4)
    np.testing.assert_array_equal(rows_of_fit(plan), np.ones((1, 4)))


def test_a_split_from_elsewhere():
    plan = FoldPlan.given([2, 0, 1, 0], 4, nested=True)
    np.testing.assert_array_equal(plan.fold_of_sample, [2, 0, 1, 0])
    assert (plan.n_folds, plan.pairs) == (3, [(0, 1), (0, 2), (1, 2)])
    assert FoldPlan.given([1, 0, 1, 0], 4, nested=True).pairs == []


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([0, 1, 0], r"folds has shape \(3,\) for 4 samples; give one number for each"),
        ([0, 0, 0, 0], r"folds has the values \[0\]; number two or more folds from 0, with no gap"),
        ([0, 2, 0, 2], r"folds has the values \[0, 2\]"),
        ([0, 1, -1, 0], r"folds has the values \[-1, 0, 1\]"),
        ([0.5, 0, 1, 0], r"folds has the values \[0.0, 0.5, 1.0\]"),
    ],
)
def test_splits_from_elsewhere_that_cannot_be(folds, message):
    with pytest.raises(FoldError, match=message):
        FoldPlan.given(folds, 4)


def test_numbers_that_do_not_repeat_are_not_stratified():
    plan = plan_folds(np.arange(9.0), n_folds=3, seed=0, numbers=True)
    for fold, (_, held_out) in enumerate(KFold(3, shuffle=True, random_state=0).split(np.arange(9))):
        np.testing.assert_array_equal(np.flatnonzero(plan.fold_of_sample == fold), held_out)
