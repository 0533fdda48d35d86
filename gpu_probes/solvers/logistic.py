"""Logistic regression, many fits at once: truncated Newton, preconditioned by ridge factors.

Newton's equation H d = -g is solved by conjugate gradients with exact products H v = X'(curve(Xv)) + penalty v: one
pass over the rows serves all folds and penalties, which are columns. The preconditioner of a penalty is the factor of
M = bound X'X + penalty I on all rows, which is above H everywhere (bound 1/4 for the sigmoid, 1/2 for the softmax;
Böhning 1992). Where the data are nearly separable M is far above H: a penalty whose conjugate gradients run into
their cap gets the factor of its own Hessian (of its diagonal blocks, for the softmax), with the mean curvature of its
folds, which turns its next steps into Newton-Cholesky.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gpu_probes.features.rows import Rows
from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.solvers.logistic_problem import Columns, Design, Problem, pick
from gpu_probes.solvers.losses import Loss
from gpu_probes.solvers.newton import CERTIFICATE_LIMIT, SETTLED_LIMIT, Preconditioner, minimise, put
from gpu_probes.solvers.objective import HeldOut, ProbeFits
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.terms import Solver


def fit_logistic(
    rows: Rows,
    targets: Float64[Tensor, "sample output"],
    sets: TrainingSets,
    penalties: Sequence[float],
    loss: Loss,
    preprocessing: Preprocessing,
) -> ProbeFits:
    """Fit every training set at every penalty."""
    design = Design(rows, sets, preprocessing)
    n_fits, n_penalties = sets.n_fits, len(penalties)
    columns = Columns.of(rows.n_cells, torch.arange(n_fits, device=targets.device), targets.new_tensor(list(penalties)))
    problem = Problem.of(design, loss, columns, targets[None, :, None])
    preconditioner = Preconditioner(problem, penalties)
    point, settled = _minimise_all(problem, preconditioner, sets)
    decision = problem.decide(point)
    gradient = problem.gradient(loss.predictions(decision), point)
    at_zero = problem.objective(torch.zeros_like(decision), problem.at_zero)
    gap = problem.gap(loss.predictions(decision), gradient) / at_zero
    coef, offset = problem.raw(point)
    if design.basis is not None:
        coef = (coef.flatten(1, 2) @ design.basis.mT).unflatten(1, coef.shape[1:3])
    by_sample = torch.empty_like(decision)
    by_sample[:, design.order] = decision
    shape = (n_fits, n_penalties)
    solver = torch.tensor(
        [Solver.NEWTON_CHOLESKY if own else Solver.NEWTON_CG for own in preconditioner.refreshed], dtype=torch.int8
    )
    return ProbeFits(
        coef=coef.unflatten(1, shape),
        intercept=(torch.zeros_like(coef[..., 0]) if offset is None else offset).unflatten(1, shape),
        decision=by_sample.permute(0, 2, 1, 3).unflatten(1, shape),
        certificate=gap.unflatten(1, shape),
        converged=((gap <= CERTIFICATE_LIMIT) | (settled & (gap <= SETTLED_LIMIT))).unflatten(1, shape),
        solver=solver.to(targets.device).expand(rows.n_cells, n_fits, -1),
    )


def decide_held_out_logistic(
    rows: Rows,
    shuffled: Float64[Tensor, "sample shuffle output"],
    sets: TrainingSets,
    penalties: Sequence[float],
    loss: Loss,
    preprocessing: Preprocessing,
) -> HeldOut:
    """Fit other versions of the targets without each fold, and decide the fold's samples."""
    design = Design(rows, sets, preprocessing)
    shape = (shuffled.shape[1], sets.n_folds, len(penalties))
    fits = torch.arange(sets.n_folds, device=shuffled.device).repeat(shape[0])
    columns = Columns.of(rows.n_cells, fits, shuffled.new_tensor(list(penalties)))
    targets = shuffled.repeat_interleave(sets.n_folds * len(penalties), 1).expand(rows.n_cells, -1, -1, -1)
    problem = Problem.of(design, loss, columns, targets)
    preconditioner = Preconditioner(problem, penalties)
    point, _ = minimise(problem, preconditioner, problem.at_zero, tolerance=_ROUGH_TOLERANCE, certify=False)
    by_sample = problem.weights.new_empty(targets.shape)
    by_sample[:, design.order] = problem.decide(point)
    decision = by_sample.unflatten(2, shape).permute(0, 2, 3, 4, 1, 5)
    for fold in range(sets.n_folds):
        in_fold = sets.rows_of_fold[fold]
        for k, penalty in enumerate(penalties):
            yield fold, penalty, decision[:, :, fold, k][:, :, in_fold]


def _minimise_all(
    problem: Problem, preconditioner: Preconditioner, sets: TrainingSets
) -> tuple[Float64[Tensor, "cell column output parameter"], Bool[Tensor, "cell column"]]:
    """Fits without a fold and on everything from zero; those without a pair of folds from where these lead."""
    if not sets.pairs:
        return minimise(problem, preconditioner, problem.at_zero)
    columns, point = problem.columns, problem.at_zero
    n_cells, n_columns = columns.fit.shape
    settled = torch.zeros(n_cells, n_columns, dtype=torch.bool, device=point.device)
    by_fit = torch.arange(n_columns, device=point.device).unflatten(0, (sets.n_fits, -1))
    own = sets.of_own_fits(by_fit[None])[0].flatten().expand(n_cells, -1)
    found, done = minimise(problem.take(own), preconditioner, pick(point, own, 1))
    put(point, own, 1, found)
    put(settled, own, 1, done)
    coef, offset = problem.raw(point)
    first, second = torch.tensor(sets.pairs, device=point.device).mT
    paired = by_fit[sets.n_folds : -1].flatten().expand(n_cells, -1)
    part = problem.take(paired)

    def combined(values: Tensor) -> Tensor:
        # What a fold adds to the solution hardly depends on whether the other one is there.
        by_own = values.unflatten(1, by_fit.shape)
        return (by_own[:, first] + by_own[:, second] - by_own[:, -1:]).flatten(1, 2)

    start = part.framed(combined(coef), None if offset is None else combined(offset))
    start = problem.design.confine(part.columns, start)
    found, done = minimise(part, preconditioner, start, tolerance=_ROUGH_TOLERANCE, certify=False)
    put(point, paired, 1, found)
    put(settled, paired, 1, done)
    return point, settled


# For fits that only take part in a choice.
_ROUGH_TOLERANCE = 1e-4
