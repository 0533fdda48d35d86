"""Which rows train which fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gpu_probes.samples.folds import FoldPlan


@dataclass(frozen=True)
class TrainingSets:
    """The training samples of each fit, and their weights.

    Samples fall into lots that are in or out together (see `FoldPlan`).
    """

    lot_of_sample: Int64[Tensor, " sample"]
    included: Float64[Tensor, "fit lot"]
    weight_of_sample: Float64[Tensor, " sample"]
    weighted: bool
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, folds: FoldPlan, weights: Float64[np.ndarray, " sample"] | None, device: torch.device) -> TrainingSets:
        """Put a fold plan on the device; `weights` None counts every sample once."""
        # A copy: what came from another process is read-only, which torch warns of.
        lots = torch.tensor(folds.fold_of_sample, device=device)
        counts = torch.ones(len(lots), dtype=torch.float64) if weights is None else torch.from_numpy(weights.copy())
        included = torch.as_tensor(folds.lots_of_fit(), device=device)
        return cls(lots, included, counts.to(device), weights is not None, tuple(folds.pairs))

    @property
    def n_fits(self) -> int:
        """Probes of a cell at one penalty: one without each fold, one without each pair of them, one on everything."""
        return self.included.shape[0]

    @property
    def n_folds(self) -> int:
        """Folds that are held out; 0 without cross-validation."""
        return self.n_fits - len(self.pairs) - 1

    @property
    def own_fits(self) -> list[int]:
        """The fits without each fold and the one on everything: those that are not for nested cross-validation."""
        return [*range(self.n_folds), self.n_fits - 1]

    def draw(self) -> Int64[Tensor, " drawn"]:
        """Some of the samples that count, the same for every block."""
        counted = torch.nonzero(self.weight_of_sample.cpu()).flatten()
        order = torch.randperm(len(counted), generator=torch.Generator().manual_seed(0))
        return counted[order[:_DRAWN]].to(self.weight_of_sample.device)

    def n_rows(self, fit: int) -> int:
        """Rows that count in a fit."""
        samples = torch.arange(len(self.lot_of_sample), device=self.lot_of_sample.device)
        return int(torch.count_nonzero(self.weights(samples)[fit]))

    def weights(self, samples: Int64[Tensor, " row"]) -> Float64[Tensor, "fit row"]:
        """How much each row counts in each fit; 0 where it is left out."""
        return self.included[:, self.lot_of_sample[samples]] * self.weight_of_sample[samples]


# Rows whose median is where the features are, whatever a few rows hold.
_DRAWN = 64
