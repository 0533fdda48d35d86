"""Ridge: factorise once, solve many, and certify against the rows themselves.

The minimiser of ``1/2 |y - Xw|^2 + 1/2 penalty |w|^2`` solves ``(X'X + penalty I) w = X'y``. With fewer rows than
features it is ``w = X'u`` with ``(XX' + penalty I) u = y``, a smaller system with the same solution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gpu_probes.folds import FoldPlan
from gpu_probes.moments import fold_moments, training_moments
from gpu_probes.objective import ProbeFits

CERTIFICATE_LIMIT = 1e-8
_MAX_CORRECTIONS = 4


@dataclass(frozen=True)
class Factor:
    """Cholesky factors of ``matrix + penalty I``; `singular` where there is none."""

    cholesky: Float64[Tensor, "fit n n"]
    singular: Bool[Tensor, " fit"]


@dataclass(frozen=True)
class System:
    """One linear system per fit, and how to measure the residual of a solution without the squared matrix.

    `coef_of` turns the unknowns into coefficients, and residuals into gradients of the objective.
    """

    matrix: Float64[Tensor, "fit n n"]
    right_side: Float64[Tensor, "fit n target"]
    unpenalised_residual: Callable[[Tensor], Tensor]
    coef_of: Callable[[Tensor], Tensor]
    full_rank: Bool[Tensor, " fit"]


def factorise(matrix: Float64[Tensor, "fit n n"], penalty: float) -> Factor:
    """Factorise ``matrix + penalty I`` for each fit; sees no right-hand side.

    Without a penalty, a pivot that is lost in rounding (1 - R^2 of that column on the ones before it) is singular.
    """
    penalised = matrix.clone()
    penalised.diagonal(dim1=-2, dim2=-1).add_(penalty)
    cholesky, info = torch.linalg.cholesky_ex(penalised)
    singular = info != 0
    if penalty == 0:
        pivots = cholesky.diagonal(dim1=-2, dim2=-1).square()
        lost = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1)
        singular = singular | (pivots <= lost).any(-1)
    return Factor(cholesky, singular)


def apply_inverse(factor: Factor, right_side: Float64[Tensor, "fit n target"]) -> Float64[Tensor, "fit n target"]:
    """Solve with the factor; NaN where it is singular."""
    solution = torch.cholesky_solve(right_side, factor.cholesky)
    return torch.where(factor.singular[:, None, None], torch.nan, solution)


def solve(
    factor: Factor, system: System, penalty: float
) -> tuple[Float64[Tensor, "fit target feature"], Float64[Tensor, " fit"]]:
    """Solve, then refine until the residual, measured through the rows, stops shrinking.

    The Gram matrix squares the condition number of X; corrections from residuals that never use it undo most of that.

    Returns
    -------
    coef : coefficients of each fit and target
    certificate : norm of the gradient relative to that at zero, the worst of the targets
    """
    solution = torch.zeros_like(system.right_side)
    residual = system.right_side
    size = residual.norm(dim=1)
    rounding = torch.finfo(size.dtype).eps * size
    for _ in range(_MAX_CORRECTIONS):
        candidate = solution + apply_inverse(factor, residual)
        left = system.unpenalised_residual(candidate) - penalty * candidate
        left_size = left.norm(dim=1)
        # A singular fit must show as NaN, not stay at the zeros it started from.
        take = (left_size < size) | left_size.isnan()
        halved = bool((left_size < 0.5 * size).any())
        solution = torch.where(take[:, None], candidate, solution)
        residual = torch.where(take[:, None], left, residual)
        size = torch.where(take, left_size, size)
        if not halved or bool((size <= rounding).all()):
            break
    gradient = system.coef_of(residual).norm(dim=1)
    at_zero = system.coef_of(system.right_side).norm(dim=1)
    relative = gradient / torch.where(at_zero > 0, at_zero, 1.0)
    return system.coef_of(solution).mT, relative.amax(-1)


def fit_ridge(
    features: Float64[Tensor, "sample feature"],
    targets: Float64[Tensor, "sample target"],
    folds: FoldPlan,
    penalties: Sequence[float],
) -> ProbeFits:
    """Fit every training set of `folds` at every penalty."""
    n_samples, n_features = features.shape
    if n_samples < n_features:
        systems = dual_systems(features, targets, folds)
    else:
        systems = [primal_system(features, targets, folds)]
    solved = [[_fit_system(system, penalty) for system in systems] for penalty in penalties]
    coef = torch.stack([torch.cat([item[0] for item in row]) for row in solved], dim=1)
    certificate = torch.stack([torch.cat([item[1] for item in row]) for row in solved], dim=1)
    return ProbeFits(coef=coef, certificate=certificate, converged=certificate <= CERTIFICATE_LIMIT)


def _fit_system(
    system: System, penalty: float
) -> tuple[Float64[Tensor, "fit target feature"], Float64[Tensor, " fit"]]:
    factor = factorise(system.matrix, penalty)
    if penalty == 0:
        factor = Factor(factor.cholesky, factor.singular | ~system.full_rank)
    return solve(factor, system, penalty)


def primal_system(
    features: Float64[Tensor, "sample feature"], targets: Float64[Tensor, "sample target"], folds: FoldPlan
) -> System:
    """``X'X w = X'y`` of each training set, from sums over the folds."""
    moments = training_moments(fold_moments(features, targets, folds), folds)
    rows = torch.as_tensor(folds.rows_of_fit(), device=features.device)

    def residual(coef: Tensor) -> Tensor:
        errors = targets - torch.einsum("nd,fdt->fnt", features, coef)
        return torch.einsum("nd,fnt->fdt", features, rows[:, :, None] * errors)

    full_rank = moments.count >= features.shape[1]
    return System(moments.gram, moments.cross, residual, lambda coef: coef, full_rank)


def dual_systems(
    features: Float64[Tensor, "sample feature"], targets: Float64[Tensor, "sample target"], folds: FoldPlan
) -> list[System]:
    """``XX' u = y`` of the training sets without a fold, and of the one with all rows, which is larger."""
    kernel = features @ features.T
    rows = torch.as_tensor(folds.rows_of_fit(), device=features.device)
    parts = [rows[:-1], rows[-1:]] if folds.n_folds else [rows]
    return [_dual_system(features, targets, kernel, part) for part in parts]


def _dual_system(
    features: Float64[Tensor, "sample feature"],
    targets: Float64[Tensor, "sample target"],
    kernel: Float64[Tensor, "sample sample"],
    rows: Float64[Tensor, "fit sample"],
) -> System:
    """Training sets of about one size, each cut out of the kernel.

    Where one is smaller than the largest, rows that it leaves out fill up with zeros in the matrix and the right
    side, so their u is exactly zero.
    """
    n_kept = int(rows.sum(1).max())
    kept = rows.argsort(dim=1, descending=True, stable=True)[:, :n_kept]
    inside = rows.gather(1, kept)[:, :, None]
    matrix = inside * kernel[kept[:, :, None], kept[:, None, :]] * inside.mT
    place = kept[:, :, None].expand(-1, -1, targets.shape[1])

    def coef_of(dual: Tensor) -> Tensor:
        everywhere = dual.new_zeros(len(rows), *targets.shape).scatter(1, place, dual)
        return torch.einsum("nd,fnt->fdt", features, everywhere)

    def residual(dual: Tensor) -> Tensor:
        errors = targets - torch.einsum("nd,fdt->fnt", features, coef_of(dual))
        return inside * errors.gather(1, place)

    full_rank = torch.zeros(len(rows), dtype=torch.bool, device=features.device)
    return System(matrix, inside * targets[kept], residual, coef_of, full_rank)
