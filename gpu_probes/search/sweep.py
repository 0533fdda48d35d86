"""All cells: check the input, plan, search block by block, collect the results."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Shaped

from gpu_probes.errors import Status
from gpu_probes.features.cells import CellSource, axis, cells_of
from gpu_probes.results.sweep_result import SweepResult
from gpu_probes.samples.folds import FoldPlan
from gpu_probes.scores.nested import NestedDecision
from gpu_probes.search.alphas import choose_alphas, read_alphas
from gpu_probes.search.block import BlockResult
from gpu_probes.search.block_search import BlockSearch
from gpu_probes.search.devices import connect, most_workers, workers
from gpu_probes.search.distributed import search_blocks
from gpu_probes.search.inputs import Inputs, Label, check_scores, read_inputs
from gpu_probes.search.options import SweepKeywords, SweepOptions
from gpu_probes.search.planner import BlockPlan, Workload, least_nbytes, plan_blocks, result_nbytes
from gpu_probes.search.storage import Memory, empty_array, plan_memory
from gpu_probes.solvers.objective import penalties_of
from gpu_probes.terms import Cell
from probesweep_ray import Cluster


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep that was checked and planned: it stays within its budget."""

    train: CellSource
    test: CellSource | None
    given: SweepOptions
    read: Inputs
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
        machines, device = self.given.machines, self.given.device
        with connect(machines, device) if machines.many else nullcontext() as cluster:
            for group in self.groups:
                results |= _sweep_group(self, group, cluster)
        _warn(results)
        return {label.name: results[label.name] for label in self.read.labels}


def plan_sweep(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None = None,
    test_labels: Mapping[str, Any] | None = None,
    **options: Unpack[SweepKeywords],
) -> PlannedSweep:
    """Check and plan what `gpu_probes.sweep_labels` does: nothing is fitted, only ``auto`` alphas read features.

    Parameters
    ----------
    train, test, train_labels, test_labels, **options
        As for `gpu_probes.sweep_labels`.

    Raises
    ------
    ProbeError
        As `gpu_probes.sweep_labels`.
    """
    given = SweepOptions(**options)
    read = read_inputs(train, train_labels, test, test_labels, given)
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
    **options: Unpack[SweepKeywords],
) -> tuple[Memory, list[Workload]]:
    """Check the input of `gpu_probes.sweep_labels` without features: the cells need not exist yet.

    Parameters
    ----------
    train, test, train_labels, test_labels, **options
        As for `sweep_labels`.

    Returns
    -------
    Memory, list of Workload
        Budget and requirements, as far as known: ``auto`` alphas, which depend on features, count as one.

    Raises
    ------
    ProbeError
        As `sweep_labels`; also if no cell can get a score, or the requested permutations change nothing, which
        `sweep_labels` reports as a reason in its results.
    """
    given = SweepOptions(**options)
    read = read_inputs(train, train_labels, test, test_labels, given)
    for label in read.labels:
        check_scores(label, given)
    grid = read_alphas(given.alpha, given.alphas, k_fold=given.k_fold)
    planned = _plan(train, test, read, (1.0,) if isinstance(grid, str) else grid, given)
    return planned.memory, planned.workloads


def _groups(labels: Sequence[Label]) -> list[list[Label]]:
    """Labels that are fitted together: ridges with the same folds; others one by one."""
    groups: list[list[Label]] = []
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

    labels: Sequence[Label]
    penalties: tuple[float, ...]
    workload: Workload
    plan: BlockPlan


def _plan(
    train: CellSource, test: CellSource | None, read: Inputs, alphas: tuple[float, ...], given: SweepOptions
) -> PlannedSweep:
    """Everything is planned before the first fit: what is wrong with one label shows at once."""
    cells, devices = cells_of(train), read.devices
    wholes = _groups(read.labels)
    on_cpu, weighted = devices[0].type == "cpu", read.weights is not None

    def workload_of(labels: Sequence[Label]) -> Workload:
        return _workload(labels, train, test, alphas, given, weighted=weighted, in_pieces=on_cpu)

    workloads = [workload_of([label]) for label in read.labels]
    memory = plan_memory(
        devices,
        given.budget_bytes,
        free_nbytes=read.free_nbytes,
        result_nbytes=len(cells) * sum(map(result_nbytes, workloads)),
        other_nbytes=sum(label.nbytes for label in read.labels),
        folder=given.spill_folder,
    )

    argument, groups = "alpha" if given.alphas is None else "alphas", []
    for labels in (part for whole in wholes for part in _parts(whole, workload_of, memory.free_nbytes)):
        workload = workload_of(labels)
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
        groups.append(_Group(labels, tuple(penalties_of(alphas, task_type, argument=argument)), workload, blocks))
    return PlannedSweep(train, test, given, read, alphas, memory, groups)


def _parts(
    labels: Sequence[Label], workload_of: Callable[[Sequence[Label]], Workload], free_nbytes: int
) -> list[Sequence[Label]]:
    """Halves of the labels, and halves of these, until a part fits in memory."""
    if len(labels) == 1 or least_nbytes(workload_of(labels)) <= free_nbytes:
        return [labels]
    middle = len(labels) // 2
    return [part for half in (labels[:middle], labels[middle:]) for part in _parts(half, workload_of, free_nbytes)]


def _workload(
    labels: Sequence[Label],
    train: CellSource,
    test: CellSource | None,
    alphas: tuple[float, ...],
    given: SweepOptions,
    *,
    weighted: bool,
    in_pieces: bool,
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
        statistic=labels[0].statistic,
        weighted=weighted,
        in_pieces=in_pieces,
        largest_lot=int(np.bincount(labels[0].folds.fold_of_sample).max()),
    )


def _sweep_group(planned: PlannedSweep, group: _Group, cluster: Cluster | None) -> dict[str, SweepResult]:
    plan, train, spill_folder = group.plan, planned.train, planned.memory.spill_folder
    search = BlockSearch(
        train=train,
        test=planned.test,
        labels=group.labels,
        weights=planned.read.weights,
        alphas=planned.alphas,
        penalties=group.penalties,
        dual=group.workload.is_dual,
        plan=plan,
        preprocessing=planned.given.preprocessing,
    )
    found = _search_here(search, planned.read.devices) if cluster is None else search_blocks(cluster, search)
    folds, progress = group.labels[0].folds, planned.given.progress
    gathered = [_Gathered(train, folds, label.task.n_outputs, spill_folder) for label in group.labels]
    with closing(found):
        for _ in plan.blocks if progress is None else progress(plan.blocks):
            for one, result in zip(gathered, next(found), strict=True):
                one.append(result)
    return {label.name: _result(label, one, planned) for label, one in zip(group.labels, gathered, strict=True)}


def _search_here(search: BlockSearch, devices: Sequence[torch.device]) -> Generator[list[BlockResult]]:
    """Search all blocks in threads of this process; yield what is found in the order of the blocks."""
    on = {device: search.on(device) for device in devices}

    def search_one(device: torch.device, block: tuple[Cell, ...]) -> list[BlockResult]:
        return on[device](block)

    with workers(devices, search.plan.n_workers) as submit:
        pending = deque(submit(search_one, block) for block in search.plan.blocks)
        while pending:
            yield pending.popleft().result()


class _Gathered:
    """The cells so far, in arrays that are as large as they will be.

    Parameters
    ----------
    train : whose cells they are
    folds : of all cells
    n_outputs : decision values of a row
    spill_folder : folder for large arrays in files; None: in memory
    """

    def __init__(self, train: CellSource, folds: FoldPlan, n_outputs: int, spill_folder: Path | None) -> None:
        self._shape = (len(train.positions), len(train.layers))
        self._spill_folder = spill_folder
        self._arrays: dict[str, Shaped[np.ndarray, "cell ..."] | None] = {}
        self._n_done = 0
        self.nested = NestedDecision.nothing(folds, n_outputs)

    def append(self, block: BlockResult) -> None:
        """Put the next cells in their place."""
        done = slice(self._n_done, self._n_done + len(block.cells.status))
        for name, values in vars(block.cells).items():
            if name not in self._arrays:
                shape = (self._shape[0] * self._shape[1], *np.shape(values)[1:])
                self._arrays[name] = None if values is None else empty_array(shape, values.dtype, self._spill_folder)
            array = self._arrays[name]
            if array is not None:
                array[done] = values
        self.nested.update(block.cells.inner_score, block.nested_decision)
        self._n_done = done.stop

    def arrays(self) -> dict[str, Any]:
        """The fields of `CellArrays`, [position, layer, ...]."""
        return {
            name: None if values is None else values.reshape(*self._shape, *values.shape[1:])
            for name, values in self._arrays.items()
        }


def _result(label: Label, gathered: _Gathered, planned: PlannedSweep) -> SweepResult:
    given, train, grouping = planned.given, planned.train, planned.read.grouping
    return SweepResult(
        task_type=label.task.task_type,
        probe=label.probe,
        metric=label.task.metric,
        layers=axis(train.layers),
        positions=axis(train.positions),
        classes=None if label.task.classes is None else tuple(label.task.classes.tolist()),
        class_names=label.task.names,
        alpha=float(given.alpha),
        alpha_grid=None if given.alphas is None else planned.alphas,
        k_fold=given.k_fold,
        n_folds=label.folds.n_folds if given.k_fold else int(given.n_folds),
        seed=int(given.seed),
        fit_intercept=given.preprocessing.fit_intercept,
        standardize=given.standardize,
        train_labels=label.train,
        test_labels=label.test,
        fold_of_sample=label.folds.fold_of_sample if given.k_fold else None,
        group_of_sample=None if grouping.is_trivial else grouping.group,
        shuffle_scheme=label.shuffles if isinstance(label.shuffles, str) else label.shuffles.scheme,
        permutation_statistic=label.statistic,
        nested_decision=gathered.nested.decision,
        **gathered.arrays(),
    )


def _warn(results: Mapping[str, SweepResult]) -> None:
    statuses = [status for result in results.values() for status in result.status.ravel()]
    count = statuses.count(Status.NOT_CONVERGED)
    if count:
        message = f"{count} of {len(statuses)} cells: {Status.NOT_CONVERGED.value}"
        from gpu_probes.search.not_converged import NotConvergedWarning

        warnings.warn(message, NotConvergedWarning, stacklevel=3)
