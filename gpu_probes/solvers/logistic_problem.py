"""Logistic regressions of a block as one problem: values, gradients and Hessian products of all columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gpu_probes.features.rows import Rows
from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.solvers.losses import Loss
from gpu_probes.solvers.moments import add_gram, lot_marginals
from gpu_probes.solvers.objective import duality_gap
from gpu_probes.solvers.preprocessing import Frame, Marginals, Preprocessing

# Rows that stay in a core's cache between X v and X'(...).
_TILE_BYTES = 2**20


@dataclass(frozen=True)
class Columns:
    """Fits that are worked on at once: place among all, training set and penalty of each, cell by cell.

    The place counts penalties fastest; `are_all` where none is missing, so that each is in its place.
    """

    place: Int64[Tensor, "cell column"]
    fit: Int64[Tensor, "cell column"]
    penalty_index: Int64[Tensor, "cell column"]
    penalty: Float64[Tensor, "cell column"]
    are_all: bool

    @classmethod
    def of(cls, n_cells: int, fits: Int64[Tensor, " fit"], penalties: Float64[Tensor, " penalty"]) -> Columns:
        """Every penalty for each of some fits."""
        place = torch.arange(len(fits) * len(penalties), device=fits.device)
        index = place % len(penalties)
        columns = (place, fits.repeat_interleave(len(penalties)), index, penalties[index])
        return cls(*(column.expand(n_cells, -1) for column in columns), are_all=True)

    def take(self, kept: Int64[Tensor, "cell kept"]) -> Columns:
        """Some of the columns of each cell."""
        columns = (self.place, self.fit, self.penalty_index, self.penalty)
        return Columns(*(values.gather(1, kept) for values in columns), are_all=False)


class Design:
    """The features of a block as its fits see them: shifted and scaled on their own training rows.

    What has a value for each row is in the order of a pass over the rows. A point of the parameter space holds a
    number for each feature, and at the end the intercept if there is one.
    """

    def __init__(self, rows: Rows, sets: TrainingSets, preprocessing: Preprocessing) -> None:
        self._rows, self._reduced, self.basis, self._preprocessing = rows, None, None, preprocessing
        if rows.n_samples < rows.n_features and not preprocessing.standardize:
            # The solution is in the span of the rows: any other part would only add to the penalty.
            (chunk,) = rows.chunks()
            self.basis, triangle = torch.linalg.qr(chunk.features.mT)
            self._reduced = triangle.mT.contiguous()
        self.n_features = rows.n_features if self._reduced is None else rows.n_samples
        self.n_intercepts = int(preprocessing.fit_intercept)
        self.order = rows.order
        self.weights = sets.weights(self.order)
        marginals = self._marginals(sets, preprocessing)
        no_targets = self.weights.new_zeros(0)
        frames = [Frame.of(rows, no_targets, preprocessing) for rows in marginals]
        self._full = frames[-1]
        self._varies = torch.stack([rows.squares for rows in marginals], 1) > 0 if preprocessing.standardize else None
        self._centre = torch.stack([frame.centre for frame in frames], 1)
        self._scale = torch.stack([frame.scale for frame in frames], 1)

    def tiles(self) -> Iterator[tuple[slice, Float64[Tensor, "cell row feature"]]]:
        """One pass over the rows, a few at a time."""
        size = (
            max(_TILE_BYTES // (8 * self.n_features), 64) if self._rows.device.type == "cpu" else self._rows.n_samples
        )
        start = 0
        for features in [self._reduced] if self._reduced is not None else (c.features for c in self._rows.chunks()):
            for tile in features.split(size, 1):
                yield slice(start, start + tile.shape[1]), tile
                start += tile.shape[1]

    def frames_of(self, columns: Columns) -> Frames | None:
        """Shift and scale of each column's features; None where there is neither."""
        if not self._preprocessing.centres:
            return None
        index = columns.fit[:, :, None].expand(-1, -1, self.n_features)
        return Frames(self._centre.gather(1, index)[:, :, None], self._scale.gather(1, index)[:, :, None])

    def penalised(
        self, columns: Columns, point: Float64[Tensor, "cell column output parameter"]
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Penalty times the point; the intercept has none."""
        product = columns.penalty[:, :, None, None] * point
        if self.n_intercepts:
            product[..., self.n_features :] = 0
        return product

    def add_penalised(
        self,
        product: Float64[Tensor, "cell column output parameter"],
        columns: Columns,
        point: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Add penalty times the point, in place."""
        d = self.n_features
        product[..., :d].addcmul_(columns.penalty[:, :, None, None], point[..., :d])
        return product

    def confine(
        self, columns: Columns, point: Float64[Tensor, "cell column output parameter"]
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Take away the coefficients of features that do not vary in a fit's training rows: they may elsewhere."""
        if self._varies is None:
            return point
        varies = self._varies.gather(1, columns.fit[:, :, None].expand(-1, -1, self.n_features))
        point[..., : self.n_features] *= varies[:, :, None]
        return point

    def gram(self, row_weights: Float64[Tensor, "cell row"]) -> Float64[Tensor, "cell parameter parameter"]:
        """Weighted Gram matrix (lower triangle), framed as the fit on everything."""
        n_parameters = self.n_features + self.n_intercepts
        gram = row_weights.new_zeros(len(row_weights), n_parameters, n_parameters)
        for held, tile in self.tiles():
            features = self._full.apply(tile) if self._full.preprocessing.centres else tile
            if self.n_intercepts:
                features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
            add_gram(gram, features, row_weights[:, held])
        return gram

    def _marginals(self, sets: TrainingSets, preprocessing: Preprocessing) -> list[Marginals]:
        chunks, origin = self._rows.chunks(), self._rows.origin
        if self._reduced is not None:
            chunks = [replace(chunk, features=self._reduced) for chunk in chunks]
            origin = torch.zeros_like(self._reduced[:, 0])
        marginals = lot_marginals(chunks if preprocessing.centres else [], sets, preprocessing, origin)
        return [marginals.of_fit(lots) for lots in sets.lots]


@dataclass(frozen=True)
class Frames:
    """Shift and scale of the features of each column."""

    centre: Float64[Tensor, "cell column 1 feature"]
    scale: Float64[Tensor, "cell column 1 feature"]


@dataclass(frozen=True)
class Problem:
    """Columns of a block at work: their design, loss, frames, targets, and how much each row counts for each of them.

    Targets that all columns share come once.
    """

    design: Design
    loss: Loss
    columns: Columns
    frames: Frames | None
    weights: Float64[Tensor, "cell row column"]
    targets: Float64[Tensor, "#cell row #column output"]

    @classmethod
    def of(
        cls, design: Design, loss: Loss, columns: Columns, targets: Float64[Tensor, "#cell sample #column output"]
    ) -> Problem:
        """Look up the frame and the weights of each column's training set."""
        weights = design.weights[columns.fit].mT.contiguous()
        return cls(design, loss, columns, design.frames_of(columns), weights, targets[:, design.order])

    def take(self, kept: Int64[Tensor, "cell kept"]) -> Problem:
        """Some of the columns of each cell."""
        targets = self.targets if self.targets.shape[2] == 1 else pick(self.targets, kept, 2)
        columns = self.columns.take(kept)
        weights = pick(self.weights, kept, 2)
        return Problem(self.design, self.loss, columns, self.design.frames_of(columns), weights, targets)

    @property
    def at_zero(self) -> Float64[Tensor, "cell column output parameter"]:
        """The point where all coefficients are zero."""
        n_parameters = self.design.n_features + self.design.n_intercepts
        return self.weights.new_zeros(*self.columns.fit.shape, self.targets.shape[-1], n_parameters)

    def raw(
        self, point: Float64[Tensor, "cell column output parameter"]
    ) -> tuple[Float64[Tensor, "cell column output feature"], Float64[Tensor, "cell column output"] | None]:
        """Coefficients of the raw features, and what has to be added to the features times them; None: nothing."""
        if self.frames is None:
            return point, None
        n_features = self.design.n_features
        coef = point[..., :n_features] / self.frames.scale
        return coef, point[..., n_features:].sum(-1) - (coef * self.frames.centre).sum(-1)

    def framed(
        self,
        coef: Float64[Tensor, "cell column output feature"],
        offset: Float64[Tensor, "cell column output"] | None,
    ) -> Float64[Tensor, "cell column output parameter"]:
        """The point of raw coefficients and offset: the inverse of `raw`."""
        if self.frames is None or offset is None:
            return coef
        intercept = (offset + (coef * self.frames.centre).sum(-1))[..., None]
        coef = coef * self.frames.scale
        return torch.cat([coef, intercept], -1) if self.design.n_intercepts else coef

    def decide(
        self, point: Float64[Tensor, "cell column output parameter"]
    ) -> Float64[Tensor, "cell row column output"]:
        """Decision values of all rows."""
        coef, offset = self.raw(point)
        return torch.cat([_decide(tile, coef, offset) for _, tile in self.design.tiles()], 1)

    def objective(
        self,
        decision: Float64[Tensor, "cell row column output"],
        point: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column"]:
        """The objective of each column."""
        losses = (self.weights * self.loss.value(decision, self.targets)).sum(1)
        return losses + 0.5 * inner(self.design.penalised(self.columns, point), point)

    def gradient(
        self,
        predictions: Float64[Tensor, "cell row column output"],
        point: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Gradient of the objective at `point`, which gave `predictions`."""
        errors = self.weights[..., None] * (predictions - self.targets)
        summed = torch.zeros_like(point[..., : self.design.n_features])
        for held, tile in self.design.tiles():
            summed += _sum_back(tile, errors[:, held])
        total = None if self.frames is None else errors.sum(1)
        return self.design.add_penalised(self._back(summed, total), self.columns, point)

    def gap(
        self,
        predictions: Float64[Tensor, "cell row column output"],
        gradient: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column"]:
        """Bound on the excess of the objective; an intercept, which has no penalty, adds what its Newton step gains."""
        n_features = self.design.n_features
        bound = duality_gap(gradient[..., :n_features].square().sum((2, 3)), self.columns.penalty)
        if self.design.n_intercepts:
            curvature = (self.weights[..., None] * predictions * (1 - predictions)).sum(1)
            slope = gradient[..., n_features].square()
            bound = bound + torch.where(slope > 0, slope / (2 * curvature), 0.0).sum(2)
        return bound

    def hessian_times(
        self,
        curvature: Float64[Tensor, "cell row column output"],
        predictions: Float64[Tensor, "cell row column output"],
        vector: Float64[Tensor, "cell column output parameter"],
    ) -> tuple[Float64[Tensor, "cell column output parameter"], Float64[Tensor, "cell row column output"]]:
        """Exact Hessian-vector product, and the decision values of the vector; one pass over the rows.

        `curvature` is that of `Loss.curvature` at `predictions`.
        """
        coef, offset = self.raw(vector)
        decision: Tensor | None = None
        summed: Tensor | None = None
        total = None if offset is None else torch.zeros_like(offset)
        for held, tile in self.design.tiles():
            decided = _decide(tile, coef, offset)
            curved = self.loss.curve(curvature[:, held], predictions[:, held], decided)
            back = _sum_back(tile, curved)
            summed = back if summed is None else summed.add_(back)
            if total is not None:
                total += curved.sum(1)
            if decided.shape == predictions.shape:
                decision = decided
                break
            decision = torch.empty_like(predictions) if decision is None else decision
            decision[:, held] = decided
        assert decision is not None
        assert summed is not None
        return self.design.add_penalised(self._back(summed, total), self.columns, vector), decision

    def _back(
        self,
        summed: Float64[Tensor, "cell column output feature"],
        total: Float64[Tensor, "cell column output"] | None,
    ) -> Float64[Tensor, "cell column output parameter"]:
        """X'e in the parameter space, from that of the raw features and the sum of e over the rows."""
        if self.frames is None or total is None:
            return summed
        features = (summed - total[..., None] * self.frames.centre) / self.frames.scale
        return torch.cat([features, total[..., None]], -1) if self.design.n_intercepts else features


def _decide(tile: Tensor, coef: Tensor, offset: Tensor | None) -> Float64[Tensor, "cell row column output"]:
    decision = (tile @ coef.flatten(1, 2).mT).unflatten(2, coef.shape[1:3])
    return decision if offset is None else decision.add_(offset[:, None])


def _sum_back(tile: Tensor, errors: Tensor) -> Float64[Tensor, "cell column output feature"]:
    return (errors.flatten(2).mT @ tile).unflatten(1, errors.shape[2:])


def inner(a: Tensor, b: Tensor) -> Float64[Tensor, "cell column"]:
    """Inner products over outputs and features, column by column."""
    return (a.flatten(2)[:, :, None] @ b.flatten(2)[..., None]).squeeze((2, 3))


def pick(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int) -> Tensor:
    """Some of the columns of each cell, which lie along `dim`."""
    return values.gather(dim, spread(values, kept, dim))


def spread(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int) -> Int64[Tensor, ...]:
    """Indices of the kept columns, as `torch.gather` takes them."""
    shape = [*values.shape]
    shape[dim] = kept.shape[1]
    ones = [1] * values.dim()
    ones[0], ones[dim] = kept.shape
    return kept.reshape(ones).expand(shape)
