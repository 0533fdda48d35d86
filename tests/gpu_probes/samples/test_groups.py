"""Groups of samples, folds that keep them whole, and shuffles that respect them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from gpu_probes import ArrayCellSource, FoldError, LabelError, sweep
from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.samples.groups import group_samples, shared_prompts
from gpu_probes.samples.shuffles import Shuffles, draw_shuffles

PROMPTS = ["How many?", "how  MANY?", "Who", "Where", "Who", "When"]


def test_prompts_are_joined_but_for_case_and_whitespace():
    grouping = group_samples(6, prompts=PROMPTS)
    assert grouping.group.tolist() == [0, 0, 1, 2, 1, 3]
    assert (grouping.n_exact, grouping.n_normalised) == (1, 2)
    assert not grouping.has_column
    assert not grouping.is_trivial
    assert group_samples(6).is_trivial


def test_a_prompt_in_two_groups_joins_them():
    grouping = group_samples(6, groups=pd.Series(["a", "b", "b", "c", "d", "e"]), prompts=PROMPTS)
    # Row 0 repeats row 1 of group b; row 4 repeats row 2 of group b.
    assert grouping.group.tolist() == [0, 0, 0, 1, 0, 2]
    assert grouping.block.tolist() == [0, 0, 1, 2, 1, 3]


def test_groups_that_cannot_be():
    with pytest.raises(LabelError, match="groups has 2 values for 3 samples"):
        group_samples(3, groups=[1, 2])
    with pytest.raises(LabelError, match="groups has 1 null values, the first in row 1"):
        group_samples(3, groups=["a", None, "b"])


def test_shared_prompts():
    assert shared_prompts(["Who  is it"], ["who is it ", "what"]).tolist() == [True, False]


@given(st.lists(st.integers(0, 6), min_size=12, max_size=40), st.booleans())
def test_folds_keep_groups_whole_as_scikit_learns(groups: list[int], stratified: bool):
    ids = np.array(groups)
    labels = np.arange(len(ids)) % 2 * 1.0 if stratified else np.linspace(0.1, 0.9, len(ids))
    splitter = (StratifiedGroupKFold if stratified else GroupKFold)(2, shuffle=True, random_state=3)
    if len(set(groups)) < 2:
        with pytest.raises(FoldError, match="more than the 1 groups"):
            plan_folds(labels, n_folds=2, seed=3, groups=ids)
        return
    theirs = [held_out for _, held_out in splitter.split(ids[:, None], labels, ids)]
    assert all(map(len, theirs))
    plan = plan_folds(labels, n_folds=2, seed=3, groups=ids)
    for fold, held_out in enumerate(theirs):
        np.testing.assert_array_equal(np.flatnonzero(plan.fold_of_sample == fold), held_out)
    assert all(len(set(plan.fold_of_sample[ids == group])) == 1 for group in groups)


@pytest.mark.filterwarnings("ignore:The least populated class")
# Labels of groups of equal size for which scikit-learn leaves a fold empty: ties broken by rounding.
@pytest.mark.parametrize(
    ("labels", "seed"),
    [
        ([4, 3, 0, 1, 2, 2, 4, 4, 3, 2, 1, 4, 0, 0, 1, 3], 42),
        ([3, 2, 2, 3, 2, 2, 0, 3, 1, 1, 0, 0], 25),
        ([2, 3, 2, 2, 2, 3, 3, 0, 1, 1, 0, 1], 14),
        ([3, 1, 0, 3, 0, 1, 0, 2, 2, 3, 1, 1], 1),
    ],
)
def test_as_many_groups_as_folds_are_a_fold_each(labels: list[int], seed: int):
    numbers = np.array(labels, dtype=float)
    groups = np.repeat(np.arange(4), len(labels) // 4)
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    assert not all(len(held_out) for _, held_out in splitter.split(groups[:, None], numbers, groups))
    for names in (groups, groups + 7, 9 - groups):
        plan = plan_folds(numbers, n_folds=4, seed=seed, groups=names, nested=True)
        held_out = [set(plan.fold_of_sample[groups == group]) for group in range(4)]
        assert sorted(held_out, key=min) == [{0}, {1}, {2}, {3}]
        assert len(plan.pairs) == 6


def test_a_fold_that_scikit_learn_leaves_empty_is_named(monkeypatch: pytest.MonkeyPatch):
    def split(*_: object) -> list[tuple[None, np.ndarray]]:
        return [(None, np.arange(6)), (None, np.array([], dtype=int))]

    monkeypatch.setattr(StratifiedGroupKFold, "split", split)
    message = (
        "StratifiedGroupKFold leaves fold 1 of 2 empty for these 3 groups, their labels and the seed; use fewer folds "
        r"or another seed=\.\.\."
    )
    with pytest.raises(FoldError, match=message):
        plan_folds(np.array([0.0, 1, 0, 1, 0, 1]), n_folds=2, seed=0, groups=np.array([0, 0, 1, 1, 2, 2]))


def test_more_folds_than_prompts_says_what_a_group_is():
    labels = np.linspace(0, 1, 6)
    with pytest.raises(
        FoldError, match=r"more than the 2 groups \(rows with the same prompt are one\); use fewer folds"
    ):
        plan_folds(labels, n_folds=3, seed=0, groups=group_samples(6, prompts=["a", "A", "a ", "b", "b", "B"]).group)


def drawn(labels: np.ndarray, n: int = 50, folds: FoldPlan | None = None, **groups: object) -> Shuffles | str:
    plan = folds or FoldPlan.without_folds(len(labels))
    return draw_shuffles(labels, group_samples(len(labels), **groups), plan, n_shuffles=n, seed=0)


def test_without_groups_any_order_is_as_likely():
    shuffles = drawn(np.arange(3.0), 6000)
    assert isinstance(shuffles, Shuffles)
    _, counts = np.unique(shuffles.order, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850


def test_labels_stay_within_groups():
    groups = np.array([0, 0, 0, 1, 1, 2])
    shuffles = drawn(np.arange(6.0), groups=groups)
    assert isinstance(shuffles, Shuffles)
    assert shuffles.scheme == "within groups"
    np.testing.assert_array_equal(groups[shuffles.order], np.broadcast_to(groups, shuffles.order.shape))
    assert len(np.unique(shuffles.order[:, 0])) == 3


def test_labels_of_whole_groups_change_places_between_groups_of_a_size():
    groups, labels = np.array([0, 0, 1, 1, 2]), np.array([5.0, 5.0, 7.0, 7.0, 9.0])
    shuffles = drawn(labels, groups=groups)
    assert isinstance(shuffles, Shuffles)
    assert shuffles.scheme.startswith("whole groups")
    assert {tuple(labels[order]) for order in shuffles.order} == {(5, 5, 7, 7, 9), (7, 7, 5, 5, 9)}


def test_repeated_prompts_move_together():
    labels = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    shuffles = drawn(labels, prompts=PROMPTS)
    assert isinstance(shuffles, Shuffles)
    assert shuffles.scheme == "among all samples, repeated prompts together"
    # Rows 0, 1 and rows 2, 4 are repeats; rows 3 and 5 are alone.
    assert {tuple(order[[0, 1, 2, 4]]) for order in shuffles.order} == {(0, 1, 2, 4), (2, 4, 0, 1)}
    assert {tuple(order[[3, 5]]) for order in shuffles.order} == {(3, 5), (5, 3)}


def test_stratified_folds_keep_their_classes():
    labels = np.array([0.0, 1.0] * 6)
    folds = plan_folds(labels, n_folds=3, seed=0)
    shuffles = drawn(labels, folds=folds)
    assert isinstance(shuffles, Shuffles)
    assert shuffles.scheme == "among all samples, within folds"
    for order in shuffles.order:
        np.testing.assert_array_equal(folds.fold_of_sample[order], folds.fold_of_sample)


def test_shuffles_that_change_nothing_have_a_reason():
    labels = np.array([1.0, 1.0, 2.0, 2.0, 2.0])
    reason = drawn(labels, groups=[0, 0, 1, 1, 1])
    assert reason == (
        "no label differs from those that it may change places with (whole groups, as labels do not vary within them)"
    )


@pytest.mark.slow
def test_repeated_rows_look_like_knowledge_unless_they_are_held_out_together():
    rng = np.random.default_rng(0)
    once, labels = rng.standard_normal((100, 1, 1, 200)), (rng.permutation(100) % 2).astype(float)
    source = ArrayCellSource(np.concatenate([once, once]))
    prompts = [f"question {i}" for i in range(100)] * 2
    apart = sweep(source, np.tile(labels, 2), k_fold=True, alpha=0.01)
    together = sweep(source, np.tile(labels, 2), k_fold=True, alpha=0.01, prompts=prompts)
    assert apart.cv_score[0, 0] > 0.85
    assert abs(together.cv_score[0, 0] - 0.5) < 0.15


@pytest.mark.parametrize("groups", [{}, {"groups": np.arange(60) // 4}, {"groups": np.arange(60) % 7}], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_orders_that_are_drawn_anew_are_those_that_are_kept(groups: dict[str, Any], sparse: bool):
    labels = np.random.default_rng(0).standard_normal(60)
    # With few labels that differ, many shuffles leave a fold without a score and are drawn again, and again.
    labels = np.where(np.arange(60) % 5, 0.0, labels) if sparse else labels
    plan = FoldPlan(np.arange(60) // 12, 5, stratified=False)
    kept, anew = (
        draw_shuffles(labels, group_samples(60, **groups), plan, n_shuffles=50, seed=3, kept_bytes=kept_bytes)
        for kept_bytes in (None, 0)
    )
    if isinstance(kept, str):
        assert anew == kept
        return
    assert isinstance(anew, Shuffles)
    assert (anew.scheme, anew.n_shuffles, anew.order.nbytes) == (kept.scheme, 50, 0)
    for at_once in (1, 7, 50, 64):
        np.testing.assert_array_equal(np.concatenate(list(anew.batches(at_once))), kept.order)
        np.testing.assert_array_equal(np.concatenate(list(kept.batches(at_once))), kept.order)
