"""The linear system of a ridge: an unknown for each feature, or one for each training row.

The minimiser of ``1/2 |y - Xw|^2 + 1/2 penalty |w|^2`` solves ``(X'X + penalty I) w = X'y``. With fewer rows than
features it is ``w = X'u`` with ``(XX' + penalty I) u = y``, a smaller system with the same solution. An intercept is
eliminated by centring X and y on each fit's training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from gpu_probes.features.rows import Rows
from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.solvers.cholesky import Factor
from gpu_probes.solvers.moments import add_gram, lot_crosses, lot_marginals, lot_moments, mirrored
from gpu_probes.solvers.objective import duality_gap
from gpu_probes.solvers.preprocessing import Frame, Marginals, Preprocessing


@dataclass(frozen=True)
class System:
    """``(matrix + penalty I) unknown = right_side`` of one fit; only the lower triangle of `matrix` counts."""

    matrix: Float64[Tensor, "cell n n"]
    right_side: Float64[Tensor, "cell target n"]


@dataclass(frozen=True)
class Measured:
    """What the rows say of one fit's coefficients: predictions, and weighted errors summed back over the rows."""

    decision: Float64[Tensor, "cell penalty target sample"]
    back: Float64[Tensor, "cell penalty target feature"]
    total: Float64[Tensor, "cell penalty target"]


class Framed:
    """The rows as each fit sees them: shifted and scaled on its own training rows."""

    def __init__(self, rows: Rows, sets: TrainingSets, preprocessing: Preprocessing, frames: list[Frame]) -> None:
        self.rows, self.sets, self.preprocessing, self.frames = rows, sets, preprocessing, frames

    @classmethod
    def of(cls, rows: Rows, sets: TrainingSets, preprocessing: Preprocessing) -> Framed:
        """Sum up what shifts and scales take, in one pass."""
        marginals = lot_marginals(rows.chunks(), sets, preprocessing, rows.origin)
        no_targets = marginals.weight.new_zeros(0)
        frames = [Frame.of(marginals.of_fit(lots), no_targets, preprocessing) for lots in sets.lots]
        return cls(rows, sets, preprocessing, frames)

    def project(self, coef: Float64[Tensor, "cell fit output feature"]) -> Float64[Tensor, "cell fit sample output"]:
        """Raw features times raw coefficients."""
        decision = coef.new_empty(*coef.shape[:2], self.rows.n_samples, coef.shape[2])
        for chunk in self.rows.chunks():
            decision[:, :, chunk.samples] = chunk.features[:, None] @ coef.mT
        return decision

    def other_targets(
        self, targets: Float64[Tensor, "sample column"]
    ) -> Callable[[int], Float64[Tensor, "cell n column"]]:
        """Right sides of each fit for other targets; what they add to an intercept is left out."""
        crosses = lot_crosses(self.rows, targets, self.sets)

        def right_side(fit: int) -> Float64[Tensor, "cell n column"]:
            cross, total = crosses.of_fit(self.sets.lots[fit])
            if not self.preprocessing.centres:
                return cross
            return self.frames[fit].back(cross.mT, total.expand(len(cross), -1)).mT

        return right_side

    def held_out(self, fit: int) -> Iterator[Float64[Tensor, "cell row n"]]:
        """Rows of the fold that a fit left out, piece by piece: times an unknown, their decision but for a constant."""
        for chunk in self.rows.chunks():
            yield self.frames[fit].apply(chunk.features[:, chunk.lots[fit]])


class Primal(Framed):
    """Unknowns are the coefficients of the shifted and scaled features."""

    def __init__(
        self, rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets, preprocessing: Preprocessing
    ) -> None:
        self.targets = targets
        self._moments = lot_moments(rows, targets, sets, preprocessing)
        marginals, target_mean = self._moments.marginals, self._moments.target_mean_of_fit
        frames = [Frame.of(marginals.of_fit(lots), target_mean(lots), preprocessing) for lots in sets.lots]
        super().__init__(rows, sets, preprocessing, frames)

    def system(self, fit: int) -> System:
        """Gram matrix and right side, of centred and scaled features, until the next system is asked for."""
        frame = self.frames[fit]
        moments = self._moments.of_fit(self.sets.lots[fit], frame, self.rows.workspace)
        if frame.preprocessing.standardize:
            moments.gram.div_(frame.scale[:, :, None]).div_(frame.scale[:, None, :])
        return System(moments.gram, moments.cross.mT / frame.scale[:, None])

    def coef(
        self, fit: int, unknown: Float64[Tensor, "cell penalty target n"]
    ) -> Float64[Tensor, "cell penalty target feature"]:
        """Raw coefficients."""
        return self.frames[fit].raw(unknown)

    def residual(
        self,
        fit: int,
        penalty: Float64[Tensor, "penalty 1 1"],
        unknown: Float64[Tensor, "cell penalty target n"],
        measured: Measured,
    ) -> Float64[Tensor, "cell penalty target n"]:
        """Right side minus system times unknown, by way of the rows: minus the gradient of the objective."""
        return self.frames[fit].back(measured.back, measured.total) - penalty * unknown

    def gap(
        self, residual: Float64[Tensor, "cell penalty target n"], penalty: Float64[Tensor, "penalty 1"]
    ) -> Float64[Tensor, "cell penalty target"]:
        """Bound on the excess of the objective."""
        return duality_gap(residual.square().sum(-1), penalty)

    def excess(
        self,
        residual: Float64[Tensor, "cell penalty target n"],
        step: Float64[Tensor, "cell penalty target n"],
        factor: Factor,
    ) -> Float64[Tensor, "cell penalty target"]:
        """Excess of the objective, ``1/2 r'(X'X + penalty I)^-1 r``: half the residual times the step it leads to."""
        return 0.5 * factor.distortion[:, None, None] * (residual * step).sum(-1)


class Dual:
    """Unknowns are one number per training row; they fit in memory, or there were more features than that."""

    def __init__(
        self, rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets, preprocessing: Preprocessing
    ) -> None:
        self.rows, self.targets, self.sets, self.preprocessing = rows, targets, sets, preprocessing
        (chunk,) = rows.chunks()
        self._features, self._samples, self._lots = chunk.features, chunk.samples, chunk.lots
        self._targets = targets[chunk.samples]
        weights = sets.weights(chunk.samples)
        self._root = weights.sqrt()
        self._kept = [torch.nonzero(weight).flatten() for weight in weights]
        self.frames = [self._frame(weight) for weight in weights]
        self._kernel = None if preprocessing.centres else _kernel(self._features)

    def _frame(self, weight: Float64[Tensor, " row"]) -> Frame:
        if not self.preprocessing.centres:
            return Frame.unchanged(self.rows.origin, self._targets.shape[1], self.preprocessing)
        marginals = Marginals.of_rows(self._features, weight, self.rows.origin)
        return Frame.of(marginals, weight @ self._targets / weight.sum(), self.preprocessing)

    def system(self, fit: int) -> System:
        """The training rows' part of the kernel."""
        kept, frame = self._kept[fit], self.frames[fit]
        root = self._root[fit, kept]
        if self._kernel is None:
            kernel = _kernel(frame.apply(self._features[:, kept]))
        else:
            kernel = self._kernel.index_select(1, kept).index_select(2, kept)
        kernel.mul_(root).mul_(root[:, None])
        right_side = root * (self._targets[kept] - frame.target_centre).mT
        return System(kernel, right_side.expand(len(kernel), -1, -1))

    def coef(
        self, fit: int, unknown: Float64[Tensor, "cell penalty target n"]
    ) -> Float64[Tensor, "cell penalty target feature"]:
        """Raw coefficients: the rows summed up by the unknowns."""
        kept, frame = self._kept[fit], self.frames[fit]
        by_row = unknown.new_zeros(*unknown.shape[:3], self._features.shape[1])
        by_row[..., kept] = self._root[fit, kept] * unknown
        summed = (by_row.flatten(1, 2) @ self._features).unflatten(1, unknown.shape[1:3])
        return frame.raw(frame.back(summed, by_row.sum(-1)))

    def residual(
        self,
        fit: int,
        penalty: Float64[Tensor, "penalty 1 1"],
        unknown: Float64[Tensor, "cell penalty target n"],
        measured: Measured,
    ) -> Float64[Tensor, "cell penalty target n"]:
        """Right side minus system times unknown, by way of the coefficients."""
        kept = self._kept[fit]
        errors = self._targets[kept].mT - measured.decision[..., self._samples[kept]]
        return self._root[fit, kept] * errors - penalty * unknown

    def other_targets(
        self, targets: Float64[Tensor, "sample column"]
    ) -> Callable[[int], Float64[Tensor, "cell n column"]]:
        """Right sides of each fit for other targets; what they add to an intercept is left out.

        A constant in the targets is an eigenvector of the centred kernel that reaches no coefficient.
        """
        by_row = targets[self._samples]

        def right_side(fit: int) -> Float64[Tensor, "cell n column"]:
            kept = self._kept[fit]
            weighted = self._root[fit, kept, None] * by_row[kept] if self.sets.weighted else by_row[kept]
            return weighted.expand(len(self._features), -1, -1)

        return right_side

    def held_out(self, fit: int) -> Iterator[Float64[Tensor, "cell row n"]]:
        """Kernel of the fold that a fit left out: times an unknown, its rows' decision but for a constant."""
        held, kept, frame = self._lots[fit], self._kept[fit], self.frames[fit]
        if self._kernel is None:
            kernel = frame.apply(self._features[:, held]) @ frame.apply(self._features[:, kept]).mT
        else:
            kernel = _rows_of(self._kernel, held).index_select(2, kept)
        yield kernel * self._root[fit, kept] if self.sets.weighted else kernel

    def gap(
        self, residual: Float64[Tensor, "cell penalty target n"], penalty: Float64[Tensor, "penalty 1"]
    ) -> Float64[Tensor, "cell penalty target"]:
        """Bound on the excess of the objective: ``1/2 r'K (K + penalty I)^-1 r <= 1/2 r'r``."""
        return 0.5 * residual.square().sum(-1).expand(-1, len(penalty), -1)

    def excess(
        self, residual: Float64[Tensor, "cell penalty target n"], step: Tensor, factor: Factor
    ) -> Float64[Tensor, "cell penalty target"]:
        """The same bound, which is sharp."""
        return 0.5 * residual.square().sum(-1)


def _kernel(features: Float64[Tensor, "cell row feature"]) -> Float64[Tensor, "cell row row"]:
    """XX', its lower triangle."""
    kernel = features.new_zeros(*features.shape[:2], features.shape[1])
    add_gram(kernel, features.mT)
    return kernel


def _rows_of(kernel: Float64[Tensor, "cell row row"], held: slice) -> Float64[Tensor, "cell held row"]:
    """Some rows of a symmetric matrix of which the lower triangle is filled in."""
    rows = kernel[:, held].clone()
    rows[:, :, held] = mirrored(kernel[:, held, held])
    rows[:, :, held.stop :] = kernel[:, held.stop :, held].mT
    return rows
