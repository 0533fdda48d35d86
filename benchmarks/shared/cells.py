"""Cells like those of a language model, and labels that they predict in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from gpu_probes import ArrayCellSource

N_OUTLIERS = 3
_RANK = 64


@dataclass(frozen=True)
class Cells:
    """Training and test cells ``[sample, layer, position, feature]``, and their labels."""

    train: Shaped[np.ndarray, "sample layer position feature"]
    test: Shaped[np.ndarray, "sample layer position feature"]
    train_labels: Float64[np.ndarray, " sample"]
    test_labels: Float64[np.ndarray, " sample"]

    @property
    def n_cells(self) -> int:
        """Cells of all layers and positions."""
        return self.train.shape[1] * self.train.shape[2]

    def sources(self) -> tuple[ArrayCellSource, ArrayCellSource]:
        """As a sweep takes them."""
        return ArrayCellSource(self.train), ArrayCellSource(self.test)

    def binary(self) -> Cells:
        """The same with labels above and below the median."""
        middle = np.median(self.train_labels)
        labels = (np.greater(values, middle).astype(np.float64) for values in (self.train_labels, self.test_labels))
        return Cells(self.train, self.test, *labels)


class Activations:
    """A few strong directions, noise in all others, a mean, and three features far above the rest.

    So the eigenvalues of X'X spread over many powers of ten, as those of activations do.
    """

    def __init__(self, n_features: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        rank = min(n_features, _RANK)
        strengths = np.logspace(0.5, -1.5, rank)[:, None]
        self._directions = (self._rng.standard_normal((rank, n_features)) * strengths).astype(np.float32)
        self._mean = self._rng.standard_normal(n_features).astype(np.float32)
        self._weights = self._rng.standard_normal(n_features - N_OUTLIERS)

    def draw(
        self, n_rows: int, cells: Sequence[int], rng: np.random.Generator | None = None
    ) -> Float32[np.ndarray, "row *cell feature"]:
        """Rows of cells, whose numbers along their axes are given; threads that draw at once each bring a generator."""
        rng = rng or self._rng
        rank, n_features = self._directions.shape
        rows = rng.standard_normal((n_rows, *cells, rank), dtype=np.float32) @ self._directions
        rows += 0.3 * rng.standard_normal((n_rows, *cells, n_features), dtype=np.float32)
        rows[..., :N_OUTLIERS] *= 200
        rows += self._mean
        return rows

    def label(self, rows: Float32[np.ndarray, "row feature"]) -> Float64[np.ndarray, " row"]:
        """Numbers of which one cell's ordinary features tell half of the variance."""
        told = (rows[:, N_OUTLIERS:] - self._mean[N_OUTLIERS:]).astype(np.float64) @ self._weights
        return told / told.std() + self._rng.standard_normal(len(rows))


def make_cells(n_samples: int, n_features: int, n_cells: int) -> Cells:
    """Cells of one position in float32; a fifth as many test rows."""
    activations = Activations(n_features)
    array = activations.draw(n_samples + n_samples // 5, [n_cells, 1])
    labels = activations.label(array[:, 0, 0])
    return Cells(array[:n_samples], array[n_samples:], labels[:n_samples], labels[n_samples:])


def make_hostile_cells(n_samples: int, n_features: int) -> Cells:
    """The same with features that ruin a solver: collinear at 1,000 times the median rms, duplicate, constant."""
    cells = make_cells(n_samples, n_features, 1)
    rng = np.random.default_rng(1)
    columns = np.concatenate([cells.train, cells.test]).astype(np.float64)
    rms = np.sqrt(np.median(np.square(columns).mean((0, 1, 2))))
    common = rng.standard_normal(columns.shape[:3])[..., None]
    columns[..., :N_OUTLIERS] = 1000 * rms * (common + 1e-6 * rng.standard_normal((*columns.shape[:3], N_OUTLIERS)))
    columns[..., 3:6] = columns[..., 6:9]
    columns[..., 9:12] = (0.0, 1.0, 1000 * rms)
    array = columns.astype(np.float32)
    return Cells(array[:n_samples], array[n_samples:], cells.train_labels, cells.test_labels)
