"""Fold plans: scikit-learn's own splits, as one fold number per sample."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.model_selection import KFold, StratifiedKFold

from gpu_probes.errors import FoldError
from gpu_probes.labels import label_kind
from gpu_probes.objective import TaskType


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

    def rows_of_fit(self) -> Float64[np.ndarray, "fit sample"]:
        """1.0 where the sample is in the fit's training set."""
        return self.lots_of_fit()[:, self.fold_of_sample]


def plan_folds(labels: Float64[np.ndarray, " sample"], *, n_folds: int, seed: int, task_type: TaskType) -> FoldPlan:
    """Split as ``KFold`` or ``StratifiedKFold(n_folds, shuffle=True, random_state=seed)`` does.

    The splitter follows from the labels alone (stratified for binary and multiclass ones), whatever the task.

    Raises
    ------
    FoldError
        When there are fewer than two folds, more folds than samples, or a class with fewer members than folds.
    """
    stratified = label_kind(labels) in ("binary", "multiclass")
    _check_folds(labels, n_folds, task_type, stratified)
    splitter = (StratifiedKFold if stratified else KFold)(n_folds, shuffle=True, random_state=seed)
    fold_of_sample = np.full(len(labels), -1, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare values of a regression's integer labels: harmless there
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels)):
            fold_of_sample[held_out] = fold
    return FoldPlan(fold_of_sample, n_folds)


def _check_folds(labels: Float64[np.ndarray, " sample"], n_folds: int, task_type: TaskType, stratified: bool) -> None:
    if n_folds < 2:
        raise FoldError(f"n_folds {n_folds} is too few; use 2 or more")
    if n_folds > len(labels):
        raise FoldError(f"n_folds {n_folds} is more than the {len(labels)} samples; use fewer folds")
    if not stratified:
        return
    values, counts = np.unique(labels, return_counts=True)
    # A class that some fold lacks has no AUC there. A regression only needs what the splitter itself needs.
    scarce = counts.argmin() if task_type == "classification" else counts.argmax()
    if n_folds > counts[scarce]:
        raise FoldError(
            f"n_folds {n_folds} is more than the {counts[scarce]} samples with label {values[scarce]:g}, "
            "and folds are stratified by label; use fewer folds"
        )
