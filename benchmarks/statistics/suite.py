"""All parts in turn, and how large each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shared.measure import Limit, Report, StealClock, Table, Target, hardware, progress
from benchmarks.statistics.cost import (
    Job,
    cost_limits,
    cost_table,
    measure_cost,
    measure_shuffles,
    shuffle_limits,
    shuffle_table,
)
from benchmarks.statistics.simulation import (
    null_limits,
    null_table,
    simulate_coverage,
    simulate_null,
    simulate_power,
    simulate_repeats,
)

PARTS = ("cost", "shuffles", "null", "power", "repeats", "coverage")
_ONE, _TEN = (100.0,), tuple(float(alpha) for alpha in np.logspace(-2, 5, 10))
_CLASSES = tuple(float(alpha) for alpha in np.logspace(0, 5, 10))


@dataclass(frozen=True)
class Size:
    """How large the parts are."""

    jobs: tuple[Job, ...]
    shuffles: Job
    n_rounds: int
    n_sweeps: int
    n_permutations: tuple[int, int]
    power: tuple[int, int]
    n_repeats: int
    n_sets: int
    n_rows: tuple[int, ...]


FULL = Size(
    (
        Job(330, 576, 12, _ONE, False, 1000),
        Job(330, 576, 12, _TEN, False, 1000),
        Job(2000, 576, 6, _ONE, False, 1000),
        Job(2000, 576, 6, _TEN, False, 1000),
        Job(6000, 1536, 2, _ONE, False, 1000),
        Job(2000, 1536, 4, _ONE, False, 1000),
        Job(330, 576, 6, _ONE, True, 1000),
        Job(2000, 576, 4, _ONE, True, 1000),
        Job(2000, 576, 2, _CLASSES, True, 1000),
    ),
    shuffles=Job(500, 576, 4, _TEN, True, 1000),
    n_rounds=3,
    n_sweeps=200,
    n_permutations=(99, 99),
    power=(100, 39),
    n_repeats=20,
    n_sets=500,
    n_rows=(110, 300),
)
QUICK = Size(
    (Job(60, 20, 2, _ONE, False, 10), Job(60, 20, 2, _ONE, True, 5)),
    shuffles=Job(60, 20, 2, _ONE, True, 10),
    n_rounds=1,
    n_sweeps=6,
    n_permutations=(9, 9),
    power=(3, 19),
    n_repeats=2,
    n_sets=20,
    n_rows=(40,),
)


def measure_inference(size: Size, parts: Sequence[str], device: str) -> Report:
    """Run some of the `PARTS`."""
    tables: list[Table] = []
    targets: list[Target | Limit] = []
    clock = StealClock()
    if "cost" in parts:
        costs = []
        for job in size.jobs:
            progress(f"cost: {job}")
            costs.append(measure_cost(job, size.n_rounds, device))
        tables.append(cost_table(costs))
        targets += cost_limits(costs)
    if "shuffles" in parts:
        progress("permutations by the kind of labels")
        added = measure_shuffles(size.shuffles, size.n_rounds, device)
        tables.append(shuffle_table(added))
        targets += shuffle_limits(added)
    if "null" in parts:
        progress("labels at random")
        kinds = zip((False, True), size.n_permutations, strict=True)
        nulls = [simulate_null(size.n_sweeps, n, device, classes=classes) for classes, n in kinds]
        tables.append(null_table(nulls))
        targets += null_limits(nulls)
    if "power" in parts:
        progress("power")
        table, found = simulate_power(*size.power, device)
        tables.append(table)
        targets += found
    if "repeats" in parts:
        progress("every row twice")
        table, found = simulate_repeats(size.n_repeats, device)
        tables.append(table)
        targets += found
    if "coverage" in parts:
        progress("coverage of intervals")
        table, found = simulate_coverage(size.n_sets, size.n_rows)
        tables.append(table)
        targets += found
    setting = {"parts": ", ".join(parts), "device": device, "cpu time stolen, %": clock.percent()}
    return Report("inference", hardware(Path(), ("torch", "numpy", "scipy", "scikit-learn")), setting, tables, targets)
