"""The least that exact ridge fits take: one Gram matrix and a Cholesky factor per fit, at the machine's own rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.shared.peers import N_FOLDS

_REPEATS = 7


@dataclass(frozen=True)
class Rates:
    """Median float64 rates on all cores, in operations per second."""

    gemm: float
    cholesky: float


def measure_rates(n: int) -> Rates:
    """Rates of torch's matrix product and LAPACK's Cholesky factorisation at order `n`."""
    matrix = torch.randn(n, n, dtype=torch.float64)
    positive = matrix @ matrix.mT + n * torch.eye(n, dtype=torch.float64)
    return Rates(
        gemm=2 * n**3 / _median_s(partial(torch.matmul, matrix, matrix)),
        cholesky=n**3 / 3 / _median_s(partial(torch.linalg.cholesky, positive)),
    )


def floor_s(n_samples: int, n_features: int, n_alphas: int, rates: Rates) -> float:
    """Seconds of one cell at these rates."""
    return _gram(n_samples, n_features) / rates.gemm + _factors(n_samples, n_features, n_alphas) / rates.cholesky


def n_operations(n_samples: int, n_features: int, n_alphas: int) -> float:
    """Multiplications and additions of one cell that an exact fit cannot do without."""
    return _gram(n_samples, n_features) + _factors(n_samples, n_features, n_alphas)


def _gram(n_samples: int, n_features: int) -> float:
    """Half of a full product, for the symmetric Gram matrix; in the dual of the rows."""
    small, large = sorted((n_samples, n_features))
    return small**2 * large


def _factors(n_samples: int, n_features: int, n_alphas: int) -> float:
    """One for each fit; in the dual of the smaller matrices of the training rows."""
    n_kept = n_samples - n_samples // N_FOLDS
    orders = [n_features] * (N_FOLDS + 1) if n_samples >= n_features else [n_kept] * N_FOLDS + [n_samples]
    return n_alphas * sum(order**3 / 3 for order in orders)


def _median_s(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))
