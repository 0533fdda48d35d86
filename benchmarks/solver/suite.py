"""All parts in turn, and how large each is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from activation_store.extraction.extract import Extraction
from activation_store.store.reader import ActivationStore
from benchmarks.shared.cells import Cells, make_cells, make_hostile_cells
from benchmarks.shared.measure import (
    Limit,
    Report,
    Spread,
    StealClock,
    Table,
    Target,
    hardware,
    progress,
    scratch_folder,
)
from benchmarks.shared.peers import (
    gram_per_fold,
    himalaya,
    logistic_as_it_was,
    logistic_converged,
    loop,
    ridge,
    ridge_of_all_alphas,
)
from benchmarks.shared.prompts import DATA
from benchmarks.shared.race import Contender, Race, geometric_mean, race
from benchmarks.solver.exactness import (
    LOGISTIC_LIMIT,
    RIDGE_LIMIT,
    errors_limits,
    errors_table,
    logistic_excess,
    measure_errors,
    ridge_error,
)
from benchmarks.solver.floor import Rates, floor_s, measure_rates, n_operations
from benchmarks.solver.memory import Load, measure_memory, memory_limit, memory_table
from benchmarks.solver.outliers import measure_outliers, outliers_limits, outliers_table
from benchmarks.solver.rows import ManyRows, measure_many_rows, rows_table, rows_target
from benchmarks.solver.scaling import growth_limits, growth_table, measure_growth
from benchmarks.solver.trainings import Scale, trainings_limit, trainings_table, watch_training

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "himalaya")
RIDGE_GRID = tuple(float(alpha) for alpha in np.logspace(-2, 5, 10))
LOGISTIC_GRID = tuple(float(alpha) for alpha in np.logspace(0, 5, 10))
# For one alpha.
ONE_ALPHA = (100.0,)
F64, F32, GRAM, ALL_ALPHAS, HIMALAYA = (
    "original, float64", "original, float32", "Gram per fold", "Ridge of all alphas", "himalaya",
)  # fmt: skip
FLOOR, NEWTON, ORIGINAL = "floor", "newton-cholesky", "original"
SHAPES = ((1000, 576), (8000, 576), (2000, 1536), (8000, 1536), (1000, 4096))


@dataclass(frozen=True)
class Size:
    """How large the parts are.

    Parameters
    ----------
    ridge_shapes, logistic_shapes : tuple of (rows, features)
        Of the races; peers are timed on one cell and a few of the alphas.
    n_cells, n_rounds : int
        Of the races.
    growth : tuple of (rows, features, cells)
        The smallest of the sweeps that grow.
    loads : tuple of Load
        Sweeps whose memory is watched.
    scales : tuple of Scale
        Trainings whose memory is watched.
    many : ManyRows
        More rows than fit.
    hostile : tuple of (rows, features)
    embedded_layers : tuple of int
        Of the embedded model; none: it is left out.
    n_logistic : int
        Cells of the embedded model whose logistic fits are compared.
    """

    ridge_shapes: tuple[tuple[int, int], ...]
    logistic_shapes: tuple[tuple[int, int], ...]
    n_cells: int
    n_rounds: int
    growth: tuple[int, int, int]
    loads: tuple[Load, ...]
    scales: tuple[Scale, ...]
    many: ManyRows
    hostile: tuple[int, int]
    embedded_layers: tuple[int, ...]
    n_logistic: int

    @property
    def disk_nbytes(self) -> int:
        """Room for the many rows, twice."""
        return 4 * self.many.n_samples * self.many.n_features * self.many.n_cells


_GIB = 2**30
FULL = Size(
    SHAPES,
    SHAPES[:4],
    n_cells=4,
    n_rounds=3,
    growth=(1500, 576, 4),
    loads=(
        Load(8000, 576, 6, ONE_ALPHA, True, 8 * _GIB),
        Load(8000, 576, 6, RIDGE_GRID, True, 8 * _GIB),
        Load(8000, 1536, 4, RIDGE_GRID, True, 8 * _GIB),
        Load(1000, 4096, 4, RIDGE_GRID, True, 8 * _GIB),
        Load(40_000, 1536, 2, ONE_ALPHA, True, _GIB // 2),
        Load(8000, 576, 4, LOGISTIC_GRID, False, 8 * _GIB),
        Load(2000, 1536, 2, LOGISTIC_GRID, False, 8 * _GIB),
        Load(800, 1536, 8, LOGISTIC_GRID, False, 8 * _GIB),
        Load(40_000, 576, 2, ONE_ALPHA, False, _GIB // 4),
    ),
    scales=(
        Scale(1000, 20, 0, 0, "auto", 64),
        Scale(30_000, 20, 0, 0, "auto", 64),
        Scale(300_000, 20, 0, 0, "auto", 256),
        Scale(100_000, 4, 2, 0, "auto", 512),
        Scale(1500, 20, 20, 0, "lda", 256),
        Scale(1200, 2, 300, 0, "lda", 512, n_folds=2),
        Scale(1200, 2, 300, 0, "mass_mean", 512, n_folds=2),
        Scale(1000, 200, 0, 0, "auto", 64),
        Scale(1000, 2000, 0, 0, "auto", 64),
        Scale(10_000, 2, 0, 100, "auto", 64),
        Scale(10_000, 2, 0, 1000, "auto", 256),
    ),
    many=ManyRows(1_000_000, 1536, 2, 4 * _GIB),
    hostile=(2000, 300),
    embedded_layers=tuple(range(0, 31, 5)),
    n_logistic=8,
)
QUICK = Size(
    ((200, 40), (40, 90)),
    ((200, 40),),
    n_cells=2,
    n_rounds=1,
    growth=(100, 20, 2),
    loads=(Load(3000, 200, 2, ONE_ALPHA, True, _GIB),),
    scales=(Scale(1000, 20, 0, 0, "auto", 64), Scale(600, 2, 30, 0, "lda", 256)),
    many=ManyRows(20_000, 30, 1, _GIB),
    hostile=(200, 30),
    embedded_layers=(),
    n_logistic=1,
)


@dataclass
class Findings:
    """What the parts have found so far."""

    tables: list[Table] = field(default_factory=list)
    targets: list[Target | Limit] = field(default_factory=list)


def measure_solver(size: Size, parts: Sequence[str], folder: Path, device: str) -> Report:
    """Run some of the `PARTS`."""
    clock, found = StealClock(), Findings()
    with scratch_folder(folder, size.disk_nbytes) as scratch:
        for name in parts:
            PARTS[name](size, scratch, device, found)
    setting = {
        "device": device,
        "parts": ", ".join(parts),
        "folds": 5,
        "cells of a race": size.n_cells,
        "rounds": size.n_rounds,
        "cpu stolen, %": clock.percent(),
    }
    return Report("solver", hardware(folder, LIBRARIES), setting, found.tables, found.targets)


def _ridge(size: Size, folder: Path, device: str, found: Findings) -> None:
    rates = {shape: measure_rates(min(shape)) for shape in size.ridge_shapes}
    for grid, wanted in ((ONE_ALPHA, {F64: 5.0, F32: 3.0}), (RIDGE_GRID, {F64: 14.0, F32: 8.0})):
        races, rows, errors = [], [], []
        for shape in size.ridge_shapes:
            progress(f"ridge, {shape[0]} x {shape[1]}, {len(grid)} alphas")
            cells, few = make_cells(*shape, size.n_cells), grid[::3]
            scale = len(grid) / len(few)
            contenders = {
                F64: Contender(partial(loop, cells, 1, few, np.float64, ridge), scale),
                F32: Contender(partial(loop, cells, 1, few, np.float32, ridge), scale),
                GRAM: Contender(partial(gram_per_fold, cells, 1, grid)),
                ALL_ALPHAS: Contender(partial(ridge_of_all_alphas, cells, 1, grid)),
                HIMALAYA: Contender(partial(himalaya, cells, 1, grid), is_slow=True),
            }
            result, times = race(cells, grid, device, contenders, size.n_rounds)
            races.append(_with_floor(times, shape, len(grid), rates[shape]))
            errors.append(ridge_error(result, cells))
            share = {"of GEMM rate": f"{_gemm_share(times, shape, len(grid), rates[shape]):.2f}"}
            rows.append(_row(shape, races[-1]) | share | {"off, sd": f"{errors[-1]:.0e}"})
        name = f"ridge, {len(grid)} alpha{'s'[: len(grid) > 1]}"
        found.tables.append(Table(f"{name}: seconds of ours per cell; times of ours", rows))
        found.targets += _mean_targets(name, races, wanted | {FLOOR: 0.8})
        slowest = min(r.ratio(peer).median for r in races for peer in (F64, GRAM, ALL_ALPHAS, HIMALAYA))
        found.targets.append(Target(f"{name}: no peer in float64 is faster at any shape", 1.0, Spread.of([slowest])))
        found.targets.append(Limit(f"{name}: off an SVD's predictions, sd", RIDGE_LIMIT, Spread.of([max(errors)])))


def _logistic(size: Size, folder: Path, device: str, found: Findings) -> None:
    for grid in (ONE_ALPHA, LOGISTIC_GRID):
        races, rows, excesses = [], [], []
        for shape in size.logistic_shapes:
            progress(f"logistic, {shape[0]} x {shape[1]}, {len(grid)} alphas")
            cells, few = make_cells(*shape, size.n_cells).binary(), grid[::4]
            scale = len(grid) / len(few)
            contenders = {
                NEWTON: Contender(partial(loop, cells, 1, few, np.float64, logistic_converged), scale, is_slow=True),
                ORIGINAL: Contender(partial(loop, cells, 1, few, np.float32, logistic_as_it_was), scale, is_slow=True),
            }
            result, times = race(cells, grid, device, contenders, size.n_rounds)
            races.append(times)
            excesses.append(logistic_excess(result, cells))
            rows.append(_row(shape, times) | {"objective, relative": f"{excesses[-1]:+.0e}"})
        name = f"logistic, {len(grid)} alpha{'s'[: len(grid) > 1]}"
        found.tables.append(Table(f"{name}: seconds of ours per cell; times of ours", rows))
        found.targets += _mean_targets(name, races, {NEWTON: 10.0, ORIGINAL: 40.0})
        found.targets.append(
            Limit(f"{name}: objective above newton-cholesky's", LOGISTIC_LIMIT, Spread.of([max(excesses)]))
        )


def _growth(size: Size, folder: Path, device: str, found: Findings) -> None:
    progress("growth")
    growth = measure_growth(*size.growth, n_rounds=size.n_rounds, device=device)
    found.tables.append(growth_table(growth))
    found.targets += growth_limits(growth)


def _memory(size: Size, folder: Path, device: str, found: Findings) -> None:
    measured = []
    for load in size.loads:
        progress(f"memory: {load.name}")
        measured.append(measure_memory(load, folder / "log"))
    found.tables.append(memory_table(measured))
    found.targets.append(memory_limit(measured))
    watched = []
    for scale in size.scales:
        progress(f"memory: {scale.name}")
        watched.append(watch_training(scale, folder))
    found.tables.append(trainings_table(watched))
    found.targets.append(trainings_limit(watched))


def _many_rows(size: Size, folder: Path, device: str, found: Findings) -> None:
    progress(f"{size.many.n_samples:,} rows")
    fitted = measure_many_rows(size.many, folder)
    found.tables.append(rows_table(size.many, fitted))
    found.targets.append(rows_target(size.many, fitted))


def _accuracy(size: Size, folder: Path, device: str, found: Findings) -> None:
    progress("accuracy: features that ruin a solver")
    hostile = make_hostile_cells(*size.hostile)
    errors = [measure_errors("collinear, duplicate, constant features", hostile, n_logistic=1, device=device)]
    progress("accuracy: outliers")
    outliers = measure_outliers(*size.hostile, device=device)
    found.tables.append(outliers_table(outliers))
    found.targets += outliers_limits(outliers)
    if size.embedded_layers:
        progress("accuracy: the embedded model")
        cells = _embedded(folder, size.embedded_layers)
        for name, part in (("embedded model", cells), ("embedded model, positions pooled", _pooled(cells))):
            errors.append(measure_errors(name, part, n_logistic=size.n_logistic, device=device))
    found.tables += [errors_table(one) for one in errors]
    found.targets += [limit for one in errors for limit in errors_limits(one)]


PARTS: Mapping[str, Callable[[Size, Path, str, Findings], None]] = {
    "ridge": _ridge,
    "logistic": _logistic,
    "growth": _growth,
    "memory": _memory,
    "rows": _many_rows,
    "accuracy": _accuracy,
}


def _embedded(folder: Path, layers: Sequence[int]) -> Cells:
    """Some layers and all positions of the embedded model's activations."""
    stores: list[ActivationStore] = []
    for split in ("train", "test"):
        dataset, output = DATA / f"success_smollm2_{split}.parquet", folder / f"{split}.zarr"
        stores.append(Extraction("smollm2", dataset, output, layers=list(layers), use_chat_template=True).run())
    arrays = [np.asarray(store[:]) for store in stores]
    labels = [store.labels["success_rate"].to_numpy(np.float64) for store in stores]
    return Cells(arrays[0], arrays[1], labels[0], labels[1])


def _pooled(cells: Cells) -> Cells:
    """Each layer's positions as rows of one cell, so that there are more rows than features."""
    n_positions = cells.train.shape[2]
    train, test = (
        np.moveaxis(rows, 2, 1).reshape(-1, rows.shape[1], 1, rows.shape[3]) for rows in (cells.train, cells.test)
    )
    return Cells(train, test, *(np.repeat(labels, n_positions) for labels in (cells.train_labels, cells.test_labels)))


def _with_floor(times: Race, shape: tuple[int, int], n_alphas: int, rates: Rates) -> Race:
    floor = floor_s(*shape, n_alphas, rates)
    return Race({**times.seconds, FLOOR: [floor] * len(times.seconds["ours"])})


def _gemm_share(times: Race, shape: tuple[int, int], n_alphas: int, rates: Rates) -> float:
    """Operations that cannot be done without, per second, by the rate of the matrix product."""
    return n_operations(*shape, n_alphas) / times.ours.median / rates.gemm


def _row(shape: tuple[int, int], times: Race) -> dict[str, Any]:
    ratios = {name: times.ratio(name) for name in times.seconds if name != "ours"}
    return {"shape": f"{shape[0]} x {shape[1]}", "ours, s": times.ours, **ratios}


def _mean_targets(name: str, races: Sequence[Race], wanted: Mapping[str, float]) -> list[Target]:
    return [
        Target(f"{name}, geometric mean: {peer} / ours", at_least, geometric_mean([r.ratio(peer) for r in races]))
        for peer, at_least in wanted.items()
    ]
