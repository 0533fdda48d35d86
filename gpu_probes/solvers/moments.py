"""What the rows are summed up to, lot by lot, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from gpu_probes.features.rows import PIECE_ROWS, Chunk, Rows, Workspace
from gpu_probes.samples.training_sets import Lots, TrainingSets
from gpu_probes.solvers.blas import add_square
from gpu_probes.solvers.preprocessing import Frame, Marginals, Preprocessing

# Features of one strip of a Gram matrix: wide enough for the matrix product, narrow enough to skip what is above it.
STRIP = 128


@dataclass(frozen=True)
class Moments:
    """Weighted sums over the training rows of a fit, about its means; Gram matrices are lower triangles."""

    gram: Float64[Tensor, "cell feature feature"]
    cross: Float64[Tensor, "cell feature target"]


@dataclass(frozen=True)
class LotMarginals:
    """Every lot, feature by feature: its weight, means, and squared deviations from them.

    Sums about a mean are joined with those about another by what lies between the means (Chan, Golub & LeVeque 1983),
    so that nothing cancels, however far apart the lots are. `origin` is what was subtracted from all rows before.
    """

    weight: Float64[Tensor, " lot"]
    mean: Float64[Tensor, "cell lot feature"]
    squares: Float64[Tensor, "cell lot feature"]
    origin: Float64[Tensor, "cell feature"]

    def of_fit(self, lots: Lots) -> Marginals:
        """Join the lots that train a fit."""
        weight = lots.included * self.weight
        mean = (weight / weight.sum()) @ self.mean
        squares = lots.included @ self.squares + weight @ (self.mean - mean[:, None]).square()
        return Marginals(weight.sum(), mean, squares, self.origin)


@dataclass(frozen=True)
class LotMoments:
    """Moments of every lot about its own means, or about 0 where nothing is centred: then all means are 0."""

    weight: Float64[Tensor, " lot"]
    mean: Float64[Tensor, "cell lot feature"]
    target_mean: Float64[Tensor, "lot target"]
    gram: Float64[Tensor, "cell lot feature feature"]
    cross: Float64[Tensor, "cell lot feature target"]
    origin: Float64[Tensor, "cell feature"]

    @property
    def marginals(self) -> LotMarginals:
        """The same without the products of features."""
        return LotMarginals(self.weight, self.mean, self.gram.diagonal(dim1=-2, dim2=-1), self.origin)

    def target_mean_of_fit(self, lots: Lots) -> Float64[Tensor, " target"]:
        """Mean of the targets over the lots that train a fit."""
        weight = lots.included * self.weight
        return (weight / weight.sum()) @ self.target_mean

    def of_fit(self, lots: Lots, frame: Frame, workspace: Workspace) -> Moments:
        """Sum up the lots that train a fit, about the centre of its frame; until the next one is.

        Summed from the lots that are in it: total minus lot would cancel where one lot dominates.
        """
        gram = workspace.zeros("Gram matrix of a fit", self.gram[:, 0].shape, self.gram.device)
        _sum_lower(gram, self.gram, lots.numbers)
        cross = self.cross[:, lots.index].sum(1)
        if frame.preprocessing.centres:
            between = self.mean[:, lots.index] - frame.centre[:, None]
            weighted = (between * self.weight[lots.index, None]).mT
            gram.baddbmm_(weighted, between)
            cross += weighted @ (self.target_mean[lots.index] - self.target_mean_of_fit(lots))
        return Moments(gram, cross)


def lot_moments(
    rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets, preprocessing: Preprocessing
) -> LotMoments:
    """Sum up the rows of each lot."""
    n_lots, n_targets, d = sets.n_lots, targets.shape[1], rows.n_features
    zeros = targets.new_zeros
    out = LotMoments(
        weight=zeros(n_lots),
        mean=zeros(rows.n_cells, n_lots, d),
        target_mean=zeros(n_lots, n_targets),
        gram=rows.workspace.zeros("Gram matrices of lots", (rows.n_cells, n_lots, d, d), targets.device),
        cross=zeros(rows.n_cells, n_lots, d, n_targets),
        origin=rows.origin,
    )
    for chunk in rows.chunks():
        for lot, held in enumerate(chunk.lots):
            samples, features = chunk.samples[held], chunk.features[:, held]
            weight = sets.weight_of_sample[samples]
            if preprocessing.centres:
                _add_centred(out, lot, features, targets[samples], weight, weighted=sets.weighted)
            elif sets.weighted:
                for piece in _pieces(weight):
                    _add_products(out, lot, features[:, piece], targets[samples[piece]], weight[piece])
            else:
                _add_products(out, lot, features, targets[samples], None)
    return out


def lot_marginals(
    chunks: Iterable[Chunk],
    sets: TrainingSets,
    preprocessing: Preprocessing,
    origin: Float64[Tensor, "cell feature"],
) -> LotMarginals:
    """Sum up the rows of each lot, without products of features; squares only where features are scaled."""
    n_lots = sets.n_lots
    mean = origin.new_zeros(len(origin), n_lots, origin.shape[1])
    out = LotMarginals(origin.new_zeros(n_lots), mean, torch.zeros_like(mean), origin)
    for chunk in chunks:
        for lot, held in enumerate(chunk.lots):
            features, weight = chunk.features[:, held], sets.weight_of_sample[chunk.samples[held]]
            joined = _join(out.weight[lot], out.mean[:, lot], features, weight)
            out.weight[lot] += weight.sum()
            if preprocessing.standardize:
                out.squares[:, lot] += joined.between * joined.step.square()
                for piece in _pieces(weight):
                    out.squares[:, lot] += weight[piece] @ (features[:, piece] - joined.mean[:, None]).square_()
    return out


def _add_centred(
    out: LotMoments,
    lot: int,
    features: Float64[Tensor, "cell row feature"],
    targets: Float64[Tensor, "row target"],
    weight: Float64[Tensor, " row"],
    *,
    weighted: bool,
) -> None:
    """Add rows of a lot about their own means, and what lies between these and the means of the rows before."""
    joined = _join(out.weight[lot], out.mean[:, lot], features, weight)
    of_targets = _join(out.weight[lot], out.target_mean[lot], targets, weight)
    out.weight[lot] += weight.sum()
    step = joined.between * joined.step[:, :, None]
    out.gram[:, lot].baddbmm_(step, joined.step[:, None])
    out.cross[:, lot] += step * of_targets.step
    for piece in _pieces(weight):
        centred = features[:, piece] - joined.mean[:, None]
        counts = weight[piece] if weighted else None
        _add_products(out, lot, centred, targets[piece] - of_targets.mean, counts)


def _add_products(
    out: LotMoments,
    lot: int,
    features: Float64[Tensor, "cell row feature"],
    targets: Float64[Tensor, "row target"],
    weight: Float64[Tensor, " row"] | None,
) -> None:
    out.cross[:, lot] += features.mT @ (targets if weight is None else targets * weight[:, None])
    add_gram(out.gram[:, lot], features, weight)


@dataclass(frozen=True)
class _Joined:
    """Rows that were added to others: their mean, its distance from the others', and what that weighs squared."""

    mean: Float64[Tensor, "*cell column"]
    step: Float64[Tensor, "*cell column"]
    between: Float64[Tensor, ""]


def _join(
    weight: Float64[Tensor, ""],
    mean: Float64[Tensor, "*cell column"],
    rows: Float64[Tensor, "*cell row column"],
    row_weight: Float64[Tensor, " row"],
) -> _Joined:
    """Move `mean`, of rows that weigh `weight`, to that of these and more rows."""
    # Where nothing weighs anything there is nothing to divide.
    least = torch.finfo(mean.dtype).tiny
    added = row_weight.sum()
    share = added / (weight + added).clamp(min=least)
    new = (row_weight @ rows) / added.clamp(min=least)
    step = new - mean
    mean += step * share
    return _Joined(new, step, weight * share)


def _pieces(rows: Tensor) -> Iterator[slice]:
    """Rows that are copied at a time: on a CPU as many as stay in the cache."""
    n_rows = PIECE_ROWS if rows.device.type == "cpu" else max(len(rows), 1)
    return (slice(start, start + n_rows) for start in range(0, len(rows), n_rows))


@dataclass(frozen=True)
class Crosses:
    """Products of features and targets of every lot, and the targets' own sums."""

    targets: Float64[Tensor, "lot target"]
    cross: Float64[Tensor, "cell lot feature target"]

    def of_fit(self, lots: Lots) -> tuple[Float64[Tensor, "cell feature target"], Float64[Tensor, " target"]]:
        """Sum up the lots that train a fit."""
        first, *others = lots.numbers
        cross, targets = self.cross[:, first].clone(), self.targets[first].clone()
        for lot in others:
            cross += self.cross[:, lot]
            targets += self.targets[lot]
        return cross, targets


def lot_crosses(rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets) -> Crosses:
    """Sum up the rows of each lot for other targets, whose Gram matrices are there already."""
    n_lots, n_targets = sets.n_lots, targets.shape[1]
    out = Crosses(
        targets.new_zeros(n_lots, n_targets), targets.new_zeros(rows.n_cells, n_lots, rows.n_features, n_targets)
    )
    for chunk in rows.chunks():
        for lot, held in enumerate(chunk.lots):
            samples, features = chunk.samples[held], chunk.features[:, held]
            weighted = targets[samples]
            if sets.weighted:
                weighted *= sets.weight_of_sample[samples, None]
            out.targets[lot] += weighted.sum(0)
            out.cross[:, lot] += features.mT @ weighted
    return out


def add_gram(
    gram: Float64[Tensor, "cell feature feature"],
    features: Float64[Tensor, "cell row feature"],
    weight: Float64[Tensor, "*#cell row"] | None = None,
) -> None:
    """Add X'WX to the lower triangle of `gram`, with little more than half of the work of the full product.

    On a CPU cell by cell, which stays in the cache; on a GPU all cells at once, strip by strip up to the diagonal.
    """
    if features.device.type == "cpu":
        roots = None if weight is None else weight.sqrt().expand(len(gram), -1)[..., None]
        for cell, of_cell in enumerate(features):
            add_square(gram[cell], of_cell if roots is None else of_cell * roots[cell])
        return
    weighted = features if weight is None else features * weight[..., None]
    for start in range(0, gram.shape[1], STRIP):
        stop = min(start + STRIP, gram.shape[1])
        gram[:, start:stop, :stop].baddbmm_(weighted[..., start:stop].mT, features[..., :stop])


def mirrored(gram: Float64[Tensor, "*cell feature feature"]) -> Float64[Tensor, "*cell feature feature"]:
    """The whole of a symmetric matrix of which the lower triangle is filled in."""
    return gram.tril() + gram.tril(-1).mT


def _sum_lower(
    total: Float64[Tensor, "cell feature feature"],
    grams: Float64[Tensor, "cell lot feature feature"],
    lots: Sequence[int],
) -> None:
    """Sum over the lots, strip by strip: the sum stays in the cache while lots are added to it."""
    for start in range(0, total.shape[1], STRIP):
        stop = min(start + STRIP, total.shape[1])
        first, *others = (grams[:, lot, start:stop, :stop] for lot in lots)
        strip = total[:, start:stop, :stop].copy_(first)
        for other in others:
            strip += other
