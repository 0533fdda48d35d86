"""Fold plans: scikit-learn's own splits, as one fold number per sample."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from gpu_probes.arguments import check_whole
from gpu_probes.errors import FoldError
from gpu_probes.samples.labels import label_kind


@dataclass(frozen=True)
class FoldPlan:
    """The fold that holds out each sample, and the training set of each fit of a cell.

    Fit k leaves out fold k, the last fit none; between them, for nested cross-validation, come the fits that leave
    out a pair of folds.
    """

    fold_of_sample: Int64[np.ndarray, " sample"]
    n_folds: int
    nested: bool = False
    stratified: bool = False

    @classmethod
    def without_folds(cls, n_samples: int) -> FoldPlan:
        """All samples in one lot that is never held out: the only fit is on everything."""
        return cls(np.zeros(n_samples, dtype=np.int64), 0)

    @classmethod
    def given(cls, folds: Any, n_samples: int, *, nested: bool = False) -> FoldPlan:
        """A split made elsewhere: the fold that holds out each sample.

        Raises
        ------
        FoldError
            When there is not one number for each sample, or they are not 0, 1, ... up to at least 1.
        """
        numbers = np.asarray(folds)
        if numbers.shape != (n_samples,):
            raise FoldError(
                f"folds has shape {numbers.shape} for {n_samples} samples; give one number for each", argument="folds"
            )
        distinct = np.unique(numbers)
        if len(distinct) < 2 or not np.array_equal(distinct, np.arange(len(distinct))):
            raise FoldError(
                f"folds has the values {distinct[:9].tolist()}; number two or more folds from 0, with no gap",
                argument="folds",
            )
        return cls(numbers.astype(np.int64), len(distinct), nested=nested and len(distinct) > 2)

    @property
    def n_lots(self) -> int:
        """Groups of samples that are in or out together."""
        return max(self.n_folds, 1)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Folds that the fits for nested cross-validation leave out; fit ``n_folds + i`` leaves out pair i."""
        return list(combinations(range(self.n_folds), 2)) if self.nested else []

    def lots_of_fit(self) -> Float64[np.ndarray, "fit lot"]:
        """1.0 where the lot is in the fit's training set."""
        left_out = [(fold,) for fold in range(self.n_folds)] + self.pairs + [()]
        return np.array([[float(lot not in out) for lot in range(self.n_lots)] for out in left_out])


def plan_folds(
    labels: Float64[np.ndarray, " sample"],
    *,
    n_folds: int,
    seed: int,
    groups: Int64[np.ndarray, " sample"] | None = None,
    nested: bool = False,
    numbers: bool = False,
) -> FoldPlan:
    """Split as scikit-learn's ``KFold(n_folds, shuffle=True, random_state=seed)`` does, or a related splitter.

    ``StratifiedKFold`` for binary and multiclass labels, whatever the task, but not for `numbers` of which none comes
    as often as there are folds (scikit-learn refuses these);
    ``GroupKFold`` and ``StratifiedGroupKFold`` if there are groups. The last may leave a fold empty: with as many
    groups as folds each group is then a fold.

    Raises
    ------
    FoldError
        When there are fewer than two folds, more folds than samples, groups or than members of every class, no such
        seed, or scikit-learn leaves a fold empty.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    stratified = label_kind(labels) in ("binary", "multiclass") and not (numbers and _most_frequent(labels) < n_folds)
    check_split(n_folds, seed)
    _check_folds(labels, n_folds, stratified=stratified)
    if groups is None:
        splitter = (StratifiedKFold if stratified else KFold)(n_folds, shuffle=True, random_state=seed)
    else:
        _check_groups(groups, n_folds)
        splitter = (StratifiedGroupKFold if stratified else GroupKFold)(n_folds, shuffle=True, random_state=seed)
    fold_of_sample = np.full(len(labels), -1, dtype=np.int64)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # Values that some folds lack: harmless for a regression; classes get a status there.
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels, groups)):
            fold_of_sample[held_out] = fold
    empty = np.setdiff1d(np.arange(n_folds), fold_of_sample)
    if groups is not None and empty.size:
        fold_of_sample = _group_by_group(groups, n_folds, int(empty[0]))
    # Without a third fold nothing is left to train on.
    return FoldPlan(fold_of_sample, n_folds, nested=nested and n_folds > 2, stratified=stratified)


def _group_by_group(groups: Int64[np.ndarray, " sample"], n_folds: int, empty: int) -> Int64[np.ndarray, " sample"]:
    """Every group as a fold, the only split there is where they are as many."""
    distinct, number = np.unique(groups, return_inverse=True)
    if len(distinct) > n_folds:
        raise FoldError(
            f"scikit-learn's StratifiedGroupKFold leaves fold {empty} of {n_folds} empty for these {len(distinct)} "
            "groups, their labels and the seed; use fewer folds or another seed=...",
            argument="n_folds",
        )
    return number.astype(np.int64)


def _most_frequent(labels: Float64[np.ndarray, " sample"]) -> int:
    return int(np.unique(labels, return_counts=True)[1].max())


def _check_groups(groups: Int64[np.ndarray, " sample"], n_folds: int) -> None:
    n_groups = len(np.unique(groups))
    if n_folds > n_groups:
        raise FoldError(
            f"n_folds={n_folds} is more than the {n_groups} groups (rows with the same prompt are one); use fewer "
            "folds or smaller groups",
            argument="n_folds",
        )


def check_split(n_folds: Any, seed: Any) -> None:
    """Check folds before the labels are known.

    Raises
    ------
    FoldError
        When there are fewer than two folds, or no such seed.
    """
    check_whole("seed", seed, FoldError)
    check_whole("n_folds", n_folds, FoldError)
    if not 0 <= seed < 2**32:
        raise FoldError(f"seed={seed} is not a valid NumPy seed; use 0 to 4294967295", argument="seed")
    if n_folds < 2:
        raise FoldError(f"n_folds={n_folds} is too few; use 2 or more", argument="n_folds")


def _check_folds(labels: Float64[np.ndarray, " sample"], n_folds: int, *, stratified: bool) -> None:
    if n_folds > len(labels):
        raise FoldError(
            f"n_folds={n_folds} is more than the {len(labels)} samples; use fewer folds", argument="n_folds"
        )
    if not stratified:
        return
    if n_folds > _most_frequent(labels):
        raise FoldError(
            f"n_folds={n_folds} is more than the {_most_frequent(labels)} samples of the most frequent label, and "
            "folds are stratified by label; use fewer folds",
            argument="n_folds",
        )
