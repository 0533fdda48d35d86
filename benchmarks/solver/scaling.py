"""How the time of a sweep grows with the cells and with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shared.cells import Cells, make_cells
from benchmarks.shared.measure import Limit, Spread, Table
from benchmarks.shared.race import seconds_of, sweep_cells

TIMES = (1, 2, 4)


@dataclass(frozen=True)
class Growth:
    """Seconds at 1, 2 and 4 times the size, round by round."""

    what: str
    rounds: Sequence[Sequence[float]]

    @property
    def slope(self) -> Spread:
        """Exponent of the size that the time grows with: 1 is linear."""
        return Spread.of([float(np.polyfit(np.log(TIMES), np.log(seconds), 1)[0]) for seconds in self.rounds])


def measure_growth(n_samples: int, n_features: int, n_cells: int, n_rounds: int, device: str) -> list[Growth]:
    """Time sweeps of 1, 2 and 4 times the cells, and the rows."""
    largest = make_cells(TIMES[-1] * n_samples, n_features, TIMES[-1] * n_cells)
    out = []
    for task, alpha in (("ridge", 100.0), ("logistic", 1000.0)):
        cells = largest if task == "ridge" else largest.binary()
        for axis in ("cells", "rows"):
            sizes = [
                _part(cells, n_samples * (times if axis == "rows" else 1), n_cells * (times if axis == "cells" else 1))
                for times in TIMES
            ]
            sweep_cells(sizes[0], (alpha,), device)
            rounds = [[seconds_of(sweep_cells, size, (alpha,), device) for size in sizes] for _ in range(n_rounds)]
            out.append(Growth(f"{task}, {axis}", rounds))
    return out


def growth_table(growth: Sequence[Growth]) -> Table:
    """Times and slopes."""
    rows = [
        {"growing": one.what}
        | {f"x {times}, s": Spread.of([r[i] for r in one.rounds]) for i, times in enumerate(TIMES)}
        | {"slope": one.slope}
        for one in growth
    ]
    return Table("time over size; slope of its logarithm, 1 is linear", rows)


def growth_limits(growth: Sequence[Growth]) -> list[Limit]:
    """Linear, or less where a part of the work is the same for any number of rows."""
    return [Limit(f"slope: {one.what}", 1.1, one.slope) for one in growth]


def _part(cells: Cells, n_samples: int, n_cells: int) -> Cells:
    return Cells(
        cells.train[:n_samples, :n_cells],
        cells.test[: n_samples // 5, :n_cells],
        cells.train_labels[:n_samples],
        cells.test_labels[: n_samples // 5],
    )
