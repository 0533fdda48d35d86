"""Truncated Newton with a line search, all columns at once, preconditioned by ridge factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.solvers.cholesky import factorise_near
from gpu_probes.solvers.logistic_problem import Columns, Problem, inner, pick, spread

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
# Steps before the first look on a GPU.
_FIRST_LOOK = 4
_ARMIJO = 1e-4


class Preconditioner:
    """Factors of each penalty, shared by its fits: of the bound on the Hessian, until a penalty gets its own."""

    def __init__(self, problem: Problem, penalties: Sequence[float]) -> None:
        self._penalties, self._loss, self._design = penalties, problem.loss, problem.design
        self._n_columns = problem.columns.fit.shape[1]
        design = problem.design
        everything = design.weights[-1].expand(len(problem.weights), -1)
        bound = problem.loss.curvature_bound * design.gram(everything)
        # One for all outputs, until a penalty needs one for each.
        self._lower = bound.new_empty(len(penalties), len(bound), 1, *bound.shape[1:])
        for index, penalty in enumerate(penalties):
            self._lower[index, :, 0] = self._factorise(bound, penalty)
        self.refreshed = [False] * len(penalties)

    def refresh(self, index: int, part: Problem, predictions: Float64[Tensor, "cell row column output"]) -> None:
        """Give a penalty the factors of its Hessian's diagonal blocks, averaged over its columns in `part`."""
        counts = part.weights * (part.columns.penalty_index == index)[:, None]
        curvature = torch.einsum("cnk,cnko->cno", counts, predictions * (1 - predictions))
        n_columns = (counts > 0).sum(2)[..., None].clamp(min=1)
        weights = (curvature / n_columns).unbind(2)
        if len(weights) > self._lower.shape[2]:
            self._lower = self._lower.repeat(1, 1, len(weights), 1, 1)
        for output, weight in enumerate(weights):
            self._lower[index, :, output] = self._factorise(part.design.gram(weight), self._penalties[index])
        self.refreshed[index] = True

    def apply(
        self, columns: Columns, vector: Float64[Tensor, "cell column output parameter"], among: slice
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Approximately apply the inverse Hessian of columns, whose penalties are `among` all."""
        everywhere = vector
        if not columns.are_all:
            everywhere = vector.new_zeros(len(vector), self._n_columns, *vector.shape[2:])
            put(everywhere, columns.place, 1, vector)
        # Right sides that have a factor in common, one below the other.
        by_penalty = everywhere.unflatten(1, (-1, len(self._penalties))).permute(2, 0, 3, 1, 4)[among]
        lower = self._lower[among]
        right_side = by_penalty.reshape(*lower.shape[:3], -1, lower.shape[-1]).mT
        half = torch.linalg.solve_triangular(lower, right_side, upper=False)
        solved = torch.linalg.solve_triangular(lower.mT, half, upper=True).mT.reshape(by_penalty.shape)
        solved = solved.permute(1, 3, 0, 2, 4)
        if columns.are_all:
            found = solved.flatten(1, 2)
        else:
            everywhere.unflatten(1, (-1, len(self._penalties)))[:, :, among] = solved
            found = pick(everywhere, columns.place, 1)
        return self._design.confine(columns, self._loss.project(found))

    def _factorise(self, matrix: Float64[Tensor, "cell n n"], penalty: float) -> Float64[Tensor, "cell n n"]:
        factor = factorise_near(matrix, penalty, self._design.n_features)
        return torch.where(factor.singular[:, None, None], torch.nan, factor.lower)


@dataclass(frozen=True)
class Step:
    """A truncated Newton direction of each column; `capped` where conjugate gradients ran out of steps or failed."""

    direction: Float64[Tensor, "cell column output parameter"]
    change: Float64[Tensor, "cell row column output"]
    slope: Float64[Tensor, "cell column"]
    capped: Bool[Tensor, "cell column"]


@dataclass
class _Work:
    """Columns that are still worked on, and the same few numbers of each.

    In each cell as many as in the cell that has most, so others that are done are among them.
    """

    problem: Problem
    kept: Int64[Tensor, "cell kept"]
    point: Float64[Tensor, "cell kept output parameter"]
    decision: Float64[Tensor, "cell row kept output"]
    at_zero: Float64[Tensor, "cell kept"]
    gradient_at_zero: Float64[Tensor, "cell kept"]
    active: Bool[Tensor, "cell kept"]
    settled: Bool[Tensor, "cell kept"]
    stale: Bool[Tensor, "cell kept"]
    nearly: Bool[Tensor, "cell kept"]

    @classmethod
    def of(cls, problem: Problem, start: Float64[Tensor, "cell column output parameter"]) -> _Work:
        """All columns of a problem, none of them done."""
        decision = problem.decide(start)
        nothing, undecided = problem.at_zero, torch.zeros_like(decision)
        settled = torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
        return cls(
            problem=problem,
            kept=torch.arange(start.shape[1], device=start.device).expand(len(start), -1),
            point=start.clone(),
            decision=decision,
            at_zero=problem.objective(undecided, nothing),
            gradient_at_zero=_norm(problem.gradient(problem.loss.predictions(undecided), nothing)),
            active=~settled,
            settled=settled,
            stale=settled.clone(),
            nearly=settled.clone(),
        )

    def take(self, chosen: Int64[Tensor, "cell fewer"]) -> _Work:
        """Some of these columns."""
        by_column = {
            name: pick(getattr(self, name), chosen, 1)
            for name in ("kept", "point", "at_zero", "gradient_at_zero", "active", "settled", "stale", "nearly")
        }
        return _Work(problem=self.problem.take(chosen), decision=pick(self.decision, chosen, 2), **by_column)

    def put_into(
        self, point: Float64[Tensor, "cell column output parameter"], settled: Bool[Tensor, "cell column"]
    ) -> None:
        """Hand over where the columns are, and which are settled."""
        put(point, self.kept, 1, self.point)
        put(settled, self.kept, 1, self.settled)


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
    point, work = start.clone(), _Work.of(problem, start)
    settled = work.settled.clone()
    looks = _looks_of(point.device)
    for _ in range(MAX_NEWTON_STEPS):
        part = work.problem
        predictions = part.loss.predictions(work.decision)
        gradient = part.gradient(predictions, work.point)
        within = part.gap(predictions, gradient) <= CERTIFICATE_LIMIT * work.at_zero
        certain = work.nearly & within
        work.settled |= certain
        work.active &= ~certain
        n_active, stale = _look(work, len(preconditioner.refreshed))
        if not n_active:
            break
        if looks.pays(n_active, work.kept.shape[1]):
            work.put_into(point, settled)
            chosen = _first(work.active, n_active)
            work, predictions, gradient = work.take(chosen), pick(predictions, chosen, 2), pick(gradient, chosen, 1)
            part, within = work.problem, pick(within, chosen, 1)
        for index in stale:
            preconditioner.refresh(index, part, predictions)
        # Cells of zeros are at their minimum from the start.
        relative = torch.where(work.gradient_at_zero > 0, _norm(gradient) / work.gradient_at_zero, 0.0)
        forcing = relative.sqrt().clamp(max=0.1)
        max_steps = torch.where(work.stale, _MAX_CG_STEPS_REFRESHED, _MAX_CG_STEPS)
        most_steps = _MAX_CG_STEPS_REFRESHED if stale else _MAX_CG_STEPS
        step = newton_direction(
            part, predictions, gradient, work.active, forcing, max_steps, preconditioner, most_steps=most_steps
        )
        length = line_search(part, work.decision, work.point, step) * work.active
        work.decision.addcmul_(length[:, None, :, None], step.change)
        work.point.addcmul_(length[:, :, None, None], step.direction)
        size = inner(part.design.penalised(part.columns, work.point), work.point)
        rounding = work.at_zero * torch.finfo(size.dtype).eps
        enough = torch.maximum(tolerance**2 * size, rounding)
        # Where the objective is at its rounding, directions may never come closer.
        at_rest = within & (-step.slope <= rounding)
        small = work.active & (((-step.slope <= enough) & ~step.capped) | at_rest)
        done = small & work.nearly if certify else small
        work.stale = step.capped
        work.nearly = small | work.nearly
        work.settled = done | work.settled
        work.active = work.active & ~done & (length > 0)
        if looks.are_free:
            n_active = int(work.active.sum(1).max())
            if not n_active:
                break
            if looks.pays(n_active, work.kept.shape[1]):
                work.put_into(point, settled)
                work = work.take(_first(work.active, n_active))
    work.put_into(point, settled)
    return point, settled


@dataclass
class _Search:
    """Columns whose directions are still searched for, and where their conjugate gradients are."""

    problem: Problem
    kept: Int64[Tensor, "cell kept"]
    predictions: Float64[Tensor, "cell row kept output"]
    curvature: Float64[Tensor, "cell row kept output"]
    direction: Float64[Tensor, "cell kept output parameter"]
    change: Float64[Tensor, "cell row kept output"]
    residual: Float64[Tensor, "cell kept output parameter"]
    along: Float64[Tensor, "cell kept output parameter"]
    size: Float64[Tensor, "cell kept"]
    goal: Float64[Tensor, "cell kept"]
    live: Bool[Tensor, "cell kept"]
    max_steps: Int64[Tensor, "cell kept"]

    def take(self, chosen: Int64[Tensor, "cell fewer"]) -> _Search:
        """Some of these columns."""
        names = ("kept", "direction", "residual", "along", "size", "goal", "live", "max_steps")
        by_column = {name: pick(getattr(self, name), chosen, 1) for name in names}
        by_row = {name: pick(getattr(self, name), chosen, 2) for name in ("predictions", "curvature", "change")}
        return _Search(problem=self.problem.take(chosen), **by_column, **by_row)

    def put_into(self, step: Step) -> None:
        """Hand over what was found."""
        put(step.direction, self.kept, 1, self.direction)
        put(step.change, self.kept, 2, self.change)
        put(step.capped, self.kept, 1, ~(self.size <= self.goal))

    def step(self, number: int, preconditioner: Preconditioner, among: slice) -> None:
        """One step of all columns; those that are no longer live stay where they are."""
        curved, decided = self.problem.hessian_times(self.curvature, self.predictions, self.along)
        length = torch.where(self.live, self.size / inner(self.along, curved), 0.0)
        self.direction.addcmul_(length[:, :, None, None], self.along)
        self.change.addcmul_(length[:, None, :, None], decided)
        self.residual.addcmul_(length[:, :, None, None], curved, value=-1)
        preconditioned = preconditioner.apply(self.problem.columns, self.residual, among)
        size = torch.where(self.live, inner(self.residual, preconditioned), self.size)
        ratio = torch.where(self.live, size / self.size, 0.0)
        self.along = preconditioned.addcmul_(ratio[:, :, None, None], self.along)
        self.size = size
        self.live = self.live & (size > self.goal)
        if number == _MAX_CG_STEPS:
            self.live = self.live & (number < self.max_steps)


def newton_direction(
    part: Problem,
    predictions: Float64[Tensor, "cell row column output"],
    gradient: Float64[Tensor, "cell column output parameter"],
    wanted: Bool[Tensor, "cell column"],
    forcing: Float64[Tensor, "cell column"],
    max_steps: Int64[Tensor, "cell column"],
    preconditioner: Preconditioner,
    *,
    most_steps: int,
) -> Step:
    """Solve H d = -g for the wanted columns by conjugate gradients, to `forcing` in the preconditioner's norm.

    `most_steps` is the largest of `max_steps`.
    """
    looks = _looks_of(gradient.device)
    among = looks.penalties(part.columns)
    along = preconditioner.apply(part.columns, -gradient, among)
    size = inner(-gradient, along)
    goal = forcing.square() * size
    found = Step(torch.zeros_like(gradient), torch.zeros_like(predictions), size, torch.ones_like(wanted))
    search = _Search(
        problem=part,
        kept=torch.arange(wanted.shape[1], device=wanted.device).expand_as(wanted),
        predictions=predictions,
        curvature=part.loss.curvature(predictions, part.weights),
        direction=torch.zeros_like(gradient),
        change=torch.zeros_like(predictions),
        residual=-gradient,
        along=along,
        size=size,
        goal=goal,
        live=wanted & (size > goal),
        max_steps=max_steps,
    )
    n_steps = 0
    while n_steps < most_steps:
        if looks.are_free or n_steps:
            n_live = int(search.live.sum(1).max())
            if not n_live:
                break
            if looks.are_free and n_live < search.kept.shape[1]:
                search.put_into(found)
                search = search.take(_first(search.live, n_live))
                among = looks.penalties(search.problem.columns)
        for _ in range(min(looks.steps_after(n_steps), most_steps - n_steps)):
            n_steps += 1
            search.step(n_steps, preconditioner, among)
    search.put_into(found)
    return Step(found.direction, found.change, inner(gradient, found.direction), wanted & found.capped)


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


@dataclass(frozen=True)
class _Looks:
    """How often the host looks at who is done: each time on a CPU, where looking is free, now and then on a GPU.

    There an answer has to wait for all work, and fewer columns are hardly faster than many.
    """

    are_free: bool

    def steps_after(self, n_steps: int) -> int:
        """Steps until the next look: half as many as there were, and a few at first."""
        return 1 if self.are_free else max(n_steps // 2, _FIRST_LOOK)

    def pays(self, n_wanted: int, n_columns: int) -> bool:
        """Whether to go on with the wanted columns alone."""
        return n_wanted < n_columns if self.are_free else 4 * n_wanted <= n_columns

    def penalties(self, columns: Columns) -> slice:
        """Penalties, from the first to the last, that any of the columns has, as far as is known without waiting."""
        if not self.are_free:
            return slice(None)
        first, last = columns.penalty_index.aminmax()
        return slice(int(first), int(last) + 1)


def _looks_of(device: torch.device) -> _Looks:
    return _Looks(are_free=device.type == "cpu")


def _look(work: _Work, n_penalties: int) -> tuple[int, list[int]]:
    """How many columns are active in the cell that has most of them, and penalties that need factors of their own."""
    index = torch.arange(n_penalties, device=work.active.device)
    stale = (work.stale & work.active)[:, :, None] & (work.problem.columns.penalty_index[:, :, None] == index)
    n_active, *needed = torch.cat([work.active.sum(1).amax()[None], stale.sum((0, 1))]).tolist()
    return n_active, [place for place, count in enumerate(needed) if count]


def _norm(gradient: Tensor) -> Float64[Tensor, "cell column"]:
    return gradient.flatten(2).norm(dim=2)


def _first(chosen: Bool[Tensor, "cell column"], most: int) -> Int64[Tensor, "cell kept"]:
    """Columns that are chosen in each cell, filled up with others to the same number in all cells."""
    return (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :most]


def put(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int, new: Tensor) -> None:
    """Replace some of the columns of each cell."""
    values.scatter_(dim, spread(values, kept, dim), new)
