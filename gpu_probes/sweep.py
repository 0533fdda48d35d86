"""All cells: check the input, search each cell, gather the results."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from gpu_probes.cells import Cell, CellSource, check_same_axes
from gpu_probes.devices import resolve_device, to_float64
from gpu_probes.errors import CellError, LabelError, PenaltyError, ProbeWarning, Status
from gpu_probes.folds import FoldPlan, plan_folds
from gpu_probes.labels import Task, read_labels, resolve_task
from gpu_probes.objective import penalties_of
from gpu_probes.results import CellResult, SweepResult, stack
from gpu_probes.search import SearchPlan, search_cell


def sweep(
    train: CellSource,
    train_labels: Any,
    test: CellSource | None = None,
    test_labels: Any = None,
    *,
    task_type: str = "auto",
    alpha: float = 1.0,
    alphas: Sequence[float] | None = None,
    k_fold: bool = False,
    n_folds: int = 5,
    seed: int = 42,
    device: str = "auto",
    progress: Callable[[Iterable[Cell]], Iterable[Cell]] | None = None,
) -> SweepResult:
    """Fit a linear probe at every (layer, position) cell.

    Regression minimises ``|y - Xw|^2 + alpha |w|^2``, classification ``C sum(log loss) + 1/2 |w|^2`` with
    ``C = 1/alpha``: scikit-learn's ``Ridge`` and ``LogisticRegression`` with ``fit_intercept=False``, in float64.

    Parameters
    ----------
    train, test : sources of ``[sample, feature]`` cells with the same layers, positions and features
    train_labels, test_labels : one number per sample
    task_type : ``regression``, ``classification``, or ``auto``: classification if scikit-learn's
        `type_of_target` calls the training labels binary or multiclass
    alpha : penalty of every probe
    alphas : grid that replaces `alpha`; each cell takes the one with the highest CV score, the first on ties
    k_fold : cross-validate; without it no best cell is chosen
    n_folds, seed : scikit-learn's shuffled ``KFold``, or ``StratifiedKFold`` for binary and multiclass labels
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:1``
    progress : wraps the list of cells while they are worked on, such as `tqdm`

    Returns
    -------
    SweepResult
        Scores (Spearman, or ROC-AUC), probes and predictions of every cell, with a status for each.

    Raises
    ------
    ProbeError
        When the input cannot be used; the message says what, where, and how to mend it.
    """
    labels = read_labels(train_labels, name="train_labels", n_samples=train.n_samples)
    held_out = _read_test_labels(train, test, test_labels)
    _check_axes(train)
    grid = _grid(alpha, alphas, k_fold)
    task = resolve_task(task_type, labels)
    folds = FoldPlan.without_folds(len(labels))
    if k_fold:
        folds = plan_folds(labels, n_folds=n_folds, seed=seed, task_type=task.task_type)
    plan = _plan(task, labels, held_out, grid, folds, resolve_device(device))
    results = _search_all(plan, train, test, progress)
    _warn(results)
    return SweepResult(
        task_type=task.task_type,
        metric=task.metric,
        layers=tuple(int(layer) for layer in train.layers),
        positions=tuple(int(position) for position in train.positions),
        classes=None if task.classes is None else tuple(task.classes.tolist()),
        alpha=float(alpha),
        alpha_grid=None if alphas is None else grid,
        k_fold=k_fold,
        n_folds=n_folds,
        seed=seed,
        train_labels=labels,
        test_labels=held_out,
        fold_of_sample=folds.fold_of_sample if k_fold else None,
        test_predictions=None if held_out is None else stack(results, "test_predictions"),
        cv_predictions=stack(results, "cv_predictions") if k_fold else None,
        **{field: stack(results, field) for field in _STACKED},
    )


_STACKED = (
    "status",
    "coef",
    "certificate",
    "selected_alpha",
    "train_score",
    "test_score",
    "cv_score",
    "alpha_cv_score",
    "train_predictions",
)


def _plan(
    task: Task,
    labels: Float64[np.ndarray, " train_sample"],
    held_out: Float64[np.ndarray, " test_sample"] | None,
    grid: tuple[float, ...],
    folds: FoldPlan,
    device: torch.device,
) -> SearchPlan:
    def on_device(values: Float64[np.ndarray, "sample output"]) -> Float64[torch.Tensor, "sample output"]:
        return torch.from_numpy(values.copy()).to(device)  # torch must not wrap pandas' read-only memory

    test_targets = np.zeros((0, task.n_outputs)) if held_out is None else task.targets(held_out, "test_labels")
    return SearchPlan(
        task=task,
        alphas=grid,
        penalties=tuple(penalties_of(grid, task.task_type)),
        folds=folds,
        train_targets=on_device(task.targets(labels, "train_labels")),
        test_targets=on_device(test_targets),
    )


def _search_all(
    plan: SearchPlan,
    train: CellSource,
    test: CellSource | None,
    progress: Callable[[Iterable[Cell]], Iterable[Cell]] | None,
) -> list[list[CellResult]]:
    """Search the cells, positions outside, layers inside."""
    cells = [Cell(int(layer), int(position)) for position in train.positions for layer in train.layers]
    device = plan.train_targets.device
    found: list[CellResult] = []
    for cell in cells if progress is None else progress(cells):
        features = _load(train, cell, device)
        held_out = features[:0] if test is None else _load(test, cell, device)
        found.append(search_cell(plan, features, held_out))
    n_layers = len(train.layers)
    return [found[start : start + n_layers] for start in range(0, len(found), n_layers)]


def _load(source: CellSource, cell: Cell, device: torch.device) -> torch.Tensor:
    array = source.cell(cell.layer, cell.position)
    if array.shape != (source.n_samples, source.n_features):
        raise CellError(
            f"layer {cell.layer}, position {cell.position} came with shape {array.shape}; "
            f"the source promises {(source.n_samples, source.n_features)}"
        )
    return to_float64(array, device)


def _check_axes(train: CellSource) -> None:
    for name in ("layers", "positions", "n_samples", "n_features"):
        value = getattr(train, name)
        if not (value if isinstance(value, int) else len(value)):
            raise CellError(f"train has no {name.removeprefix('n_')}; give at least one")


def _read_test_labels(
    train: CellSource, test: CellSource | None, test_labels: Any
) -> Float64[np.ndarray, " test_sample"] | None:
    if (test is None) != (test_labels is None):
        missing = "test_labels" if test_labels is None else "test"
        raise LabelError(f"{missing} is missing; give test and test_labels together, or neither")
    if test is None:
        return None
    check_same_axes(train, test)
    return read_labels(test_labels, name="test_labels", n_samples=test.n_samples)


def _grid(alpha: float, alphas: Sequence[float] | None, k_fold: bool) -> tuple[float, ...]:
    grid = (float(alpha),) if alphas is None else tuple(float(value) for value in alphas)
    if len(grid) > 1 and not k_fold:
        raise PenaltyError(
            f"alphas has {len(grid)} values but nothing to choose between them with; use --k_fold, or give one alpha"
        )
    return grid


def _warn(results: list[list[CellResult]]) -> None:
    statuses = [cell.status for row in results for cell in row]
    count = statuses.count(Status.NOT_CONVERGED)
    if count:
        warnings.warn(f"{count} of {len(statuses)} cells: {Status.NOT_CONVERGED.value}", ProbeWarning, stacklevel=3)
