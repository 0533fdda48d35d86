"""Ridge: factorise once, solve many, and certify against the rows themselves.

Both systems of `gpu_probes.solvers.systems` square the condition number of X. So every solution is measured by its
duality gap, from residuals that never use the squared matrix. Where that is too large, the solution is corrected from
those residuals; where even that is not enough, it is found again from a QR factorisation of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.solvers.cholesky import Factor, factorise
from gpu_probes.solvers.objective import HeldOut, ProbeFits
from gpu_probes.solvers.systems import Dual, Measured, Primal
from gpu_probes.terms import Solver

# Relative to half the sum of squared deviations of the targets: training predictions within 1e-7 deviations. Held-out
# ones can be further off at small penalties, so corrections, which are cheap, aim at 1e-8.
CERTIFICATE_LIMIT = 1e-14
_CERTIFICATE_GOAL = 1e-16
_MAX_CORRECTIONS = 4
_CACHED_ROWS = 256


def fit_ridge(space: Primal | Dual, penalties: Sequence[float]) -> list[ProbeFits]:
    """Fit every training set at every penalty; one factorisation serves all targets.

    Returns
    -------
    list of ProbeFits
        One for each target, with one output.
    """
    rows, targets, sets = space.rows, space.targets, space.sets
    unknowns: list[Tensor] = []
    singular = torch.zeros(rows.n_cells, sets.n_fits, len(penalties), dtype=torch.bool, device=targets.device)
    for fit in range(sets.n_fits):
        system = space.system(fit)
        solved = []
        for k, penalty in enumerate(penalties):
            factor = factorise(system.matrix, penalty, rows.workspace)
            solved.append(factor.solve(system.right_side.mT).mT)
            if penalty == 0:
                too_few = sets.n_rows[fit] < rows.n_features + space.preprocessing.fit_intercept
                singular[:, fit, k] = factor.singular | too_few
        unknowns.append(torch.stack(solved, 1))
    solutions = _Solutions(space, penalties, unknowns, singular)
    for fit, k in solutions.fits_above(_CERTIFICATE_GOAL):
        solutions.correct(fit, k)
    for fit, k in solutions.fits_above(CERTIFICATE_LIMIT):
        solutions.solve_rows(fit, k)
    return solutions.by_target()


def decide_held_out_ridge(
    space: Primal | Dual, penalties: Sequence[float], shuffled: Float64[Tensor, "sample shuffle output"]
) -> HeldOut:
    """Fit other versions of the targets without each fold, and decide the fold's samples."""
    right_sides = space.other_targets(shuffled.flatten(1))
    for fold in range(space.sets.n_folds):
        matrix, right_side = space.system(fold).matrix, right_sides(fold)
        kept = list(space.held_out(fold)) if space.rows.is_whole else None
        for penalty in penalties:
            factor = factorise(matrix, penalty, space.rows.workspace)
            held_out = space.held_out(fold) if kept is None else kept
            pieces = [_solve_between(factor, piece, right_side) for piece in held_out]
            yield fold, penalty, torch.cat(pieces, 1).mT.unflatten(1, shuffled.shape[1:]).mT


def _solve_between(
    factor: Factor, left: Float64[Tensor, "cell row n"], right: Float64[Tensor, "cell n column"]
) -> Float64[Tensor, "cell row column"]:
    """Product ``left (matrix + penalty I)^-1 right``, from the side that has less to solve."""
    if left.shape[1] < right.shape[2]:
        return factor.solve(left.mT).mT @ right
    return left @ factor.solve(right)


def _half_deviations(
    sets: TrainingSets, fit: int, targets: Float64[Tensor, "sample target"]
) -> Float64[Tensor, " target"]:
    """Half the weighted sum of squared deviations over the rows of one fit: its objective at zero."""
    weight = sets.lots[fit].included[sets.lot_of_sample] * sets.weight_of_sample
    return 0.5 * (weight @ (targets - (weight @ targets) / weight.sum()).square())


class _Solutions:
    """All fits of a block, and how each was found."""

    def __init__(
        self,
        space: Primal | Dual,
        penalties: Sequence[float],
        unknowns: list[Tensor],
        singular: Bool[Tensor, "cell fit penalty"],
    ) -> None:
        rows, targets, sets = space.rows, space.targets, space.sets
        self._rows, self._targets, self._sets, self._space = rows, targets, sets, space
        self._penalties = targets.new_tensor(list(penalties))[:, None, None]
        self._unknowns, self._singular = unknowns, singular
        at_zero = torch.stack([_half_deviations(sets, fit, targets) for fit in range(sets.n_fits)])
        # Targets that do not vary have no scale of their own.
        self._at_zero = torch.where(at_zero > 0, at_zero, 1.0)
        fits = range(sets.n_fits)
        self._coef = torch.stack([space.coef(fit, unknowns[fit]) for fit in fits], 1)
        self._coef[singular] = torch.nan
        self._intercept, self._decision, measured = self._measure(fits, self._coef)
        self._gap = torch.stack([self._relative_gap(f, self._penalties, unknowns[f], measured[f]) for f in fits], 1)
        self._solver = torch.full(singular.shape, int(Solver.CHOLESKY), dtype=torch.int8, device=targets.device)

    def above(self, limit: float) -> Bool[Tensor, "cell fit penalty"]:
        """Fits whose gap is larger than a limit, or not a number, though there is a solution."""
        return ~(self._gap <= limit).all(-1) & ~self._singular

    def fits_above(self, limit: float) -> list[tuple[int, int]]:
        """The same in any cell: numbers of fit and penalty."""
        above = self.above(limit).any(0).tolist()
        return [(fit, k) for fit, of_fit in enumerate(above) for k, is_above in enumerate(of_fit) if is_above]

    def correct(self, fit: int, k: int) -> None:
        """Correct the solution of one fit from its residual, until its gap is small enough."""
        penalty, unknown = self._penalties[k : k + 1], self._unknowns[fit][:, k : k + 1]
        among = self.above(_CERTIFICATE_GOAL)[:, fit, k]
        factor = factorise(self._space.system(fit).matrix, float(penalty), self._rows.workspace)
        coef, measured = self._coef[:, fit, k : k + 1], None
        for n_corrections in range(_MAX_CORRECTIONS + 1):
            intercept, _, (measured,) = self._measure(range(fit, fit + 1), coef[:, None])
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
        """Recompute one fit from a QR factorisation of its rows below ``sqrt(penalty) I``, without any squares."""
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
        intercept, _, (measured,) = self._measure(range(fit, fit + 1), coef[:, None])
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
        self, fits: range, coef: Float64[Tensor, "cell fit penalty target feature"]
    ) -> tuple[Float64[Tensor, "cell fit penalty target"], Tensor, list[Measured]]:
        """One pass over the rows for all these fits: intercepts, decision values, and views of them fit by fit."""
        frames = [self._space.frames[fit] for fit in fits]
        intercept = torch.stack([frame.intercept(coef[:, i]) for i, frame in enumerate(frames)], 1)
        columns = coef.shape[1:4]
        flat, offset = coef.flatten(1, 3), intercept.flatten(1, 3)[..., None]
        decision = coef.new_empty(*coef.shape[:4], self._rows.n_samples)
        back, total = torch.zeros_like(flat), torch.zeros_like(offset)
        for samples, features in self._pieces():
            values = (torch.baddbmm(offset, flat, features.mT)).unflatten(1, columns)
            weight = self._sets.weights(samples)[fits.start : fits.stop, None, None]
            errors = ((self._targets[samples].mT - values) * weight).flatten(1, 3)
            back += errors @ features
            total += errors.sum(2, keepdim=True)
            decision[..., samples] = values
        back, total = back.unflatten(1, columns), total.squeeze(2).unflatten(1, columns)
        return intercept, decision, [Measured(decision[:, i], back[:, i], total[:, i]) for i in range(len(fits))]

    def _pieces(self) -> Iterator[tuple[Int64[Tensor, " row"], Float64[Tensor, "cell row feature"]]]:
        """Samples and features of all rows: on a CPU so few at a time that its cache holds them for two products."""
        for chunk in self._rows.chunks():
            at_once = _CACHED_ROWS if chunk.features.device.type == "cpu" else len(chunk.samples)
            yield from zip(chunk.samples.split(at_once), chunk.features.split(at_once, 1), strict=True)

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
