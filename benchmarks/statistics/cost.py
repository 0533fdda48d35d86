"""Nested cross-validation and permutations against the plain sweep, in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shared.cells import make_cells
from benchmarks.shared.measure import Limit, Spread, Table
from gpu_probes import sweep

PLAIN, NESTED, SHUFFLED = "plain", "nested CV", "permutations"
_NESTED = {PLAIN: False, NESTED: True, SHUFFLED: False}


@dataclass(frozen=True)
class Job:
    """A sweep whose additions are timed."""

    n_samples: int
    n_features: int
    n_cells: int
    alphas: tuple[float, ...]
    classes: bool
    n_permutations: int

    def __str__(self) -> str:
        kind = "logistic" if self.classes else "ridge"
        return f"{kind}, {self.n_samples} x {self.n_features}, {len(self.alphas)} alphas"


@dataclass(frozen=True)
class Cost:
    """Seconds of each variant in each round."""

    job: Job
    seconds: dict[str, list[float]]

    def ratio(self, name: str) -> Spread:
        """How many times as long as the plain sweep, from the ratios within each round."""
        return Spread.of([a / b for a, b in zip(self.seconds[name], self.seconds[PLAIN], strict=True)])


def measure_cost(job: Job, n_rounds: int, device: str) -> Cost:
    """Time the variants in turn, after a round that is not counted."""
    cells = make_cells(job.n_samples, job.n_features, job.n_cells)
    cells = cells.binary() if job.classes else cells
    train, test = cells.sources()
    seconds: dict[str, list[float]] = {name: [] for name in _NESTED if name != SHUFFLED or job.n_permutations}
    for round_idx in range(n_rounds + 1):
        for name in seconds:
            started = time.perf_counter()
            sweep(
                train,
                cells.train_labels,
                test,
                cells.test_labels,
                k_fold=True,
                alphas=job.alphas,
                device=device,
                nested_cv=_NESTED[name],
                permutations=job.n_permutations if name == SHUFFLED else 0,
            )
            if round_idx:
                seconds[name].append(time.perf_counter() - started)
    return Cost(job, seconds)


def cost_table(costs: Sequence[Cost]) -> Table:
    """A row for each sweep."""
    rows = [
        {
            "sweep": str(cost.job),
            "plain, s": f"{np.median(cost.seconds[PLAIN]):.2f}",
            "with nested CV / plain": str(cost.ratio(NESTED)),
            "permutations": str(cost.job.n_permutations or "-"),
            "with permutations / plain": str(cost.ratio(SHUFFLED)) if cost.job.n_permutations else "-",
        }
        for cost in costs
    ]
    return Table("cost: times the plain sweep", rows)


@dataclass(frozen=True)
class ShuffleCost:
    """Seconds that permutations add to the same sweep of numbers (0), and of so many classes, in each round."""

    n_permutations: int
    seconds: dict[int, list[float]]

    def ratio(self, n_classes: int) -> Spread:
        """How many times as long as for numbers, from the ratios within each round."""
        return Spread.of([a / b for a, b in zip(self.seconds[n_classes], self.seconds[0], strict=True)])


def measure_shuffles(job: Job, n_rounds: int, device: str) -> ShuffleCost:
    """Time permutations of numbers, two classes and four on the same rows, after a round that is not counted."""
    cells = make_cells(job.n_samples, job.n_features, job.n_cells)
    train, _ = cells.sources()
    labels = {0: cells.train_labels}
    for n_classes in (2, 4):
        edges = np.quantile(cells.train_labels, np.arange(1, n_classes) / n_classes)
        labels[n_classes] = np.digitize(cells.train_labels, edges).astype(float)
    seconds: dict[int, list[float]] = {kind: [] for kind in labels}
    for round_idx in range(n_rounds + 1):
        for kind, values in labels.items():
            times = []
            for n_permutations in (0, job.n_permutations):
                started = time.perf_counter()
                sweep(
                    train,
                    values,
                    k_fold=True,
                    nested_cv=False,
                    alphas=job.alphas,
                    permutations=n_permutations,
                    device=device,
                )
                times.append(time.perf_counter() - started)
            if round_idx:
                # A sweep of few and small cells can take less time with them than without.
                seconds[kind].append(max(times[1] - times[0], 1e-6))
    return ShuffleCost(job.n_permutations, seconds)


def shuffle_table(cost: ShuffleCost) -> Table:
    """A row for each kind of labels."""
    rows = [
        {
            "labels": f"{kind} classes" if kind else "numbers",
            f"{cost.n_permutations} permutations, s": f"{np.median(seconds):.2f}",
            "times those of numbers": str(cost.ratio(kind)),
        }
        for kind, seconds in cost.seconds.items()
    ]
    return Table("what permutations add, by the kind of labels", rows)


def shuffle_limits(cost: ShuffleCost) -> list[Limit]:
    """Two classes at most twice numbers, others in proportion."""
    return [
        Limit(f"{cost.n_permutations} permutations of {kind} classes / of numbers", float(kind), cost.ratio(kind))
        for kind in cost.seconds
        if kind
    ]


def cost_limits(costs: Sequence[Cost]) -> list[Limit]:
    """Nested CV under 2, 1,000 permutations of a ridge under 3."""
    limits = [Limit(f"with nested CV / plain: {cost.job}", 2.0, cost.ratio(NESTED)) for cost in costs]
    return limits + [
        Limit(f"with 1,000 permutations / plain: {cost.job}", 3.0, cost.ratio(SHUFFLED))
        for cost in costs
        if cost.job.n_permutations == 1000 and not cost.job.classes
    ]
