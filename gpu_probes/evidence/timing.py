"""How long a sweep and its statistics would take, from a few cells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from gpu_probes.evidence.infer import About, infer
from gpu_probes.features.cells import CellSource, cells_of
from gpu_probes.features.combine import SomeCells
from gpu_probes.search.options import SweepOptions
from gpu_probes.search.storage import Memory
from gpu_probes.search.sweep import plan_sweep

_N_CELLS = 4
_N_PERMUTATIONS = 20
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Timing:
    """An estimate.

    Attributes
    ----------
    fit_s, statistics_s : float
        Seconds for the fits of all cells, permutations included, and for the statistics of the best one.
    n_cells, n_timed : int
        All cells, and how many were fitted for this.
    at_random : bool
        Whether random numbers stood in for features.
    memory : Memory
        Of the whole sweep.
    """

    fit_s: float
    statistics_s: float
    n_cells: int
    n_timed: int
    at_random: bool
    memory: Memory


class RandomCells:
    """A source of the same shape, of random numbers."""

    def __init__(self, source: CellSource) -> None:
        self.layers, self.positions = tuple(source.layers), tuple(source.positions)
        self.n_samples, self.n_features = source.n_samples, source.n_features

    def cell_blocks(
        self, layer: int | str, position: int | str
    ) -> Iterator[tuple[range, Float32[np.ndarray, "row feature"]]]:
        """Yield the same numbers for the same cell."""
        seed = self.layers.index(layer), self.positions.index(position)
        rng = np.random.default_rng(seed)
        for start in range(0, self.n_samples, _BLOCK_ROWS):
            rows = range(start, min(start + _BLOCK_ROWS, self.n_samples))
            yield rows, rng.standard_normal((len(rows), self.n_features), dtype=np.float32)


def time_cells(
    train: CellSource,
    train_labels: Mapping[str, Any],
    test: CellSource | None,
    test_labels: Mapping[str, Any] | None,
    options: SweepOptions,
    about: About,
    *,
    at_random: bool,
) -> Timing:
    """Fit a few cells, with a few permutations, and infer from them.

    Parameters
    ----------
    train, train_labels, test, test_labels, options
        As for `gpu_probes.search.sweep.plan_sweep`.
    about : About
        As for `gpu_probes.evidence.infer.infer`.
    at_random : bool
        Let random numbers stand in for the features, which are not there yet.

    Raises
    ------
    ProbeError
        As `gpu_probes.search.sweep.plan_sweep`.
    """
    if at_random:
        train, test = RandomCells(train), None if test is None else RandomCells(test)
    whole = plan_sweep(train, train_labels, test, test_labels, **vars(options))
    # As many as are worked on at a time, so that all cores have something to do.
    n_wanted = max(_N_CELLS, *(group.plan.n_workers for group in whole.groups))
    some_train, some_test = _some(train, n_wanted), None if test is None else _some(test, n_wanted)
    few = replace(
        options, permutations=min(options.permutations, _N_PERMUTATIONS), progress=None, workers=None, ray=None
    )
    plain = replace(few, permutations=0)
    results, plain_s = _timed(lambda: plan_sweep(some_train, train_labels, some_test, test_labels, **vars(plain)).run())
    permuted_s = 0.0
    if few.permutations:
        _, with_few = _timed(lambda: plan_sweep(some_train, train_labels, some_test, test_labels, **vars(few)).run())
        permuted_s = max(with_few - plain_s, 0.0) * options.permutations / few.permutations
    _, statistics_s = _timed(lambda: [infer(one, some_train, some_test, plain, about) for one in results.values()])
    n_cells, n_timed = len(cells_of(train)), len(cells_of(some_train))
    return Timing((plain_s + permuted_s) * n_cells / n_timed, statistics_s, n_cells, n_timed, at_random, whole.memory)


def _some(source: CellSource, n_cells: int) -> CellSource:
    """About as many cells, spread over the layers."""
    n_layers = min(n_cells, len(source.layers))
    n_positions = min(-(-n_cells // n_layers), len(source.positions))
    chosen = np.unique(np.linspace(0, len(source.layers) - 1, n_layers).round().astype(np.int64)).tolist()
    return SomeCells(source, [source.layers[k] for k in chosen], list(source.positions)[-n_positions:])


def _timed(work: Any) -> tuple[Any, float]:
    started = time.monotonic()
    found = work()
    return found, time.monotonic() - started
