"""Truncated Newton with a line search, all columns at once, preconditioned by ridge factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.solvers.cholesky import Factor, factorise_near
from gpu_probes.solvers.logistic_problem import Columns, Design, Problem, inner, pick, spread

MAX_NEWTON_STEPS = 100
# Relative to the objective at zero.
CERTIFICATE_LIMIT = 1e-12
# Rounding can keep the gap of a minimum above the limit; above this one, the gap no longer tells a minimum.
SETTLED_LIMIT = 1e-4
# Bound on the relative error of the coefficients before the last step, which squares it.
_TOLERANCE = 1e-5
# After about as many steps as a factor of its own costs, a penalty gets one, and then as many as it needs.
_MAX_CG_STEPS = 16
_MAX_CG_STEPS_REFRESHED = 256
_MAX_HALVINGS = 40
_ARMIJO = 1e-4


class Preconditioner:
    """One factor per penalty, shared by its fits: of the bound on the Hessian, until a penalty gets its own."""

    def __init__(self, problem: Problem, penalties: Sequence[float]) -> None:
        self._penalties, self._loss, self._design = penalties, problem.loss, problem.design
        self._n_columns = problem.columns.fit.shape[1]
        design = problem.design
        everything = design.weights[-1].expand(len(problem.weights), -1)
        bound = problem.loss.curvature_bound * design.gram(everything)
        self._factors: list[list[Factor]] = [[self._factorise(design, bound, penalty)] for penalty in penalties]
        self.refreshed = [False] * len(penalties)

    def refresh(self, index: int, part: Problem, predictions: Float64[Tensor, "cell row column output"]) -> None:
        """Give a penalty the factors of its Hessian's diagonal blocks, averaged over its columns in `part`."""
        counts = part.weights * (part.columns.penalty_index == index)[:, None]
        curvature = torch.einsum("cnk,cnko->cno", counts, predictions * (1 - predictions))
        n_columns = (counts > 0).sum(2)[..., None].clamp(min=1)
        blocks = [part.design.gram(weight) for weight in (curvature / n_columns).unbind(2)]
        self._factors[index] = [self._factorise(part.design, block, self._penalties[index]) for block in blocks]
        self.refreshed[index] = True

    def apply(
        self, columns: Columns, vector: Float64[Tensor, "cell column output parameter"], indices: Sequence[int]
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Approximately apply the inverse Hessian of columns, whose penalties are among `indices`."""
        everywhere = vector.new_zeros(len(vector), self._n_columns, *vector.shape[2:])
        put(everywhere, columns.place, 1, vector)
        by_penalty = everywhere.unflatten(1, (-1, len(self._penalties)))
        for index in indices:
            factors, right_side = self._factors[index], by_penalty[:, :, index]
            if len(factors) == 1:
                solved = factors[0].solve(right_side.flatten(1, 2).mT).mT.unflatten(1, right_side.shape[1:3])
            else:
                solved = torch.stack([f.solve(right_side[:, :, o].mT).mT for o, f in enumerate(factors)], 2)
            by_penalty[:, :, index] = solved
        return self._design.confine(columns, self._loss.project(pick(everywhere, columns.place, 1)))

    def _factorise(self, design: Design, matrix: Float64[Tensor, "cell n n"], penalty: float) -> Factor:
        return factorise_near(matrix, penalty, design.n_features)


@dataclass(frozen=True)
class Step:
    """A truncated Newton direction of each column; `capped` where conjugate gradients ran out of steps or failed."""

    direction: Float64[Tensor, "cell column output parameter"]
    change: Float64[Tensor, "cell row column output"]
    slope: Float64[Tensor, "cell column"]
    capped: Bool[Tensor, "cell column"]


def minimise(
    problem: Problem,
    preconditioner: Preconditioner,
    start: Float64[Tensor, "cell column output parameter"],
    *,
    tolerance: float = _TOLERANCE,
    certify: bool = True,
) -> tuple[Float64[Tensor, "cell column output parameter"], Bool[Tensor, "cell column"]]:
    """Minimise every column; columns that are done are dropped from the work.

    A step is small when its decrement bounds the relative error of the coefficients (the objective is strongly convex,
    so penalty |w - w*|^2 <= decrement near the minimum) or the excess of the objective by its rounding. The decrement
    of a truncated step is an estimate. So a column is done when, after a small step, its gap is within the limit; or,
    where rounding or a tiny penalty keeps the gap above it, after another small step. Without `certify` one small step
    is enough.

    Returns
    -------
    point, settled
    """
    point, decision = start.clone(), problem.decide(start)
    nothing, undecided = problem.at_zero, torch.zeros_like(decision)
    at_zero = problem.objective(undecided, nothing)
    gradient_at_zero = _norm(problem.gradient(problem.loss.predictions(undecided), nothing))
    settled = torch.zeros(point.shape[:2], dtype=torch.bool, device=point.device)
    active, stale, nearly = ~settled, torch.zeros_like(settled), torch.zeros_like(settled)
    for _ in range(MAX_NEWTON_STEPS):
        kept = _first(active)
        part, here, at = problem.take(kept), pick(point, kept, 1), pick(decision, kept, 2)
        predictions = part.loss.predictions(at)
        was_stale = pick(stale, kept, 1)
        for index in part.columns.penalty_index[was_stale].unique().tolist():
            preconditioner.refresh(index, part, predictions)
        gradient = part.gradient(predictions, here)
        was_small, wanted = pick(nearly, kept, 1), pick(active, kept, 1)
        certain = was_small & (part.gap(predictions, gradient) <= CERTIFICATE_LIMIT * pick(at_zero, kept, 1))
        put(settled, kept, 1, certain | pick(settled, kept, 1))
        wanted = wanted & ~certain
        put(active, kept, 1, wanted)
        if not bool(wanted.any()):
            break
        forcing = (_norm(gradient) / pick(gradient_at_zero, kept, 1)).sqrt().clamp(max=0.1)
        max_steps = torch.where(was_stale, _MAX_CG_STEPS_REFRESHED, _MAX_CG_STEPS)
        step = newton_direction(part, predictions, gradient, wanted, forcing, max_steps, preconditioner)
        length = line_search(part, at, here, step) * wanted
        put(decision, kept, 2, at + length[:, None, :, None] * step.change)
        now = here + length[:, :, None, None] * step.direction
        put(point, kept, 1, now)
        put(stale, kept, 1, step.capped)
        size = inner(part.design.penalised(part.columns, now), now)
        enough = torch.maximum(tolerance**2 * size, pick(at_zero, kept, 1) * torch.finfo(size.dtype).eps)
        small = wanted & (-step.slope <= enough) & ~step.capped
        put(nearly, kept, 1, small | was_small)
        done = small & was_small if certify else small
        put(settled, kept, 1, done | pick(settled, kept, 1))
        put(active, kept, 1, wanted & ~done & (length > 0))
        if not bool(active.any()):
            break
    return point, settled


def newton_direction(
    part: Problem,
    predictions: Float64[Tensor, "cell row column output"],
    gradient: Float64[Tensor, "cell column output parameter"],
    wanted: Bool[Tensor, "cell column"],
    forcing: Float64[Tensor, "cell column"],
    max_steps: Int64[Tensor, "cell column"],
    preconditioner: Preconditioner,
) -> Step:
    """Solve H d = -g for the wanted columns by conjugate gradients, to `forcing` in the preconditioner's norm."""
    direction, change = torch.zeros_like(gradient), torch.zeros_like(predictions)
    indices = part.columns.penalty_index.unique().tolist()
    residual = -gradient
    search = preconditioner.apply(part.columns, residual, indices)
    size = inner(residual, search)
    goal = forcing.square() * size
    live = wanted & (size > 0)
    n_steps = 0
    kept, working, there = None, part, predictions
    while bool(live.any()):
        n_steps += 1
        if kept is None or int(live.sum(1).max()) < kept.shape[1]:
            kept = _first(live)
            working, there = part.take(kept), pick(predictions, kept, 2)
            indices = working.columns.penalty_index.unique().tolist()
        going = pick(live, kept, 1)
        along, left, old_size = pick(search, kept, 1), pick(residual, kept, 1), pick(size, kept, 1)
        curved, decided = working.hessian_times(there, along)
        length = torch.where(going, old_size / inner(along, curved), 0.0)
        put(direction, kept, 1, pick(direction, kept, 1) + length[:, :, None, None] * along)
        put(change, kept, 2, pick(change, kept, 2) + length[:, None, :, None] * decided)
        left = left - length[:, :, None, None] * curved
        preconditioned = preconditioner.apply(working.columns, left, indices)
        new_size = torch.where(going, inner(left, preconditioned), old_size)
        put(residual, kept, 1, left)
        # A column that has come to its end may still be there to fill up its cell's.
        ratio = torch.where(going, new_size / old_size, 0.0)
        put(search, kept, 1, preconditioned + ratio[:, :, None, None] * along)
        put(size, kept, 1, new_size)
        live = live & (size > goal) & (n_steps < max_steps)
    return Step(direction, change, inner(gradient, direction), capped=wanted & ~(size <= goal))


def line_search(
    part: Problem,
    decision: Float64[Tensor, "cell row column output"],
    start: Float64[Tensor, "cell column output parameter"],
    step: Step,
) -> Float64[Tensor, "cell column"]:
    """Halve each column's step until the objective falls enough (Armijo); 0 where it never does."""
    before = part.objective(decision, start)
    # Near the minimum the fall is below what the sum can show; rounding must not turn a good step away.
    slack = 64 * torch.finfo(before.dtype).eps * before.abs()
    length = torch.ones_like(before)
    enough = torch.zeros_like(before, dtype=torch.bool)
    for _ in range(_MAX_HALVINGS):
        after = part.objective(
            decision + length[:, None, :, None] * step.change, start + length[:, :, None, None] * step.direction
        )
        enough = after <= before + _ARMIJO * length * step.slope + slack
        if bool(enough.all()):
            return length
        length = torch.where(enough, length, length / 2)
    return torch.where(enough, length, 0.0)


def _norm(gradient: Tensor) -> Float64[Tensor, "cell column"]:
    return gradient.flatten(2).norm(dim=2)


def _first(chosen: Bool[Tensor, "cell column"]) -> Int64[Tensor, "cell kept"]:
    """Columns that are chosen in each cell, filled up with others to the same number in all cells."""
    most = int(chosen.sum(1).max())
    return (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :most]


def put(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int, new: Tensor) -> None:
    """Replace some of the columns of each cell."""
    values.scatter_(dim, spread(values, kept, dim), new)
