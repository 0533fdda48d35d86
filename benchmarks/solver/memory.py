"""Memory of a sweep: the planner's prediction against what the process takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.shared.cells import make_cells
from benchmarks.shared.measure import Limit, Spread, Table
from benchmarks.shared.process import Usage, watch
from gpu_probes import Cell, sweep
from gpu_probes.search.planner import Workload, plan_blocks

N_FOLDS = 5
_MIB = 2**20


@dataclass(frozen=True)
class Load:
    """A sweep that is watched."""

    n_samples: int
    n_features: int
    n_cells: int
    alphas: tuple[float, ...]
    is_regression: bool
    budget_bytes: int

    @property
    def name(self) -> str:
        """What it does."""
        task = "ridge" if self.is_regression else "logistic"
        return f"{task}, {self.n_samples} x {self.n_features}, {len(self.alphas)} alphas"


@dataclass(frozen=True)
class Measured:
    """Bytes that were foretold and bytes that were taken."""

    load: Load
    predicted_nbytes: int
    usage: Usage

    @property
    def ratio(self) -> float:
        """Taken by foretold."""
        return (self.usage.peak_nbytes - self.usage.ready_nbytes) / self.predicted_nbytes


def measure_memory(load: Load, log: Path) -> Measured:
    """Run a sweep in a process of its own.

    Raises
    ------
    RuntimeError
        It failed.
    """
    usage = watch(_sweep, load, log=log)
    if usage.exit_code:
        raise RuntimeError(f"{load.name}: {usage.message}")
    return Measured(load, _predict(load), usage)


def memory_table(measured: Sequence[Measured]) -> Table:
    """Each sweep's figures."""
    rows = [
        {
            "sweep": one.load.name,
            "cells": str(one.load.n_cells),
            "budget, MiB": f"{one.load.budget_bytes / _MIB:.0f}",
            "predicted, MiB": f"{one.predicted_nbytes / _MIB:.0f}",
            "measured, MiB": f"{(one.usage.peak_nbytes - one.usage.ready_nbytes) / _MIB:.0f}",
            "measured / predicted": f"{one.ratio:.2f}",
        }
        for one in measured
    ]
    return Table("peak memory of a sweep (RssAnon above what its input takes), the result included", rows)


def memory_limit(measured: Sequence[Measured]) -> Limit:
    """How far a prediction may be off."""
    off = [abs(one.ratio - 1) for one in measured]
    return Limit("measured / predicted peak memory: furthest from 1", 0.2, Spread.of([max(off)]))


def _sweep(ready: Callable[[], None], load: Load) -> None:
    cells = make_cells(load.n_samples, load.n_features, load.n_cells)
    if not load.is_regression:
        cells = cells.binary()
    train, test = cells.sources()
    # The libraries' own buffers are theirs for good once they have been used.
    small = make_cells(200, 50, 2)
    sweep(small.sources()[0], small.train_labels, device="cpu")
    ready()
    sweep(
        *(train, cells.train_labels, test, cells.test_labels),
        alphas=load.alphas, k_fold=True, n_folds=N_FOLDS, nested_cv=False, device="cpu", budget_bytes=load.budget_bytes,
    )  # fmt: skip


def _predict(load: Load) -> int:
    workload = Workload(
        n_train=load.n_samples,
        n_test=load.n_samples // 5,
        n_features=load.n_features,
        n_outputs=1,
        n_targets=1,
        n_alphas=len(load.alphas),
        n_folds=N_FOLDS,
        probe="ridge" if load.is_regression else "logistic",
    )
    cells = [Cell(layer, -1) for layer in range(load.n_cells)]
    n_workers = torch.get_num_threads()
    plan = plan_blocks(cells, workload, budget_bytes=load.budget_bytes, n_workers=n_workers, joins_cells=False)
    return plan.predicted_bytes + _result_nbytes(load)


def _result_nbytes(load: Load) -> int:
    """The probe, and three predictions for the training rows and one for the test rows, of every cell."""
    return load.n_cells * np.dtype(np.float64).itemsize * (load.n_features + 2 * load.n_samples + load.n_samples // 5)
