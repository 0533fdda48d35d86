"""All cells: check the input, plan, search block by block, gather the results."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from gpu_probes.errors import FoldError, LabelError, NotConvergedWarning, Status
from gpu_probes.features.cells import Cell, CellSource, axis, cells_of, check_axes, check_same_axes
from gpu_probes.features.rows import Rows, TrainingSets
from gpu_probes.results.sweep_result import SweepResult
from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.samples.groups import Grouping, group_samples
from gpu_probes.samples.labels import Task, read_labels, read_weights, resolve_probe, resolve_task
from gpu_probes.samples.shuffles import Shuffles, draw_shuffles
from gpu_probes.scores.nested import NestedDecision
from gpu_probes.scores.ranks import labels_rank
from gpu_probes.search.alphas import choose_alphas, read_alphas
from gpu_probes.search.block import BlockResult, LabelPlan, SearchPlan, search_block
from gpu_probes.search.devices import free_bytes, most_workers, resolve_devices, workers
from gpu_probes.search.options import SweepOptions
from gpu_probes.search.planner import BlockPlan, Workload, least_nbytes, plan_blocks, result_nbytes
from gpu_probes.search.storage import Memory, empty_array, plan_memory
from gpu_probes.solvers.objective import ProbeKind, penalties_of

# Orders of shuffled labels are kept where those of all labels take no more than this part of the budget.
_KEPT_SHUFFLES = 8


def sweep(
    train: CellSource,
    train_labels: Any,
    test: CellSource | None = None,
    test_labels: Any = None,
    **options: Any,
) -> SweepResult:
    """Fit a linear probe at every (layer, position) cell.

    Regression minimises ``|y - Xw|^2 + alpha |w|^2``, classification ``C sum(log loss) + 1/2 |w|^2`` with
    ``C = 1/alpha``: scikit-learn's ``Ridge`` and ``LogisticRegression``, in float64.

    Parameters
    ----------
    train, test : sources of ``[sample, feature]`` cells with the same layers, positions and features
    train_labels, test_labels : one number per sample
    **options
        See `SweepOptions`.

    Returns
    -------
    SweepResult
        Scores (Spearman, or ROC-AUC), probes and predictions of every cell, with a status for each.

    Raises
    ------
    ProbeError
        When the input cannot be used; the message says what, where, and how to mend it.
    """
    held_out = None if test_labels is None else {"labels": test_labels}
    return sweep_labels(train, {"labels": train_labels}, test, held_out, **options)["labels"]


def sweep_labels(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None = None,
    test_labels: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, SweepResult]:
    """Do what `sweep` does for several labels by name; numbers that share their folds share the factorisations.

    Parameters
    ----------
    train, test : sources of ``[sample, feature]`` cells with the same layers, positions and features
    train_labels, test_labels : one number per sample, for each name
    **options
        See `SweepOptions`.

    Returns
    -------
    dict of SweepResult
        By name.

    Raises
    ------
    ProbeError
        When the input cannot be used; the message says what, where, and how to mend it.
    """
    return plan_sweep(train, train_labels, test, test_labels, **options).run()


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep that was checked and planned: it stays within its budget."""

    train: CellSource
    test: CellSource | None
    given: SweepOptions
    read: _Read
    alphas: tuple[float, ...]
    memory: Memory
    groups: Sequence[_Group]

    @property
    def workloads(self) -> list[Workload]:
        """What one cell takes, for each group of labels that are fitted together."""
        return [group.workload for group in self.groups]

    def run(self) -> dict[str, SweepResult]:
        """Fit every cell to every label.

        Returns
        -------
        dict of SweepResult
            By name.
        """
        results: dict[str, SweepResult] = {}
        for group in self.groups:
            results |= _sweep_group(self, group)
        _warn(results)
        return {label.name: results[label.name] for label in self.read.labels}


def plan_sweep(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None = None,
    test_labels: Mapping[str, Any] | None = None,
    **options: Any,
) -> PlannedSweep:
    """Check and plan what `sweep_labels` does: nothing is fitted, and only ``auto`` alphas look at features.

    Parameters
    ----------
    train, test, train_labels, test_labels, **options
        As for `sweep_labels`.

    Raises
    ------
    ProbeError
        As `sweep_labels`.
    """
    given = SweepOptions(**options)
    read = _read(train, train_labels, test, test_labels, given)
    weights = read.weights
    alphas = choose_alphas(
        given.alpha,
        given.alphas,
        k_fold=given.k_fold,
        train=train,
        preprocessing=given.preprocessing,
        total_weight=float(train.n_samples if weights is None else weights.sum()),
    )
    return _plan(train, test, read, alphas, given)


def check_sweep(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None = None,
    test_labels: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Memory, list[Workload]]:
    """Check what `sweep_labels` is given, without a feature: the cells need not be there yet.

    Parameters
    ----------
    train, test, train_labels, test_labels, **options
        As for `sweep_labels`.

    Returns
    -------
    Memory, list of Workload
        What is allowed, and what is needed, as far as is known: ``auto`` alphas, which features decide, count as one.

    Raises
    ------
    ProbeError
        As `sweep_labels`; also where no cell can get a score, or the permutations that are asked for change nothing,
        which `sweep_labels` gives as a reason in its results.
    """
    given = SweepOptions(**options)
    read = _read(train, train_labels, test, test_labels, given)
    for label in read.labels:
        _check_scores(label, given)
    grid = read_alphas(given.alpha, given.alphas, k_fold=given.k_fold)
    planned = _plan(train, test, read, (1.0,) if isinstance(grid, str) else grid, given)
    return planned.memory, planned.workloads


def _check_scores(label: _Label, given: SweepOptions) -> None:
    """Raise `LabelError` where the labels alone leave every cell without a score or a p-value."""
    name, task, folds = _named("train", label.name), label.task, label.folds

    def has_score(labels: Float64[np.ndarray, " sample"]) -> bool:
        return labels_rank(task.task_type, torch.tensor(task.targets(labels, name)))

    if not has_score(label.train):
        raise LabelError(f"{name}: {Status.CONSTANT_LABELS.value}; choose another --label_column")
    if not all(has_score(label.train[folds.fold_of_sample == fold]) for fold in range(folds.n_folds)):
        raise LabelError(f"{name}: {Status.CONSTANT_FOLD.value} (--n_folds)")
    if label.test is not None and not has_score(label.test):
        raise LabelError(f"{_named('test', label.name)}: {Status.TEST_CONSTANT_LABELS.value}; give other test rows")
    if given.permutations and isinstance(label.shuffles, str):
        raise LabelError(f"{name}: --permutations cannot be: {label.shuffles}")


@dataclass(frozen=True)
class _Read:
    """What a sweep is given besides features: read and checked."""

    devices: tuple[torch.device, ...]
    weights: Float64[np.ndarray, " train_sample"] | None
    grouping: Grouping
    labels: list[_Label]


def _read(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None,
    test_labels: Mapping[str, Any] | None,
    given: SweepOptions,
) -> _Read:
    given.check()
    check_axes(train, "train")
    if (test is None) != (test_labels is None):
        missing = "test_labels" if test_labels is None else "test"
        raise LabelError(f"{missing} is missing; give test and test_labels together, or neither")
    if test is not None:
        check_axes(test, "test")
        check_same_axes(train, test)
    devices = resolve_devices(given.device)
    weights = read_weights(given.sample_weight, train.n_samples)
    grouping = group_samples(train.n_samples, given.groups, given.prompts)
    labels = [_read_label(name, train, train_labels, test, test_labels, grouping, given) for name in train_labels]
    return _Read(devices, weights, grouping, [_with_weights(label, weights) for label in labels])


@dataclass(frozen=True)
class _Label:
    """One label: read, checked, with its task and folds."""

    name: str
    task: Task
    probe: ProbeKind
    folds: FoldPlan
    train: Float64[np.ndarray, " train_sample"]
    test: Float64[np.ndarray, " test_sample"] | None
    shuffles: Shuffles | str

    @property
    def n_shuffles(self) -> int:
        """How often the labels are shuffled."""
        return 0 if isinstance(self.shuffles, str) else self.shuffles.n_shuffles

    @property
    def shuffles_nbytes(self) -> int:
        """What the orders of the shuffles take."""
        return 0 if isinstance(self.shuffles, str) else self.shuffles.order.nbytes


def _read_label(
    name: str,
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None,
    test_labels: Mapping[str, Any] | None,
    grouping: Grouping,
    given: SweepOptions,
) -> _Label:
    labels = read_labels(train_labels[name], name=_named("train", name), n_samples=train.n_samples)
    task = resolve_task(given.task_type, labels)
    probe = resolve_probe(given.probe, task)
    if given.permutations and given.probe in ("lda", "mass_mean") and task.n_outputs > 1:
        raise LabelError(
            f"permutations of {given.probe} are for two classes, and {_named('train', name)} has {task.n_outputs}; use "
            "--probe logistic"
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
            raise LabelError(f"{name!r} is a label of the training rows only; the test rows have {list(test_labels)}")
        held_out = read_labels(test_labels[name], name=_named("test", name), n_samples=test.n_samples)
        task.targets(held_out, _named("test", name))
    return _Label(name, task, probe, folds, labels, held_out, shuffles)


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
            raise FoldError(f"folds splits the group or prompt of row {split[0]}; hold its samples out together")
    return folds


def _with_weights(label: _Label, weights: Float64[np.ndarray, " train_sample"] | None) -> _Label:
    """Raise `LabelError` where a fold's training rows, or a class, all have weight 0; without a pair: no nested CV."""
    if weights is None:
        return label
    classes = label.task.classes
    for value in () if classes is None else classes:
        if not weights[label.train == value].any():
            raise LabelError(f"sample_weight is 0 for all rows of class {value:g} of {label.name!r}; drop the class")
    of_fit = label.folds.lots_of_fit() @ np.bincount(label.folds.fold_of_sample, weights, label.folds.n_lots)
    empty = np.flatnonzero(of_fit[: label.folds.n_folds] == 0)
    if empty.size:
        raise LabelError(
            f"sample_weight is 0 for all training rows of {label.name!r} outside fold {empty[0]}; use fewer folds, "
            "another --seed, or other weights"
        )
    return label if of_fit.all() else replace(label, folds=replace(label.folds, nested=False))


def _named(split: str, name: str) -> str:
    return f"{split}_labels" if name == "labels" else f"{split} label {name!r}"


def _groups(labels: Sequence[_Label]) -> list[list[_Label]]:
    """Labels that are fitted together: ridges with the same folds; others one by one."""
    groups: list[list[_Label]] = []
    for label in labels:
        if label.probe == "ridge":
            for group in groups:
                same = np.array_equal(group[0].folds.fold_of_sample, label.folds.fold_of_sample)
                if group[0].probe == "ridge" and same:
                    group.append(label)
                    break
            else:
                groups.append([label])
        else:
            groups.append([label])
    return groups


@dataclass(frozen=True)
class _Group:
    """Labels that are fitted together, and how."""

    labels: Sequence[_Label]
    penalties: tuple[float, ...]
    workload: Workload
    plan: BlockPlan


def _plan(
    train: CellSource, test: CellSource | None, read: _Read, alphas: tuple[float, ...], given: SweepOptions
) -> PlannedSweep:
    """Everything is planned before the first fit: what is wrong with one label shows at once."""
    cells, devices = cells_of(train), read.devices
    wholes = _groups(read.labels)
    workloads = [_workload([label], train, test, alphas, given) for label in read.labels]
    memory = plan_memory(
        devices,
        given.budget_bytes,
        result_nbytes=len(cells) * sum(map(result_nbytes, workloads)),
        other_nbytes=sum(label.shuffles_nbytes for label in read.labels),
        folder=given.spill_folder,
    )

    def plan(labels: Sequence[_Label]) -> list[_Group]:
        workload = _workload(labels, train, test, alphas, given)
        if len(labels) > 1 and least_nbytes(workload) > memory.free_nbytes:
            middle = len(labels) // 2
            return plan(labels[:middle]) + plan(labels[middle:])
        blocks = plan_blocks(
            cells,
            workload,
            budget_bytes=memory.budget_bytes,
            held_nbytes=memory.held_nbytes,
            n_workers=most_workers(devices[0]),
            joins_cells=devices[0].type != "cpu",
            n_devices=len(devices),
        )
        task_type = "classification" if workload.is_logistic else "regression"
        return [_Group(labels, tuple(penalties_of(alphas, task_type)), workload, blocks)]

    return PlannedSweep(train, test, given, read, alphas, memory, [part for whole in wholes for part in plan(whole)])


def _workload(
    labels: Sequence[_Label], train: CellSource, test: CellSource | None, alphas: tuple[float, ...], given: SweepOptions
) -> Workload:
    task, probe = labels[0].task, labels[0].probe
    return Workload(
        n_train=train.n_samples,
        n_test=0 if test is None else test.n_samples,
        n_features=train.n_features,
        n_outputs=task.n_outputs,
        n_targets=len(labels) if task.classes is None or probe == "logistic" else max(len(task.classes), 2),
        n_alphas=len(alphas),
        n_folds=labels[0].folds.n_folds,
        probe=probe,
        centres=given.preprocessing.centres,
        standardize=given.standardize,
        unpenalised=0.0 in alphas,
        n_pairs=len(labels[0].folds.pairs),
        n_shuffles=max(label.n_shuffles for label in labels),
    )


def _sweep_group(planned: PlannedSweep, group: _Group) -> dict[str, SweepResult]:
    plan, folds, train, test = group.plan, group.labels[0].folds, planned.train, planned.test
    devices, given = planned.read.devices, planned.given
    labels = {device: tuple(_label_plan(label, device) for label in group.labels) for device in devices}

    def search(device: torch.device, block: tuple[Cell, ...]) -> list[BlockResult]:
        sets = TrainingSets.of(folds, planned.read.weights, device)
        search_plan = SearchPlan(
            probe=group.labels[0].probe,
            labels=labels[device],
            penalties=group.penalties,
            penalties_at_once=plan.penalties_at_once,
            shuffles_at_once=plan.shuffles_at_once,
            dual=group.workload.is_dual,
            sets=sets,
            preprocessing=given.preprocessing,
        )
        rows = Rows(train, block, folds.fold_of_sample, folds.n_lots, chunk_rows=plan.chunk_rows, device=device)
        held_out = None
        if test is not None:
            no_lots = np.zeros(test.n_samples, dtype=np.int64)
            held_out = Rows(test, block, no_lots, 1, chunk_rows=plan.chunk_rows, device=device)
        return search_block(search_plan, rows, held_out)

    grids = [_Grid(train, folds, label.task.n_outputs, planned.memory.spill_folder) for label in group.labels]
    with workers(devices, plan.n_workers) as submit:
        pending = deque(submit(search, block) for block in plan.blocks)
        progress = given.progress
        for _ in plan.blocks if progress is None else progress(plan.blocks):
            for grid, result in zip(grids, pending.popleft().result(), strict=True):
                grid.append(result)
    return {label.name: _assemble(label, grid, planned) for label, grid in zip(group.labels, grids, strict=True)}


class _Grid:
    """Results of the cells so far, in arrays that are as large as they will be.

    Parameters
    ----------
    train : whose cells they are
    folds : of all cells
    n_outputs : decision values of a row
    spill_folder : where large arrays lie in files; None: in memory
    """

    def __init__(self, train: CellSource, folds: FoldPlan, n_outputs: int, spill_folder: Path | None) -> None:
        self._shape = (len(train.positions), len(train.layers))
        self._folds, self._spill_folder = folds, spill_folder
        self._arrays: dict[str, Shaped[np.ndarray, "cell ..."]] = {}
        self._n_done = 0
        self.nested = NestedDecision.nothing(folds, n_outputs)

    def append(self, block: BlockResult) -> None:
        """Put the next cells in their place."""
        n_cells = len(block.status)
        for name in self._kept(block):
            values = getattr(block, name)
            if name not in self._arrays:
                shape = (self._shape[0] * self._shape[1], *values.shape[1:])
                self._arrays[name] = empty_array(shape, values.dtype, self._spill_folder)
            self._arrays[name][self._n_done : self._n_done + n_cells] = values
        self.nested.update(block.inner_score, block.nested_decision)
        self._n_done += n_cells

    def _kept(self, block: BlockResult) -> list[str]:
        dropped = {"nested_decision"} if self._folds.n_folds else {"nested_decision", "cv_decision"}
        return [field.name for field in fields(block) if field.name not in dropped]

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "position layer ..."]:
        values = self._arrays[name]
        return values.reshape(*self._shape, *values.shape[1:])


def _label_plan(label: _Label, device: torch.device) -> LabelPlan:
    test = np.zeros((0, label.task.n_outputs)) if label.test is None else label.task.targets(label.test, "test_labels")
    train = label.task.targets(label.train, "train_labels")
    shuffles = None if isinstance(label.shuffles, str) else label.shuffles
    # torch must not wrap pandas' read-only memory.
    train_targets, test_targets = (torch.from_numpy(values.copy()).to(device) for values in (train, test))
    return LabelPlan(label.task, train_targets, test_targets, shuffles)


def _assemble(label: _Label, grid: _Grid, planned: PlannedSweep) -> SweepResult:
    given, train, alphas, grouping = planned.given, planned.train, planned.alphas, planned.read.grouping
    selected = grid["selected"]
    as_given = ("status", "coef", "intercept", "certificate", "solver", "train_score", "test_score", "cv_score")
    as_given += ("inner_score", "outer_score", "null_score", "train_decision")
    return SweepResult(
        task_type=label.task.task_type,
        probe=label.probe,
        metric=label.task.metric,
        layers=axis(train.layers),
        positions=axis(train.positions),
        classes=None if label.task.classes is None else tuple(label.task.classes.tolist()),
        alpha=float(given.alpha),
        alpha_grid=None if given.alphas is None else alphas,
        k_fold=given.k_fold,
        n_folds=label.folds.n_folds if given.k_fold else given.n_folds,
        seed=given.seed,
        fit_intercept=given.preprocessing.fit_intercept,
        standardize=given.standardize,
        selected_alpha=np.where(selected < 0, np.nan, np.asarray(alphas)[selected]),
        alpha_cv_score=grid["alpha_cv_score"],
        test_decision=None if label.test is None else grid["test_decision"],
        cv_decision=grid["cv_decision"] if given.k_fold else None,
        train_labels=label.train,
        test_labels=label.test,
        fold_of_sample=label.folds.fold_of_sample if given.k_fold else None,
        group_of_sample=None if grouping.is_trivial else grouping.group,
        shuffle_scheme=label.shuffles if isinstance(label.shuffles, str) else label.shuffles.scheme,
        inner_alpha=np.asarray(alphas)[grid["inner_selected"]],
        nested_decision=grid.nested.decision,
        **{name: grid[name] for name in as_given},
    )


def _warn(results: Mapping[str, SweepResult]) -> None:
    statuses = [status for result in results.values() for status in result.status.ravel()]
    count = statuses.count(Status.NOT_CONVERGED)
    if count:
        message = f"{count} of {len(statuses)} cells: {Status.NOT_CONVERGED.value}"
        warnings.warn(message, NotConvergedWarning, stacklevel=3)
