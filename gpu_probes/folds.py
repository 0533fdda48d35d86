"""Fold plans: scikit-learn's own splits, as one fold number per sample."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.model_selection import KFold, StratifiedKFold

from gpu_probes.errors import FoldError
from gpu_probes.labels import label_kind


@dataclass(frozen=True)
class FoldPlan:
    """Which fold each sample is held out in.

    A cell is fitted once without each fold and once on everything: fit k leaves out fold k, the last fit none.
    """

    fold_of_sample: Int64[np.ndarray, " sample"]
    n_folds: int

    @classmethod
    def without_folds(cls, n_samples: int) -> "FoldPlan":
        """All samples in one lot that is never held out: the only fit is the one on everything."""
        return cls(np.zeros(n_samples, dtype=np.int64), 0)

    @property
    def n_lots(self) -> int:
        """Groups of samples that are in or out together."""
        return max(self.n_folds, 1)

    def lots_of_fit(self) -> Float64[np.ndarray, "fit lot"]:
        """1.0 where the lot is in the fit's training set."""
        leave_one_out = 1.0 - np.eye(self.n_folds, self.n_lots)
        return np.vstack([leave_one_out, np.ones((1, self.n_lots))])


def plan_folds(labels: Float64[np.ndarray, " sample"], *, n_folds: int, seed: int) -> FoldPlan:
    """Split as ``KFold`` or ``StratifiedKFold(n_folds, shuffle=True, random_state=seed)`` does.

    The splitter follows from the labels alone (stratified for binary and multiclass ones), whatever the task.

    Raises
    ------
    FoldError
        When there are fewer than two folds, more folds than samples or than members of every class, or no such seed.
    """
    stratified = label_kind(labels) in ("binary", "multiclass")
    _check_folds(labels, n_folds, seed, stratified=stratified)
    splitter = (StratifiedKFold if stratified else KFold)(n_folds, shuffle=True, random_state=seed)
    fold_of_sample = np.full(len(labels), -1, dtype=np.int64)
    with warnings.catch_warnings():
        # Values that some folds lack: harmless for a regression; classes get a status there.
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels)):
            fold_of_sample[held_out] = fold
    return FoldPlan(fold_of_sample, n_folds)


def _check_folds(labels: Float64[np.ndarray, " sample"], n_folds: int, seed: int, *, stratified: bool) -> None:
    if not 0 <= seed < 2**32:
        raise FoldError(f"seed {seed} is none that NumPy takes; use 0 to 4294967295")
    if n_folds < 2:
        raise FoldError(f"n_folds {n_folds} is too few; use 2 or more")
    if n_folds > len(labels):
        raise FoldError(f"n_folds {n_folds} is more than the {len(labels)} samples; use fewer folds")
    if not stratified:
        return
    _, counts = np.unique(labels, return_counts=True)
    if n_folds > counts.max():
        raise FoldError(
            f"n_folds {n_folds} is more than the {counts.max()} samples of the most frequent label, and folds are "
            "stratified by label; use fewer folds"
        )
