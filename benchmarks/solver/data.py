"""Cells like those of a language model, and labels that they predict in part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from gpu_probes import ArrayCellSource

N_OUTLIERS = 3
_RANK = 64


@dataclass(frozen=True)
class Cells:
    """Training and test cells ``[sample, layer, position, feature]`` in float32, and their labels."""

    train: Float32[np.ndarray, "sample layer position feature"]
    test: Float32[np.ndarray, "sample layer position feature"]
    train_labels: Float64[np.ndarray, " sample"]
    test_labels: Float64[np.ndarray, " sample"]

    @property
    def n_cells(self) -> int:
        """Cells of one position."""
        return self.train.shape[1]

    def sources(self) -> tuple[ArrayCellSource, ArrayCellSource]:
        """As a sweep takes them."""
        return ArrayCellSource(self.train), ArrayCellSource(self.test)

    def binary(self) -> Cells:
        """The same with labels above and below the median."""
        middle = np.median(self.train_labels)
        labels = (np.greater(values, middle).astype(np.float64) for values in (self.train_labels, self.test_labels))
        return Cells(self.train, self.test, *labels)


def make_cells(n_samples: int, n_features: int, n_cells: int, seed: int = 0) -> Cells:
    """A few strong directions, noise in all others, a mean, and three features far above the rest.

    So the eigenvalues of X'X spread over many powers of ten, as those of activations do. A fifth as many test rows.
    """
    rng = np.random.default_rng(seed)
    n_all, rank = n_samples + n_samples // 5, min(n_features, _RANK)
    directions = rng.standard_normal((rank, n_features)) * np.logspace(0.5, -1.5, rank)[:, None]
    array = (rng.standard_normal((n_all, n_cells, rank)) @ directions).astype(np.float32)
    array += 0.3 * rng.standard_normal(array.shape, dtype=np.float32)
    array[..., :N_OUTLIERS] *= 200
    array += rng.standard_normal(n_features).astype(np.float32)
    labels = array[:, 0, N_OUTLIERS:].astype(np.float64) @ rng.standard_normal(n_features - N_OUTLIERS)
    labels = labels / labels.std() + rng.standard_normal(n_all)
    cells = array[:, :, None]
    return Cells(cells[:n_samples], cells[n_samples:], labels[:n_samples], labels[n_samples:])
