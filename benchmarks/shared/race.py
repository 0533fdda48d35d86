"""Times of the same work by several contenders, in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.shared.cells import Cells
from benchmarks.shared.measure import Spread
from benchmarks.shared.peers import N_FOLDS, SEED
from gpu_probes import SweepResult, sweep

OURS = "ours"


@dataclass(frozen=True)
class Contender:
    """Something that does the work of one cell, or a part of it."""

    action: Callable[[], object]
    scale: float = 1.0
    is_slow: bool = False


@dataclass(frozen=True)
class Race:
    """Seconds per cell of each contender, round by round."""

    seconds: Mapping[str, Sequence[float]]

    @property
    def ours(self) -> Spread:
        """Seconds of ours."""
        return Spread.of(self.seconds[OURS])

    def ratio(self, name: str) -> Spread:
        """How many times as long a contender took as ours, from the ratios within each round."""
        pairs = zip(self.seconds[name], self.seconds[OURS], strict=False)
        return Spread.of([theirs / ours for theirs, ours in pairs])


def sweep_cells(cells: Cells, alphas: Sequence[float], device: str) -> SweepResult:
    """Ours: every cell, with its folds."""
    train, test = cells.sources()
    return sweep(
        *(train, cells.train_labels, test, cells.test_labels),
        alphas=alphas, k_fold=True, n_folds=N_FOLDS, seed=SEED, nested_cv=False, device=device,
    )  # fmt: skip


def race(
    cells: Cells, alphas: Sequence[float], device: str, contenders: Mapping[str, Contender], n_rounds: int
) -> tuple[SweepResult, Race]:
    """Time ours and the others in turn; slow ones in the first round only. A round of ours before warms up."""
    result = sweep_cells(cells, alphas, device)
    seconds: dict[str, list[float]] = {name: [] for name in (OURS, *contenders)}
    for round_idx in range(n_rounds):
        seconds[OURS].append(seconds_of(sweep_cells, cells, alphas, device) / cells.n_cells)
        for name, contender in contenders.items():
            if round_idx == 0 or not contender.is_slow:
                seconds[name].append(contender.scale * seconds_of(contender.action))
    return result, Race(seconds)


def seconds_of(action: Callable[..., object], *arguments: object) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    action(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def geometric_mean(spreads: Sequence[Spread]) -> Spread:
    """Of the medians, of the lowest and of the highest."""

    def mean(figures: Sequence[float]) -> float:
        return math.exp(sum(map(math.log, figures)) / len(figures))

    return Spread(*(mean([getattr(spread, field) for spread in spreads]) for field in ("median", "low", "high")))
