"""Memory of complete trainings, from the sweep to the result files, against their budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from benchmarks.shared.cells import make_cells
from benchmarks.shared.measure import Limit, Spread, Table
from benchmarks.shared.process import Usage, watch
from gpu_probes import About, ArrayCellSource, SweepOptions, check_statistics, infer, plan_sweep
from gpu_probes.results.saving import save_sweep

_MIB = 2**20
_N_FEATURES = 8
# What libraries, threads and the allocator keep, whatever the budget: it shows in the smallest of trainings.
_OTHER_NBYTES = 96 * _MIB


@dataclass(frozen=True)
class Scale:
    """A training that is watched; `n_classes` 0: numbers."""

    n_samples: int
    n_cells: int
    n_classes: int
    n_shuffles: int
    probe: str
    budget_mib: int
    n_folds: int = 5

    @property
    def name(self) -> str:
        """What is large in it."""
        labels = f"{self.n_classes} classes" if self.n_classes else "numbers"
        return f"{self.n_samples:,} rows, {self.n_cells:,} cells, {labels}, {self.n_shuffles:,} shuffles"


@dataclass(frozen=True)
class Watched:
    """A training and what it took above its input."""

    scale: Scale
    usage: Usage

    @property
    def taken_nbytes(self) -> int:
        """The most."""
        return self.usage.peak_nbytes - self.usage.ready_nbytes

    @property
    def ratio(self) -> float:
        """Taken by allowed."""
        return max(self.taken_nbytes - _OTHER_NBYTES, 0) / (self.scale.budget_mib * _MIB)


def watch_training(scale: Scale, folder: Path) -> Watched:
    """Train in a process of its own, and remove the results.

    Raises
    ------
    RuntimeError
        It failed.
    """
    results = folder / "results"
    results.mkdir()
    try:
        usage = watch(_train, scale, results, log=folder / "log")
    finally:
        shutil.rmtree(results)
    if usage.exit_code:
        raise RuntimeError(f"{scale.name}: {usage.message}")
    return Watched(scale, usage)


def trainings_table(watched: Sequence[Watched]) -> Table:
    """Each training's figures."""
    rows = [
        {
            "training": one.scale.name,
            "probe": one.scale.probe,
            "budget, MiB": str(one.scale.budget_mib),
            "peak, MiB": f"{one.taken_nbytes / _MIB:.0f}",
            "above libraries, of the budget": f"{one.ratio:.2f}",
        }
        for one in watched
    ]
    return Table(
        f"peak memory of a training with statistics and files (RssAnon above its input; libraries: "
        f"{_OTHER_NBYTES // _MIB} MiB)",
        rows,
    )


def trainings_limit(watched: Sequence[Watched]) -> Limit:
    """How much of the budget is taken at most."""
    return Limit("peak memory of a training / budget", 1.0, Spread.of([max(one.ratio for one in watched)]))


def _train(ready: Callable[[], None], scale: Scale, folder: Path) -> None:
    # The libraries' own buffers are theirs for good once they have been used.
    _fit(Scale(200, 2, scale.n_classes and 2, 0, "auto", 64), make_sources(200, 2, scale.n_classes and 2), folder)
    sources = make_sources(scale.n_samples, scale.n_cells, scale.n_classes)
    ready()
    _fit(scale, sources, folder)


Sources = tuple[
    ArrayCellSource, Float64[np.ndarray, " train_sample"], ArrayCellSource, Float64[np.ndarray, " test_sample"]
]


def make_sources(n_samples: int, n_cells: int, n_classes: int) -> Sources:
    """Training cells and labels, test cells and labels; every class in each."""
    cells = make_cells(n_samples, _N_FEATURES, n_cells)
    train, test = cells.sources()
    if n_classes > cells.test.shape[0]:
        test, cells = train, replace(cells, test_labels=cells.train_labels)
    return train, _classes(cells.train_labels, n_classes), test, _classes(cells.test_labels, n_classes)


def _classes(labels: Float64[np.ndarray, " sample"], n_classes: int) -> Float64[np.ndarray, " sample"]:
    """Classes of as many rows each, by their labels."""
    if not n_classes:
        return labels
    return (labels.argsort().argsort() * n_classes // len(labels)).astype(np.float64)


def _fit(scale: Scale, sources: Sources, folder: Path) -> None:
    train, train_labels, test, test_labels = sources
    options = SweepOptions(
        probe=scale.probe, task_type="classification" if scale.n_classes else "regression", k_fold=True,
        n_folds=scale.n_folds, permutations=scale.n_shuffles, device="cpu", budget_bytes=scale.budget_mib * _MIB,
        spill_folder=folder,
    )  # fmt: skip
    planned = plan_sweep(train, {"y": train_labels}, test, {"y": test_labels}, **vars(options))
    check_statistics(planned.workloads, planned.memory)
    (result,) = planned.run().values()
    infer(result, train, test, replace(options, budget_bytes=planned.memory.free_nbytes), About())
    save_sweep(result, folder)
