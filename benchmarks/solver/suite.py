"""All parts in turn, and how large each is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Report, Spread, StealClock, Table, Target, hardware, progress
from benchmarks.solver.data import Cells, make_cells
from benchmarks.solver.exactness import check_logistic, check_ridge
from benchmarks.solver.floor import floor_s, measure_rates
from benchmarks.solver.peers import gram_per_fold, logistic_as_it_was, logistic_converged, loop, ridge
from gpu_probes import SweepResult, sweep

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")
RIDGE_GRID = tuple(float(alpha) for alpha in np.logspace(-2, 5, 10))
LOGISTIC_GRID = tuple(float(alpha) for alpha in np.logspace(0, 5, 10))


@dataclass(frozen=True)
class Size:
    """Shapes that are fitted, on how many cells and how often; peers are timed on one cell and a few of the alphas."""

    ridge_shapes: tuple[tuple[int, int], ...]
    logistic_shapes: tuple[tuple[int, int], ...]
    n_cells: int
    n_rounds: int


SHAPES = ((1000, 576), (8000, 576), (2000, 1536), (8000, 1536), (1000, 4096))
FULL = Size(SHAPES, SHAPES[:4], n_cells=4, n_rounds=3)
QUICK = Size(((200, 40), (40, 90)), ((200, 40),), n_cells=2, n_rounds=1)


@dataclass(frozen=True)
class Race:
    """Seconds per cell of each contender, round by round."""

    seconds: dict[str, list[float]]

    def ratio(self, name: str) -> Spread:
        """How many times as long a contender took as ours, from the ratios within each round."""
        return Spread.of([theirs / ours for theirs, ours in zip(self.seconds[name], self.seconds["ours"], strict=True)])


def measure_solver(size: Size, folder: Path, device: str) -> Report:
    """Run everything."""
    clock = StealClock()
    tables, targets, setting = [], [], {}
    for n_alphas, wanted in ((1, (5, 3, 0.6)), (10, (14, 8, 0.6))):
        rows, exact = _ridge_rows(size, n_alphas, device)
        tables.append(Table(f"ridge, {n_alphas} alphas: times of ours, per cell", rows))
        setting |= exact
        names = ("original, float64", "original, float32", "floor")
        targets += [
            Target(f"ridge, {n_alphas} alphas, geometric mean: {name} / ours", at_least, _geometric_mean(rows, name))
            for name, at_least in zip(names, wanted, strict=True)
        ]
    for n_alphas in (1, 10):
        rows, exact = _logistic_rows(size, n_alphas, device)
        tables.append(Table(f"logistic, {n_alphas} alphas: times of ours, per cell", rows))
        setting |= exact
        targets += [
            Target(f"logistic, {n_alphas} alphas, geometric mean: {name} / ours", at_least, _geometric_mean(rows, name))
            for name, at_least in (("newton-cholesky", 10), ("original", 40))
        ]
    setting |= {"device": device, **asdict(size), "cpu stolen, %": clock.percent()}
    return Report("solver", hardware(folder, LIBRARIES), setting, tables, targets)


def _ridge_rows(size: Size, n_alphas: int, device: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    grid, rows, exact = _grid(RIDGE_GRID, n_alphas), [], {}
    for n_samples, n_features in size.ridge_shapes:
        progress(f"ridge, {n_samples} x {n_features}, {n_alphas} alphas")
        cells = make_cells(n_samples, n_features, size.n_cells)
        few = grid[::3]
        scale = len(grid) / len(few)
        contenders: dict[str, tuple[Callable[[], object], float]] = {
            "original, float64": (partial(loop, cells, 1, few, np.float64, ridge), scale),
            "original, float32": (partial(loop, cells, 1, few, np.float32, ridge), scale),
            "Gram per fold": (partial(gram_per_fold, cells, 1, grid), 1.0),
        }
        result, race = _race(cells, grid, device, contenders, size.n_rounds)
        floor = floor_s(n_samples, n_features, n_alphas, measure_rates(min(n_samples, n_features)))
        race.seconds["floor"] = [floor] * size.n_rounds
        rows.append(_row(n_samples, n_features, race))
        exact[f"ridge {n_samples} x {n_features}, {n_alphas} alphas"] = check_ridge(result, cells)
    return rows, exact


def _logistic_rows(size: Size, n_alphas: int, device: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    grid, rows, exact = _grid(LOGISTIC_GRID, n_alphas), [], {}
    for n_samples, n_features in size.logistic_shapes:
        progress(f"logistic, {n_samples} x {n_features}, {n_alphas} alphas")
        cells = make_cells(n_samples, n_features, size.n_cells).binary()
        few = grid[::4]
        scale = len(grid) / len(few)
        contenders: dict[str, tuple[Callable[[], object], float]] = {
            "newton-cholesky": (
                partial(loop, cells, 1, few, np.float64, logistic_converged),
                scale,
            ),
            "original": (partial(loop, cells, 1, few, np.float32, logistic_as_it_was), scale),
        }
        result, race = _race(cells, grid, device, contenders, 1)
        rows.append(_row(n_samples, n_features, race))
        exact[f"logistic {n_samples} x {n_features}, {n_alphas} alphas"] = check_logistic(result, cells)
    return rows, exact


def _grid(grid: Sequence[float], n_alphas: int) -> tuple[float, ...]:
    return tuple(grid) if n_alphas > 1 else (100.0,)


def _race(
    cells: Cells,
    grid: tuple[float, ...],
    device: str,
    contenders: dict[str, tuple[Callable[[], object], float]],
    n_rounds: int,
) -> tuple[SweepResult, Race]:
    """Time ours and the others in turn; a first round of ours warms up."""
    train, test = cells.sources()

    def ours() -> SweepResult:
        return sweep(train, cells.train_labels, test, cells.test_labels, alphas=grid, k_fold=True, device=device)

    result, seconds = ours(), {name: [] for name in ("ours", *contenders)}
    for _ in range(n_rounds):
        seconds["ours"].append(_seconds(ours) / cells.n_cells)
        for name, (action, scale) in contenders.items():
            seconds[name].append(scale * _seconds(action))
    return result, Race(seconds)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _row(n_samples: int, n_features: int, race: Race) -> dict[str, Any]:
    return {
        "shape": f"{n_samples} x {n_features}",
        "ours, s": Spread.of(race.seconds["ours"]),
        **{name: race.ratio(name) for name in race.seconds if name != "ours"},
    }


def _geometric_mean(rows: Sequence[dict[str, Any]], name: str) -> Spread:
    def mean(figures: Sequence[float]) -> float:
        return math.exp(sum(map(math.log, figures)) / len(figures))

    spreads: list[Spread] = [row[name] for row in rows]
    return Spread(
        mean([spread.median for spread in spreads]),
        mean([spread.low for spread in spreads]),
        mean([spread.high for spread in spreads]),
    )
