"""Which rows train which fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gpu_probes.samples.folds import FoldPlan


@dataclass(frozen=True)
class Lots:
    """The lots that train a fit, by their numbers: known to the host, which need not ask a GPU for them."""

    numbers: tuple[int, ...]
    index: Int64[Tensor, " lot_of_fit"]
    included: Float64[Tensor, " lot"]

    @classmethod
    def of(cls, numbers: Sequence[int], n_lots: int, device: torch.device) -> Lots:
        """Put the numbers on the device."""
        included = np.isin(np.arange(n_lots), numbers).astype(np.float64)
        return cls(tuple(numbers), torch.tensor(numbers, device=device), torch.from_numpy(included).to(device))


@dataclass(frozen=True)
class TrainingSets:
    """The training samples of each fit, and their weights.

    Samples fall into lots that are in or out together (see `FoldPlan`). Whatever the host has to know of them it knows:
    an answer from a GPU waits for all its work.

    Attributes
    ----------
    lot_of_sample : Tensor [sample]
    lots : tuple of Lots
        Of each fit.
    included : Tensor [fit, lot]
        1.0 where the lot is in the fit's training set.
    weight_of_sample : Tensor [sample]
    weighted : bool
        Whether weights were given.
    heaviest : float
        The largest weight.
    pairs : tuple of pairs of int
        Folds that fits for nested cross-validation leave out.
    rows_of_fold : tuple of Tensor [row]
        Samples that each fold holds out.
    n_rows : tuple of int
        Rows that count in each fit.
    drawn : Tensor [drawn]
        Some of the samples that count.
    """

    lot_of_sample: Int64[Tensor, " sample"]
    lots: tuple[Lots, ...]
    included: Float64[Tensor, "fit lot"]
    weight_of_sample: Float64[Tensor, " sample"]
    weighted: bool
    heaviest: float
    pairs: tuple[tuple[int, int], ...]
    rows_of_fold: tuple[Int64[Tensor, " _"], ...]
    n_rows: tuple[int, ...]
    drawn: Int64[Tensor, " drawn"]

    @classmethod
    def of(cls, folds: FoldPlan, weights: Float64[np.ndarray, " sample"] | None, device: torch.device) -> TrainingSets:
        """Put a fold plan on the device; `weights` None counts every sample once."""
        # Copies: what came from another process is read-only, which torch warns of.
        lots, included = np.array(folds.fold_of_sample), folds.lots_of_fit()
        counts = np.ones(len(lots)) if weights is None else np.array(weights)
        counted = np.flatnonzero(counts)
        order = torch.randperm(len(counted), generator=torch.Generator().manual_seed(0)).numpy()
        rows_of_fold = [np.flatnonzero(lots == fold) for fold in range(folds.n_folds)]
        counted_of_lot = np.bincount(lots[counted], minlength=included.shape[1])

        def there(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return cls(
            lot_of_sample=there(lots),
            lots=tuple(Lots.of(np.flatnonzero(row).tolist(), len(row), device) for row in included),
            included=there(included),
            weight_of_sample=there(counts),
            weighted=weights is not None,
            heaviest=float(counts.max()),
            pairs=tuple(folds.pairs),
            rows_of_fold=tuple(map(there, rows_of_fold)),
            n_rows=tuple((included @ counted_of_lot).astype(int).tolist()),
            drawn=there(counted[order[:_DRAWN]]),
        )

    @property
    def n_lots(self) -> int:
        """Groups of samples that are in or out together."""
        return self.included.shape[1]

    @property
    def n_fits(self) -> int:
        """Probes of a cell at one penalty: one without each fold, one without each pair of them, one on everything."""
        return len(self.lots)

    @property
    def n_folds(self) -> int:
        """Folds that are held out; 0 without cross-validation."""
        return len(self.rows_of_fold)

    def of_own_fits(self, values: Tensor) -> Tensor:
        """A copy of values ``[cell, fit, ...]`` without those of fits that are for nested cross-validation."""
        return torch.cat([values[:, : self.n_folds], values[:, -1:]], 1)

    def weights(self, samples: Int64[Tensor, " row"]) -> Float64[Tensor, "fit row"]:
        """How much each row counts in each fit; 0 where it is left out."""
        return self.included[:, self.lot_of_sample[samples]] * self.weight_of_sample[samples]


# Rows whose median is where the features are, whatever a few rows hold.
_DRAWN = 64
