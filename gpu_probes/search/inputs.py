"""The inputs of a sweep: labels, weights, groups and folds, read and checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from gpu_probes.errors import FoldError, LabelError, Status
from gpu_probes.features.cells import CellSource, check_axes, check_same_axes
from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.samples.groups import Grouping, group_samples
from gpu_probes.samples.labels import Task, check_rates, read_labels, read_training_labels, read_weights, resolve_probe
from gpu_probes.samples.shuffles import Shuffles, draw_shuffles
from gpu_probes.scores.ranks import labels_rank
from gpu_probes.search.devices import free_bytes, resolve_devices, share_of_worker
from gpu_probes.search.options import SweepOptions
from gpu_probes.terms import PermutationStatistic, ProbeKind
from probesweep_errors import naming


def check_scores(label: Label, given: SweepOptions) -> None:
    """Raise `LabelError` if the labels alone leave every cell without a score or a p-value."""
    name, task, folds = _named("train", label.name), label.task, label.folds

    def has_score(labels: Float64[np.ndarray, " sample"]) -> bool:
        return labels_rank(task.task_type, torch.tensor(task.targets(labels, name)))

    if not has_score(label.train):
        raise LabelError(f"{name}: {Status.CONSTANT_LABELS.value}; choose another label", argument="train_labels")
    if not all(has_score(label.train[folds.fold_of_sample == fold]) for fold in range(folds.n_folds)):
        raise LabelError(f"{name}: {Status.CONSTANT_FOLD.value} (n_folds=...)", argument="n_folds")
    if label.test is not None and not has_score(label.test):
        raise LabelError(
            f"{_named('test', label.name)}: {Status.TEST_CONSTANT_LABELS.value}; give other test rows",
            argument="test_labels",
        )
    if given.permutations and isinstance(label.shuffles, str):
        raise LabelError(
            f"{name}: permutations={given.permutations} cannot be used: {label.shuffles}", argument="permutations"
        )


@dataclass(frozen=True)
class Inputs:
    """The inputs of a sweep besides features: read and checked.

    Attributes
    ----------
    devices : tuple of torch.device
        What the work is planned for; with several workers, what one of them has.
    free_nbytes : int
        What may be used of its memory, if nothing else is said.
    """

    devices: tuple[torch.device, ...]
    free_nbytes: int
    weights: Float64[np.ndarray, " train_sample"] | None
    grouping: Grouping
    labels: list[Label]


def read_inputs(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None,
    test_labels: Mapping[str, Any] | None,
    given: SweepOptions,
) -> Inputs:
    """Check labels, weights, groups and folds together, before any row of features is read."""
    given.check()
    check_axes(train, "train")
    if (test is None) != (test_labels is None):
        missing = "test_labels" if test_labels is None else "test"
        raise LabelError(f"{missing} is missing; give test and test_labels together, or neither", argument=missing)
    if test is not None:
        check_axes(test, "test")
        with naming("test"):
            check_same_axes(train, test)
    if given.machines.many:
        device, free = share_of_worker(given.machines, given.device, given.budget_bytes)
        devices = (device,)
    else:
        devices = resolve_devices(given.device)
        free = free_bytes(devices)
    with naming("sample_weight"):
        weights = read_weights(given.sample_weight, train.n_samples)
    grouping = group_samples(train.n_samples, given.groups, given.prompts)
    labels = [read_label(name, train, train_labels, test, test_labels, grouping, given) for name in train_labels]
    return Inputs(devices, free, weights, grouping, [with_weights(label, weights) for label in labels])


@dataclass(frozen=True)
class Label:
    """One label: read, checked, with its task and folds."""

    name: str
    task: Task
    probe: ProbeKind
    folds: FoldPlan
    train: Float64[np.ndarray, " train_sample"]
    test: Float64[np.ndarray, " test_sample"] | None
    shuffles: Shuffles | str
    statistic: PermutationStatistic

    @property
    def n_shuffles(self) -> int:
        """Number of permutations of the labels."""
        return 0 if isinstance(self.shuffles, str) else self.shuffles.n_shuffles

    @property
    def nbytes(self) -> int:
        """Bytes of the labels, of their folds and of their permutations."""
        shuffles = 0 if isinstance(self.shuffles, str) else self.shuffles.order.nbytes
        test = 0 if self.test is None else self.test.nbytes
        return self.train.nbytes + test + self.folds.fold_of_sample.nbytes + shuffles


def read_label(
    name: str,
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None,
    test_labels: Mapping[str, Any] | None,
    grouping: Grouping,
    given: SweepOptions,
) -> Label:
    """One label column of both splits: its task, probe, folds and permutations."""
    with naming("train_labels"):
        labels, task = read_training_labels(
            train_labels[name],
            name=_named("train", name),
            n_samples=train.n_samples,
            # Rates may happen to be 0 and 1 only.
            task_type="regression" if (given.probe, given.task_type) == ("binomial", "auto") else given.task_type,
            positive_class=given.positive_class,
        )
    probe = resolve_probe(given.probe, task)
    if probe == "binomial":
        check_rates(labels, _named("train", name))
    # For ridge the two are the same.
    same = task.classes is None and probe != "binomial"
    statistic: PermutationStatistic = "probe" if same else given.statistic
    if given.permutations and statistic == "probe" and given.probe in ("lda", "mass_mean") and task.n_outputs > 1:
        raise LabelError(
            f"permutation_statistic='probe' of {given.probe} is for two classes, and {_named('train', name)} has "
            f"{task.n_outputs}; use permutation_statistic='least_squares', or probe='logistic'",
            argument="permutation_statistic",
        )
    folds = FoldPlan.without_folds(len(labels))
    if given.k_fold:
        folds = _plan_folds(labels, grouping, given, numbers=task.classes is None)
    shuffles: Shuffles | str = "permutations were not asked for"
    if given.permutations:
        budget = free_bytes([torch.device("cpu")]) if given.budget_bytes is None else given.budget_bytes
        kept = budget // (_KEPT_SHUFFLES * len(train_labels))
        drawing = {"n_shuffles": given.permutations, "seed": given.seed, "kept_bytes": int(kept)}
        shuffles = draw_shuffles(labels, grouping, folds, **drawing)
    held_out = None
    if test is not None and test_labels is not None:
        if name not in test_labels:
            raise LabelError(
                f"{name!r} is a label of the training rows only; the test rows have {list(test_labels)}",
                argument="test_labels",
            )
        with naming("test_labels"):
            held_out = read_labels(
                test_labels[name], name=_named("test", name), n_samples=test.n_samples, names=task.names
            )
            task.targets(held_out, _named("test", name))
            if probe == "binomial":
                check_rates(held_out, _named("test", name))
    return Label(name, task, probe, folds, labels, held_out, shuffles, statistic)


def _plan_folds(
    labels: Float64[np.ndarray, " train_sample"], grouping: Grouping, given: SweepOptions, *, numbers: bool
) -> FoldPlan:
    """The folds as given, or as planned."""
    groups = None if grouping.is_trivial else grouping.group
    if given.folds is None:
        return plan_folds(
            labels,
            n_folds=int(given.n_folds),
            seed=given.seed,
            groups=groups,
            nested=given.nested_cv,
            numbers=numbers,
        )
    folds = FoldPlan.given(given.folds, len(labels), nested=given.nested_cv)
    if groups is not None:
        _, first = np.unique(groups, return_index=True)
        split = np.flatnonzero(folds.fold_of_sample != folds.fold_of_sample[first][groups])
        if split.size:
            raise FoldError(
                f"folds splits the group or prompt of row {split[0]}; hold its samples out together", argument="folds"
            )
    return folds


def with_weights(label: Label, weights: Float64[np.ndarray, " train_sample"] | None) -> Label:
    """The label with the weights of its rows, checked against its folds; without a pair that counts: no nested CV.

    Raises
    ------
    LabelError
        A fold's training rows, or a class, all have weight 0.
    """
    if weights is None:
        return label
    classes, names = label.task.classes, label.task.names
    for place, value in enumerate(() if classes is None else classes):
        if not weights[label.train == value].any():
            raise LabelError(
                f"sample_weight is 0 for all rows of class {names[place] if names else format(value, 'g')} of "
                f"{label.name!r}; drop the class",
                argument="sample_weight",
            )
    of_fit = label.folds.lots_of_fit() @ np.bincount(label.folds.fold_of_sample, weights, label.folds.n_lots)
    empty = np.flatnonzero(of_fit[: label.folds.n_folds] == 0)
    if empty.size:
        raise LabelError(
            f"sample_weight is 0 for all training rows of {label.name!r} outside fold {empty[0]}; use fewer folds, "
            "another seed=..., or other weights",
            argument="sample_weight",
        )
    return label if of_fit.all() else replace(label, folds=replace(label.folds, nested=False))


def _named(split: str, name: str) -> str:
    return f"{split}_labels" if name == "labels" else f"{split} label {name!r}"


# Orders of shuffled labels are kept where those of all labels take no more than this part of the budget.
_KEPT_SHUFFLES = 8
