"""Ridge: factorise once, solve many, and certify against the rows themselves.

The minimiser of ``1/2 |y - Xw|^2 + 1/2 penalty |w|^2`` solves ``(X'X + penalty I) w = X'y``. With fewer rows than
features it is ``w = X'u`` with ``(XX' + penalty I) u = y``, a smaller system with the same solution. An intercept is
eliminated by centring X and y on each fit's training rows.

Both systems square the condition number of X. So every solution is measured by its duality gap, from residuals that
never use the squared matrix. Where that is too large, the solution is corrected from those residuals; where even that
is not enough, it is found anew from a QR factorisation of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gpu_probes.cholesky import Factor, factorise
from gpu_probes.moments import add_gram, lot_moments
from gpu_probes.objective import ProbeFits, Solver, duality_gap
from gpu_probes.preprocessing import Frame, Preprocessing
from gpu_probes.rows import Rows, TrainingSets

# Relative to half the sum of squared deviations of the targets: training predictions within 1e-7 deviations. Held-out
# ones can be further off at small penalties, so corrections, which are cheap, aim at 1e-8.
CERTIFICATE_LIMIT = 1e-14
_CERTIFICATE_GOAL = 1e-16
_MAX_CORRECTIONS = 4


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


class Primal:
    """Unknowns are the coefficients of the shifted and scaled features."""

    def __init__(
        self, rows: Rows, targets: Float64[Tensor, "sample target"], sets: TrainingSets, preprocessing: Preprocessing
    ) -> None:
        self._moments = lot_moments(rows, targets, sets)
        self._included = sets.included
        self.frames = [Frame.of(self._moments.marginals(lots), preprocessing) for lots in sets.included]

    def system(self, fit: int) -> System:
        """Gram matrix and right side, centred and scaled by their sums."""
        moments, frame = self._moments.of_fit(self._included[fit]), self.frames[fit]
        matrix, cross = moments.gram, moments.cross.mT
        if frame.preprocessing.centres:
            matrix.baddbmm_(frame.centre[:, :, None], -moments.weight * frame.centre[:, None, :])
            cross = cross - moments.targets[:, None] * frame.centre[:, None]
        if frame.preprocessing.standardize:
            matrix.div_(frame.scale[:, :, None]).div_(frame.scale[:, None, :])
        return System(matrix, cross / frame.scale[:, None])

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
        (chunk,) = rows.chunks()
        self._features, self._samples, self._targets = chunk.features, chunk.samples, targets[chunk.samples]
        weights = sets.weights(chunk.samples)
        self._root = weights.sqrt()
        self._kept = [torch.nonzero(weight).flatten() for weight in weights]
        self.frames = [Frame.of_rows(self._features, self._targets, weight, preprocessing) for weight in weights]
        self._kernel = None if preprocessing.centres else _kernel(self._features)

    def system(self, fit: int) -> System:
        """The training rows' part of the kernel."""
        kept, frame = self._kept[fit], self.frames[fit]
        root = self._root[fit, kept]
        if self._kernel is None:
            kernel = _kernel(frame.apply(self._features[:, kept]))
        else:
            kernel = self._kernel[:, kept][:, :, kept]
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
    for cell, rows in enumerate(features):
        add_gram(kernel[cell], rows.mT)
    return kernel


def fit_ridge(
    rows: Rows,
    targets: Float64[Tensor, "sample target"],
    sets: TrainingSets,
    penalties: Sequence[float],
    preprocessing: Preprocessing,
    *,
    dual: bool,
) -> list[ProbeFits]:
    """Fit every training set at every penalty; one factorisation serves all targets.

    `dual` solves for a number per row: where some fit has fewer rows than features, the primal solution of a small
    penalty is exact on those rows but less so on others.

    Returns
    -------
    list of ProbeFits
        One for each target, with one output.
    """
    space = (Dual if dual else Primal)(rows, targets, sets, preprocessing)
    unknowns: list[Tensor] = []
    singular = torch.zeros(rows.n_cells, sets.n_fits, len(penalties), dtype=torch.bool, device=targets.device)
    for fit in range(sets.n_fits):
        system = space.system(fit)
        solved = []
        for k, penalty in enumerate(penalties):
            factor = factorise(system.matrix, penalty)
            solved.append(factor.solve(system.right_side.mT).mT)
            if penalty == 0:
                too_few = sets.n_rows(fit) < rows.n_features + preprocessing.fit_intercept
                singular[:, fit, k] = factor.singular | too_few
        unknowns.append(torch.stack(solved, 1))
    solutions = _Solutions(rows, targets, sets, penalties, space, unknowns, singular)
    for fit, k in torch.nonzero(solutions.above(_CERTIFICATE_GOAL).any(0)).tolist():
        solutions.correct(fit, k)
    for fit, k in torch.nonzero(solutions.above(CERTIFICATE_LIMIT).any(0)).tolist():
        solutions.solve_rows(fit, k)
    return solutions.by_target()


class _Solutions:
    """All fits of a block, and how each was found."""

    def __init__(
        self,
        rows: Rows,
        targets: Float64[Tensor, "sample target"],
        sets: TrainingSets,
        penalties: Sequence[float],
        space: Primal | Dual,
        unknowns: list[Tensor],
        singular: Bool[Tensor, "cell fit penalty"],
    ) -> None:
        self._rows, self._targets, self._sets, self._space = rows, targets, sets, space
        self._penalties = targets.new_tensor(list(penalties))[:, None, None]
        self._unknowns, self._singular = unknowns, singular
        weights = sets.weights(torch.arange(rows.n_samples, device=targets.device))
        means = (weights @ targets) / weights.sum(1, keepdim=True)
        at_zero = 0.5 * torch.einsum("fn,fnt->ft", weights, (targets - means[:, None]).square())
        # Targets that do not vary have no scale of their own.
        self._at_zero = torch.where(at_zero > 0, at_zero, 1.0)
        fits = range(sets.n_fits)
        self._coef = torch.stack([space.coef(fit, unknowns[fit]) for fit in fits], 1)
        self._coef[singular] = torch.nan
        self._intercept, measured = self._measure(fits, self._coef)
        self._decision = torch.stack([m.decision for m in measured], 1)
        self._gap = torch.stack([self._relative_gap(f, self._penalties, unknowns[f], measured[f]) for f in fits], 1)
        self._solver = torch.full(singular.shape, int(Solver.CHOLESKY), dtype=torch.int8, device=targets.device)

    def above(self, limit: float) -> Bool[Tensor, "cell fit penalty"]:
        """Fits whose gap is larger than a limit, or not a number, though there is a solution."""
        return ~(self._gap <= limit).all(-1) & ~self._singular

    def correct(self, fit: int, k: int) -> None:
        """Correct the solution of one fit from its residual, until its gap is small enough."""
        penalty, unknown = self._penalties[k : k + 1], self._unknowns[fit][:, k : k + 1]
        among = self.above(_CERTIFICATE_GOAL)[:, fit, k]
        factor = factorise(self._space.system(fit).matrix, float(penalty))
        coef, measured = self._coef[:, fit, k : k + 1], None
        for n_corrections in range(_MAX_CORRECTIONS + 1):
            intercept, (measured,) = self._measure([fit], coef[:, None])
            residual = self._space.residual(fit, penalty, unknown, measured)
            step = factor.solve(residual.flatten(1, 2).mT).mT.unflatten(1, residual.shape[1:3])
            gap = self._space.excess(residual, step, factor) / self._at_zero[fit]
            solver = Solver.CORRECTED if n_corrections else Solver.CHOLESKY
            self._keep_better(fit, k, among, coef, intercept[:, 0], measured.decision, gap, solver)
            if not bool(self.above(_CERTIFICATE_GOAL)[:, fit, k].any()):
                return
            unknown = unknown + step
            coef = self._space.coef(fit, unknown)

    def solve_rows(self, fit: int, k: int) -> None:
        """Find one fit anew from a QR factorisation of its rows below ``sqrt(penalty) I``, without any squares."""
        among = self.above(CERTIFICATE_LIMIT)[:, fit, k]
        cells = torch.nonzero(among).flatten()
        penalty, d, n_targets = float(self._penalties[k]), self._rows.n_features, self._targets.shape[1]
        frame, whole = self._space.frames[fit].take(cells), self._space.frames[fit]
        triangle = torch.eye(d, d + n_targets, dtype=torch.float64, device=self._targets.device)
        triangle = (penalty**0.5 * triangle).expand(len(cells), -1, -1)
        for chunk in self._rows.chunks():
            for samples, features in zip(chunk.samples.split(d), chunk.features.split(d, 1), strict=True):
                root = self._sets.weights(samples)[fit].sqrt()[:, None]
                shifted = (self._targets[samples] - frame.target_centre).expand(len(cells), -1, -1)
                below = root * torch.cat([frame.apply(features[cells]), shifted], 2)
                triangle = torch.linalg.qr(torch.cat([triangle, below], 1), mode="r").R
        triangle, right_side = triangle[:, :d, :d], triangle[:, :d, d:]
        unknown = torch.linalg.solve_triangular(triangle, right_side, upper=True)
        coef = self._coef[:, fit, k : k + 1].clone()
        coef[cells] = frame.raw(unknown.mT)[:, None]
        intercept, (measured,) = self._measure([fit], coef[:, None])
        gradient = whole.back(measured.back, measured.total)[cells, 0].mT - penalty * unknown
        half = torch.linalg.solve_triangular(triangle.mT, gradient, upper=False)
        gap = torch.full_like(self._gap[:, fit, k : k + 1], torch.inf)
        gap[cells] = 0.5 * half.square().sum(1)[:, None] / self._at_zero[fit]
        self._keep_better(fit, k, among, coef, intercept[:, 0], measured.decision, gap, Solver.QR)

    def by_target(self) -> list[ProbeFits]:
        """One result for each target."""
        return [
            ProbeFits(
                coef=self._coef[:, :, :, t : t + 1],
                intercept=self._intercept[:, :, :, t : t + 1],
                decision=self._decision[:, :, :, t, :, None],
                certificate=self._gap[..., t],
                converged=(self._gap[..., t] <= CERTIFICATE_LIMIT) & self._coef[:, :, :, t].isfinite().all(-1),
                solver=self._solver,
            )
            for t in range(self._targets.shape[1])
        ]

    def _measure(
        self, fits: Sequence[int], coef: Float64[Tensor, "cell fit penalty target feature"]
    ) -> tuple[Float64[Tensor, "cell fit penalty target"], list[Measured]]:
        """One pass over the rows for all these fits."""
        frames = [self._space.frames[fit] for fit in fits]
        intercept = torch.stack([frame.intercept(coef[:, i]) for i, frame in enumerate(frames)], 1)
        columns = coef.shape[1:4]
        flat, offset = coef.flatten(1, 3), intercept.flatten(1, 3)[..., None]
        decision = coef.new_empty(*coef.shape[:4], self._rows.n_samples)
        back, total = torch.zeros_like(flat), torch.zeros_like(offset)
        for chunk in self._rows.chunks():
            values = (torch.baddbmm(offset, flat, chunk.features.mT)).unflatten(1, columns)
            weight = self._sets.weights(chunk.samples)[list(fits)][:, None, None]
            errors = ((self._targets[chunk.samples].mT - values) * weight).flatten(1, 3)
            back += errors @ chunk.features
            total += errors.sum(2, keepdim=True)
            decision[..., chunk.samples] = values
        back, total = back.unflatten(1, columns), total.squeeze(2).unflatten(1, columns)
        return intercept, [Measured(decision[:, i], back[:, i], total[:, i]) for i in range(len(fits))]

    def _relative_gap(
        self, fit: int, penalty: Float64[Tensor, "penalty 1 1"], unknown: Tensor, measured: Measured
    ) -> Float64[Tensor, "cell penalty target"]:
        residual = self._space.residual(fit, penalty, unknown, measured)
        return self._space.gap(residual, penalty.squeeze(2)) / self._at_zero[fit]

    def _keep_better(
        self,
        fit: int,
        k: int,
        among: Bool[Tensor, " cell"],
        coef: Float64[Tensor, "cell 1 target feature"],
        intercept: Float64[Tensor, "cell 1 target"],
        decision: Float64[Tensor, "cell 1 target sample"],
        gap: Float64[Tensor, "cell 1 target"],
        solver: Solver,
    ) -> None:
        """Take what has a smaller gap than before, cell by cell, among some cells."""
        held = self._gap[:, fit, k]
        better = among & ((gap[:, 0].amax(-1) < held.amax(-1)) | held.isnan().any(-1))
        new = ((self._coef, coef), (self._intercept, intercept), (self._decision, decision), (self._gap, gap))
        for values, candidate in new:
            values[better, fit, k] = candidate[better, 0]
        self._solver[better, fit, k] = int(solver)
