"""Logistic regression, many fits at once: truncated Newton, preconditioned by the ridge factor.

Newton's equation H d = -g is solved by conjugate gradients with exact products H v = X'(curve(Xv)) + penalty v, and
the preconditioner M = bound X'X + penalty I, which is above H everywhere (bound 1/4 for the sigmoid, 1/2 for the
softmax; Böhning 1992). One M on all rows serves every fold. Where the data are nearly separable M is far above H:
a column whose conjugate gradients run into their cap gets its own factor of the Hessian (of its diagonal blocks, for
the softmax), which turns its next steps into Newton-Cholesky.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.folds import FoldPlan
from gpu_probes.moments import gram
from gpu_probes.objective import Loss, ProbeFits
from gpu_probes.ridge import Factor, apply_inverse, factorise

MAX_NEWTON_STEPS = 100
# Bound on the relative error of the coefficients before the last step, which squares it.
_TOLERANCE = 1e-5
# After about as many steps as a factor of its own costs, a column gets one, and then as many as it needs.
_MAX_CG_STEPS = 16
_MAX_CG_STEPS_REFRESHED = 256
_MAX_HALVINGS = 40
_ARMIJO = 1e-4


@dataclass(frozen=True)
class Problem:
    """Columns that share the rows: each has its own training set and penalty."""

    features: Float64[Tensor, "sample feature"]
    targets: Float64[Tensor, "sample output"]
    rows: Float64[Tensor, "sample column"]
    penalty: Float64[Tensor, " column"]
    loss: Loss

    def take(self, columns: Int64[Tensor, " kept"]) -> "Problem":
        """Keep some columns."""
        return replace(self, rows=self.rows[:, columns], penalty=self.penalty[columns])

    def decide(self, coef: Float64[Tensor, "column output feature"]) -> Float64[Tensor, "sample column output"]:
        """Decision values x'w."""
        return torch.einsum("nd,cod->nco", self.features, coef)

    def objective(
        self, decision: Float64[Tensor, "sample column output"], coef: Float64[Tensor, "column output feature"]
    ) -> Float64[Tensor, " column"]:
        """The objective of each column."""
        losses = (self.rows * self.loss.value(decision, self.targets)).sum(0)
        return losses + 0.5 * self.penalty * coef.square().sum((1, 2))

    def gradient(
        self, predictions: Float64[Tensor, "sample column output"], coef: Float64[Tensor, "column output feature"]
    ) -> Float64[Tensor, "column output feature"]:
        """Gradient of the objective at `coef`, which gave `predictions`."""
        errors = self.rows[:, :, None] * (predictions - self.targets[:, None])
        return torch.einsum("nd,nco->cod", self.features, errors) + self.penalty[:, None, None] * coef

    def hessian_times(
        self, predictions: Float64[Tensor, "sample column output"], vector: Float64[Tensor, "column output feature"]
    ) -> Float64[Tensor, "column output feature"]:
        """Exact Hessian-vector product, two passes over the rows for all columns."""
        curved = self.rows[:, :, None] * self.loss.curve(predictions, self.decide(vector))
        return torch.einsum("nd,nco->cod", self.features, curved) + self.penalty[:, None, None] * vector


class Preconditioner:
    """One ridge factor per penalty, shared by its columns, until a column gets its own."""

    def __init__(self, problem: Problem) -> None:
        bound = problem.loss.curvature_bound
        bounded = bound * gram(problem.features)[None]
        penalties, self._shared_of = problem.penalty.unique(return_inverse=True)
        self._shared: list[Factor] = [factorise(bounded, float(penalty)) for penalty in penalties]
        self._own: dict[int, Factor] = {}

    def refresh(
        self, column: int, problem: Problem, predictions: Float64[Tensor, "sample output"], rows: Tensor, penalty: float
    ) -> None:
        """Give a column the factor of its Hessian's diagonal blocks at the point that gave `predictions`."""
        weights = (rows[:, None] * predictions * (1 - predictions)).sqrt()
        blocks = [gram(problem.features * weights[:, k : k + 1]) for k in range(weights.shape[1])]
        factor = factorise(torch.stack(blocks), penalty)
        if not bool(factor.singular.any()):
            self._own[column] = factor

    def apply(
        self,
        columns: Int64[Tensor, " column"],
        loss: Loss,
        vector: Float64[Tensor, "column output feature"],
    ) -> Float64[Tensor, "column output feature"]:
        """Approximately apply the inverse Hessian of each column."""
        solution = torch.empty_like(vector)
        groups: dict[int, list[int]] = {}
        for place, column in enumerate(columns.tolist()):
            if column in self._own:
                solution[place] = apply_inverse(self._own[column], vector[place, :, :, None])[:, :, 0]
            else:
                groups.setdefault(int(self._shared_of[column]), []).append(place)
        for shared, places in groups.items():
            flat = vector[places].flatten(0, 1).mT[None]
            solution[places] = apply_inverse(self._shared[shared], flat)[0].mT.reshape(vector[places].shape)
        return loss.project(solution)


@dataclass(frozen=True)
class Step:
    """A truncated Newton direction for each column; `capped` where conjugate gradients ran out of steps."""

    direction: Float64[Tensor, "column output feature"]
    slope: Float64[Tensor, " column"]
    capped: Bool[Tensor, " column"]


def fit_logistic(
    features: Float64[Tensor, "sample feature"],
    targets: Float64[Tensor, "sample output"],
    folds: FoldPlan,
    penalties: Sequence[float],
    loss: Loss,
) -> ProbeFits:
    """Fit every training set of `folds` at every penalty.

    With fewer rows than features, the solution lies in the span of the rows (any other part would only add to the
    penalty), so it is found in an orthonormal basis of that span.
    """
    basis = None
    if features.shape[0] < features.shape[1]:
        basis, triangle = torch.linalg.qr(features.mT)
        features = triangle.mT.contiguous()
    rows = torch.as_tensor(folds.rows_of_fit(), device=features.device)
    n_fits, n_penalties = rows.shape[0], len(penalties)
    problem = Problem(
        features=features,
        targets=targets,
        rows=rows.mT.repeat_interleave(n_penalties, dim=1),
        penalty=torch.tensor(list(penalties), dtype=features.dtype, device=features.device).repeat(n_fits),
        loss=loss,
    )
    coef, certificate, converged = minimise(problem)
    coef = coef if basis is None else coef @ basis.mT
    by_fit = (n_fits, n_penalties)
    return ProbeFits(coef.unflatten(0, by_fit), certificate.unflatten(0, by_fit), converged.unflatten(0, by_fit))


def minimise(
    problem: Problem,
) -> tuple[Float64[Tensor, "column output feature"], Float64[Tensor, " column"], Bool[Tensor, " column"]]:
    """Minimise every column from zero; columns that are done are dropped from the work.

    A column is done when its Newton decrement bounds the relative error of its coefficients: the objective is
    strongly convex, so penalty |w - w*|^2 <= decrement near the minimum.

    Returns
    -------
    coef, certificate (relative norm of the gradient), converged
    """
    n_columns, n_outputs, n_features = len(problem.penalty), problem.targets.shape[1], problem.features.shape[1]
    coef = problem.features.new_zeros(n_columns, n_outputs, n_features)
    at_zero = _gradient_norm(problem, coef)
    preconditioner = Preconditioner(problem)
    converged = torch.zeros(n_columns, dtype=torch.bool, device=coef.device)
    active = torch.arange(n_columns, device=coef.device)
    stale = torch.zeros(n_columns, dtype=torch.bool, device=coef.device)
    for _ in range(MAX_NEWTON_STEPS):
        part, start = problem.take(active), coef[active]
        decision = part.decide(start)
        predictions = problem.loss.predictions(decision)
        refreshed = stale[active]
        for place in torch.nonzero(refreshed).flatten().tolist():
            column = int(active[place])
            preconditioner.refresh(
                column, problem, predictions[:, place], part.rows[:, place], float(part.penalty[place])
            )
        gradient = part.gradient(predictions, start)
        forcing = (gradient.flatten(1).norm(dim=1) / at_zero[active]).sqrt().clamp(max=0.1)
        max_steps = torch.where(refreshed, _MAX_CG_STEPS_REFRESHED, _MAX_CG_STEPS)
        step = newton_direction(part, predictions, gradient, forcing, max_steps, preconditioner, active)
        length = line_search(part, decision, start, step)
        coef[active] = start + length[:, None, None] * step.direction
        stale[active] = step.capped
        size = coef[active].square().sum((1, 2))
        small = -step.slope <= _TOLERANCE**2 * part.penalty * size
        converged[active] = small & ~step.capped
        active = active[~(converged[active] | (length == 0))]
        if not len(active):
            break
    return coef, _gradient_norm(problem, coef) / at_zero, converged


def newton_direction(
    part: Problem,
    predictions: Float64[Tensor, "sample column output"],
    gradient: Float64[Tensor, "column output feature"],
    forcing: Float64[Tensor, " column"],
    max_steps: Int64[Tensor, " column"],
    preconditioner: Preconditioner,
    columns: Int64[Tensor, " column"],
) -> Step:
    """Solve H d = -g by conjugate gradients, to `forcing` in the preconditioner's norm."""
    direction = torch.zeros_like(gradient)
    residual = -gradient
    search = preconditioner.apply(columns, part.loss, residual)
    size = _inner(residual, search)
    goal = forcing.square() * size
    live = torch.nonzero(size > 0).flatten()
    n_steps = 0
    while len(live):
        n_steps += 1
        along = search[live]
        curved = part.take(live).hessian_times(predictions[:, live], along)
        length = (size[live] / _inner(along, curved))[:, None, None]
        direction[live] += length * along
        residual[live] -= length * curved
        preconditioned = preconditioner.apply(columns[live], part.loss, residual[live])
        new_size = _inner(residual[live], preconditioned)
        search[live] = preconditioned + (new_size / size[live])[:, None, None] * along
        size[live] = new_size
        live = live[(new_size > goal[live]) & (n_steps < max_steps[live])]
    return Step(direction, _inner(gradient, direction), capped=size > goal)


def line_search(
    part: Problem,
    decision: Float64[Tensor, "sample column output"],
    start: Float64[Tensor, "column output feature"],
    step: Step,
) -> Float64[Tensor, " column"]:
    """Halve each column's step until the objective falls enough (Armijo); 0 where it never does."""
    before = part.objective(decision, start)
    # Near the minimum the fall is below what the sum can show; rounding must not turn a good step away.
    slack = 64 * torch.finfo(before.dtype).eps * before.abs()
    change = part.decide(step.direction)
    length = torch.ones_like(before)
    enough = torch.zeros_like(before, dtype=torch.bool)
    for _ in range(_MAX_HALVINGS):
        after = part.objective(decision + length[:, None] * change, start + length[:, None, None] * step.direction)
        enough = after <= before + _ARMIJO * length * step.slope + slack
        if bool(enough.all()):
            return length
        length = torch.where(enough, length, length / 2)
    return torch.where(enough, length, 0.0)


def _gradient_norm(problem: Problem, coef: Float64[Tensor, "column output feature"]) -> Float64[Tensor, " column"]:
    predictions = problem.loss.predictions(problem.decide(coef))
    return problem.gradient(predictions, coef).flatten(1).norm(dim=1)


def _inner(
    a: Float64[Tensor, "column output feature"], b: Float64[Tensor, "column output feature"]
) -> Float64[Tensor, " column"]:
    return (a * b).sum((1, 2))
