"""What the rows are summed up to, lot by lot, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from gpu_probes.preprocessing import Marginals
from gpu_probes.rows import Rows, TrainingSets

# Features of one strip of a Gram matrix: wide enough for the matrix product, narrow enough to skip what is above it.
STRIP = 128


@dataclass(frozen=True)
class Moments:
    """Weighted sums over some rows; of the symmetric Gram matrices only the lower triangle is filled in."""

    weight: Float64[Tensor, ""]
    targets: Float64[Tensor, " target"]
    gram: Float64[Tensor, "cell feature feature"]
    cross: Float64[Tensor, "cell feature target"]


@dataclass(frozen=True)
class LotMoments:
    """Moments of every lot."""

    weight: Float64[Tensor, " lot"]
    features: Float64[Tensor, "cell lot feature"]
    targets: Float64[Tensor, "lot target"]
    gram: Float64[Tensor, "cell lot feature feature"]
    cross: Float64[Tensor, "cell lot feature target"]

    def marginals(self, included: Float64[Tensor, " lot"]) -> Marginals:
        """Sums over the lots that train a fit, without the products of features."""
        squares = self.gram.diagonal(dim1=-2, dim2=-1)
        return Marginals(included @ self.weight, included @ self.features, included @ squares, included @ self.targets)

    def of_fit(self, included: Float64[Tensor, " lot"]) -> Moments:
        """Sum up the lots that train a fit.

        Summed from the lots that are in it: total minus lot would cancel where one lot dominates.
        """
        lots = torch.nonzero(included).flatten()
        return Moments(
            weight=self.weight[lots].sum(),
            targets=self.targets[lots].sum(0),
            gram=_sum_lower(self.gram, lots.tolist()),
            cross=self.cross[:, lots].sum(1),
        )


def lot_moments(rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets) -> LotMoments:
    """Sum up the rows of each lot."""
    n_lots, n_targets, d = sets.included.shape[1], targets.shape[1], rows.n_features
    zeros = targets.new_zeros
    out = LotMoments(
        weight=zeros(n_lots),
        features=zeros(rows.n_cells, n_lots, d),
        targets=zeros(n_lots, n_targets),
        gram=zeros(rows.n_cells, n_lots, d, d),
        cross=zeros(rows.n_cells, n_lots, d, n_targets),
    )
    for chunk in rows.chunks():
        for lot, held in enumerate(chunk.lots):
            samples, features = chunk.samples[held], chunk.features[:, held]
            weight = sets.weight_of_sample[samples]
            weighted = targets[samples] * weight[:, None]
            out.weight[lot] += weight.sum()
            out.targets[lot] += weighted.sum(0)
            out.features[:, lot] += weight @ features
            out.cross[:, lot] += features.mT @ weighted
            for cell in range(rows.n_cells):
                add_gram(out.gram[cell, lot], features[cell], weight if sets.weighted else None)
    return out


@dataclass(frozen=True)
class Crosses:
    """Products of features and targets of every lot, and the targets' own sums."""

    targets: Float64[Tensor, "lot target"]
    cross: Float64[Tensor, "cell lot feature target"]

    def of_fit(
        self, included: Float64[Tensor, " lot"]
    ) -> tuple[Float64[Tensor, "cell feature target"], Float64[Tensor, " target"]]:
        """Sum up the lots that train a fit."""
        first, *others = torch.nonzero(included).flatten().tolist()
        cross, targets = self.cross[:, first].clone(), self.targets[first].clone()
        for lot in others:
            cross += self.cross[:, lot]
            targets += self.targets[lot]
        return cross, targets


def lot_crosses(rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets) -> Crosses:
    """Sum up the rows of each lot for other targets, whose Gram matrices are there already."""
    n_lots, n_targets = sets.included.shape[1], targets.shape[1]
    out = Crosses(
        targets.new_zeros(n_lots, n_targets), targets.new_zeros(rows.n_cells, n_lots, rows.n_features, n_targets)
    )
    for chunk in rows.chunks():
        for lot, held in enumerate(chunk.lots):
            samples, features = chunk.samples[held], chunk.features[:, held]
            weighted = targets[samples] * sets.weight_of_sample[samples, None]
            out.targets[lot] += weighted.sum(0)
            out.cross[:, lot] += features.mT @ weighted
    return out


def add_gram(
    gram: Float64[Tensor, "feature feature"],
    features: Float64[Tensor, "row feature"],
    weight: Float64[Tensor, " row"] | None = None,
) -> None:
    """Add X'WX to `gram`, strip by strip up to the diagonal: little more than half of the full product."""
    weighted = features if weight is None else features * weight[:, None]
    for start in range(0, gram.shape[0], STRIP):
        stop = min(start + STRIP, gram.shape[0])
        strip = gram[start:stop, :stop]
        torch.addmm(strip, weighted[:, start:stop].mT, features[:, :stop], out=strip)


def mirrored(gram: Float64[Tensor, "*cell feature feature"]) -> Float64[Tensor, "*cell feature feature"]:
    """The whole of a symmetric matrix of which the lower triangle is filled in."""
    return gram.tril() + gram.tril(-1).mT


def _sum_lower(
    grams: Float64[Tensor, "cell lot feature feature"], lots: list[int]
) -> Float64[Tensor, "cell feature feature"]:
    """Sum over the lots, strip by strip: the sum stays in the cache while lots are added to it."""
    total = torch.zeros_like(grams[:, 0])
    for start in range(0, total.shape[1], STRIP):
        stop = min(start + STRIP, total.shape[1])
        strip = total[:, start:stop, :stop]
        for lot in lots:
            strip += grams[:, lot, start:stop, :stop]
    return total
