"""A million rows in little memory: cells in a file, fitted by a process that is not allowed more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shared.cells import Activations
from benchmarks.shared.measure import Spread, Table, Target, WrongResultError
from benchmarks.shared.process import Usage, watch
from gpu_probes import ArrayCellSource, sweep

_CHUNK_ROWS = 20_000
_ALPHA = 1000.0
# Left for the interpreter, the libraries and the result.
_OTHER_NBYTES = 2**29


@dataclass(frozen=True)
class ManyRows:
    """How many rows, and the memory that is allowed."""

    n_samples: int
    n_features: int
    n_cells: int
    limit_nbytes: int


@dataclass(frozen=True)
class Fitted:
    """One task's run."""

    task: str
    seconds: float
    usage: Usage


def measure_many_rows(many: ManyRows, folder: Path) -> list[Fitted]:
    """Write the cells, fit them by ridge and logistic regression, and check what comes out.

    Raises
    ------
    WrongResultError
        A score is missing or a ridge probe is not scikit-learn's.
    """
    array, labels = folder / "cells.npy", folder / "labels.npy"
    _write(many, array, labels)
    out = []
    for task in ("regression", "classification"):
        started = time.perf_counter()
        usage = watch(_fit, many, array, labels, task, log=folder / "log", limit_nbytes=many.limit_nbytes)
        out.append(Fitted(task, time.perf_counter() - started, usage))
    return out


def rows_table(many: ManyRows, fitted: list[Fitted]) -> Table:
    """Each task's figures."""
    rows = [
        {
            "task": one.task,
            "seconds": f"{one.seconds:.0f}",
            "at its start, MiB": f"{one.usage.ready_nbytes / 2**20:.0f}",
            "peak, MiB": f"{one.usage.peak_nbytes / 2**20:.0f}",
            "result": "done" if not one.usage.exit_code else f"failed with {one.usage.exit_code}: {one.usage.message}",
        }
        for one in fitted
    ]
    title = (
        f"{many.n_cells} cells of {many.n_samples:,} x {many.n_features} in float16, 5 folds, one alpha, under "
        f"{many.limit_nbytes / 2**30:g} GiB of anonymous memory (RLIMIT_DATA); peak RssAnon"
    )
    return Table(title, rows)


def rows_target(many: ManyRows, fitted: list[Fitted]) -> Target:
    """Both must be done."""
    n_done = sum(not one.usage.exit_code for one in fitted)
    return Target(f"{many.n_samples:,} rows: tasks of 2 that succeed", 2, Spread.of([n_done]))


def _write(many: ManyRows, path: Path, labels_path: Path) -> None:
    activations = Activations(many.n_features)
    shape = (many.n_samples, many.n_cells, 1, many.n_features)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    labels = np.empty(many.n_samples)
    for start in range(0, many.n_samples, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, many.n_samples)
        # Three features at 200 times the others' size would overflow float16 in some row of a million.
        rows = activations.draw(stop - start, shape[1:3]).clip(-60_000, 60_000)
        array[start:stop], labels[start:stop] = rows, activations.label(rows[:, 0, 0])
    np.save(labels_path, labels)


def _fit(ready: Callable[[], None], many: ManyRows, path: Path, labels_path: Path, task: str) -> None:
    array, labels = np.load(path, mmap_mode="r"), np.load(labels_path)
    if task == "classification":
        labels = np.greater(labels, 0).astype(np.float64)
    ready()
    result = sweep(
        ArrayCellSource(array), labels,
        alpha=_ALPHA, k_fold=True, nested_cv=False, device="cpu", budget_bytes=many.limit_nbytes - _OTHER_NBYTES,
    )  # fmt: skip
    if not np.isfinite(result.cv_score).all() or not (result.certificate <= 1e-10).all():
        raise WrongResultError(f"{result!r}: not every cell was fitted")
    if task == "regression":
        _check_ridge(result.coef[0, 0, 0], array, labels)


def _check_ridge(coef: np.ndarray, array: np.ndarray, labels: np.ndarray) -> None:
    """Compare a probe with the normal equations in NumPy, summed up a few rows at a time."""
    n_features = array.shape[-1]
    gram, side = np.zeros((n_features, n_features)), np.zeros(n_features)
    for start in range(0, len(labels), _CHUNK_ROWS):
        part = array[start : start + _CHUNK_ROWS, 0, 0].astype(np.float64)
        gram += part.T @ part
        side += part.T @ labels[start : start + _CHUNK_ROWS]
    expected = np.linalg.solve(gram + _ALPHA * np.eye(n_features), side)
    off = np.abs(array[:_CHUNK_ROWS, 0, 0].astype(np.float64) @ (coef - expected)).max() / labels.std()
    if not off <= 1e-6:
        raise WrongResultError(f"predictions are off by {off:.1e} deviations of the labels")
