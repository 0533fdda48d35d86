"""Probes in closed form: linear discriminant analysis, and the difference of the class means.

Both assume that the classes share one covariance. LDA uses that of the features within classes, S_w / n, raised by the
penalty: decision_c = x'V_c - m_c'V_c / 2 + log prior_c with V = n (S_w + penalty I)^-1 M, M the class means. The
mass-mean probe (Marks & Tegmark 2023) takes a multiple of the identity instead, so that its directions are the means
themselves; the multiple is the variance within classes along them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from gpu_probes.solvers.cholesky import factorise
from gpu_probes.solvers.objective import HeldOut, ProbeFits
from gpu_probes.solvers.ridge import fit_ridge
from gpu_probes.solvers.systems import Dual, Framed, Primal
from gpu_probes.terms import Solver

# Share of the targets' squares that the ridges leave over, class by class beside those before: of a smaller one too few
# digits are left. Classes are then more than 10,000 times as far apart as their rows.
_LEAST_KEPT = 1e-11


def fit_lda(space: Primal | Dual, penalties: Sequence[float]) -> ProbeFits:
    """Linear discriminant analysis; two classes get one output, the second's decision minus the first's.

    ``S_w = S_t - M N M'`` with the scatter S_t of all rows and the class counts N, so by the Woodbury identity
    ``(S_w + penalty I)^-1 M = R (I - N M'R)^-1`` with ``R = (S_t + penalty I)^-1 M``; and R is the ridge regression
    with an intercept on the one-hot targets, each divided by its class's count. What is inverted is
    ``N (G + 11'/n)`` with ``G = E'E + penalty R'R`` and E what these ridges leave over: a sum, in which nothing
    cancels however far apart the classes are. As ``G N 1 = 0``, its inverse follows from that of G without the last
    class, ``B (B'GB)^-1 B' + N 11'N / n`` with ``B = [I, -1]'``; the second term reaches no decision.

    Parameters
    ----------
    space : Primal or Dual
        Of one-hot targets ``[sample, class]``, with an intercept.
    penalties : sequence of float
        Added to the diagonal of S_w.
    """
    ridges = fit_ridge(space, penalties)
    weights = space.sets.weights(torch.arange(space.rows.n_samples, device=space.targets.device))
    counts = (weights @ space.targets)[:, None]
    share = counts / counts.sum(-1, keepdim=True)
    centred = torch.cat([fits.decision for fits in ridges], -1) - share[:, :, None]
    within = torch.einsum("fs,sc,kfpsd->kfpcd", weights, space.targets, centred) / counts[..., None]
    among = within / counts[:, :, None]  # m_c' R_d
    coef = torch.cat([fits.coef for fits in ridges], 3)
    left = _less_last(space.targets - centred - share[:, :, None], counts)
    scaled = torch.stack([frame.scaled(coef[:, fit]) for fit, frame in enumerate(space.frames)], 1)
    slopes = _less_last(scaled.mT, counts).mT
    by_penalty = counts.new_tensor(list(penalties))[:, None, None]
    gram = (left * weights[:, None, :, None]).mT @ left + by_penalty * (slopes @ slopes.mT)
    del left
    factor = factorise(gram.flatten(0, 2), 0.0)
    pivots = factor.lower.diagonal(dim1=-2, dim2=-1).square().unflatten(0, gram.shape[:3])
    kept = (pivots / (1 / counts[..., :-1] + 1 / counts[..., -1:])).amin(-1)
    less_last = torch.eye(counts.shape[-1], dtype=counts.dtype, device=counts.device)[:-1]
    less_last[:, -1] = -1
    inverse = less_last.mT @ factor.solve(less_last.expand(len(factor.lower), -1, -1))
    mix = counts.sum(-1)[..., None, None] * inverse.unflatten(0, gram.shape[:3]) / counts[..., None, :]
    offset = torch.log(share) - 0.5 * (among @ mix).diagonal(dim1=-2, dim2=-1)
    to_decision = mix / counts[..., None]
    to_decision, offset = _second_minus_first(to_decision, offset)
    coef = torch.einsum("kfpcd,kfpcx->kfpdx", to_decision, coef)
    shift = torch.cat([fits.intercept for fits in ridges], -1) - share
    intercept = torch.einsum("kfpcd,kfpc->kfpd", to_decision, shift) + offset
    return ProbeFits(
        coef=coef,
        intercept=intercept,
        decision=centred @ to_decision + offset[..., None, :],
        certificate=torch.stack([fits.certificate for fits in ridges]).amax(0),
        converged=torch.stack([fits.converged for fits in ridges]).all(0)
        & coef.isfinite().all(-1).all(-1)
        & (kept > _LEAST_KEPT),
        solver=ridges[0].solver,
    )


def _less_last(values: Float64[Tensor, "*batch class"], counts: Float64[Tensor, "fit 1 class"]) -> Tensor:
    """Values of each class by its count, less those of the last class: [cell, fit, ..., class] without the last."""
    each = values / counts[:, :, None]
    return each[..., :-1] - each[..., -1:]


def fit_mass_mean(space: Framed, targets: Float64[Tensor, "sample class"], n_penalties: int) -> ProbeFits:
    """The difference of the class means as direction; there is no penalty, so all of them get the same fit."""
    rows, sets = space.rows, space.sets
    weights = sets.weights(torch.arange(rows.n_samples, device=targets.device))
    counts = weights @ targets
    share = counts / counts.sum(-1, keepdim=True)
    right_side = space.other_targets(targets)
    means = torch.stack([right_side(fit).mT for fit in range(sets.n_fits)], 1) / counts[..., None]
    raw = torch.stack([frame.raw(means[:, fit]) for fit, frame in enumerate(space.frames)], 1)
    centre = torch.stack([(raw[:, fit] * frame.centre[:, None]).sum(-1) for fit, frame in enumerate(space.frames)], 1)
    projected = space.project(raw) - centre[..., None, :]
    length = means.square().sum(-1)
    by_class = torch.einsum("fs,sc,kfsd->kfcd", weights, targets, projected) / counts[..., None]
    off = projected - torch.einsum("sc,kfcd->kfsd", targets, by_class)
    variance = torch.einsum("fs,kfsd->kfd", weights, off.square()) / counts.sum(-1, keepdim=True) / length
    spread = (share * variance).sum(-1)[..., None]
    offset = torch.log(share) - 0.5 * length / spread
    coef, decision = raw / spread[..., None], projected / spread[..., None, :] + offset[..., None, :]
    intercept = offset - centre / spread
    if targets.shape[1] == 2:
        coef, decision, intercept = (
            coef[..., 1:, :] - coef[..., :1, :],
            *(v[..., 1:] - v[..., :1] for v in (decision, intercept)),
        )
    return _for_all(coef, intercept, decision, n_penalties)


def fit_covariance(space: Framed, targets: Float64[Tensor, "sample 1"], n_penalties: int) -> ProbeFits:
    """What the difference of means is for numbers: the covariance of features and target, scaled by least squares."""
    rows, sets = space.rows, space.sets
    weights = sets.weights(torch.arange(rows.n_samples, device=targets.device))
    total = weights.sum(-1)
    right_side = space.other_targets(targets)
    raw = torch.stack([frame.raw(right_side(fit).mT) for fit, frame in enumerate(space.frames)], 1)
    projected = space.project(raw).squeeze(-1)
    mean, target_mean = torch.einsum("fs,kfs->kf", weights, projected) / total, weights @ targets[:, 0] / total
    deviation = projected - mean[..., None]
    covariance = torch.einsum("fs,kfs,s->kf", weights, deviation, targets[:, 0])
    slope = covariance / torch.einsum("fs,kfs->kf", weights, deviation.square())
    intercept = target_mean - slope * mean
    decision = slope[..., None] * projected + intercept[..., None]
    return _for_all(slope[..., None, None] * raw, intercept[..., None], decision[..., None], n_penalties)


def decide_held_out_means(
    space: Framed, penalties: Sequence[float], shuffled: Float64[Tensor, "sample shuffle output"]
) -> HeldOut:
    """For other versions of the targets, the order that their covariance with the features gives the samples held out.

    For two classes that is the order of the mass-mean probe. For any, it is that of ridges whose penalty has no limit.
    """
    right_sides = space.other_targets(shuffled.flatten(1))
    for fold in range(space.sets.n_folds):
        right_side = right_sides(fold)
        decision = torch.cat([held_out @ right_side for held_out in space.held_out(fold)], 1)
        decision = decision.mT.unflatten(1, shuffled.shape[1:]).mT
        for penalty in penalties:
            yield fold, penalty, decision


def _second_minus_first(matrix: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """One output for two classes."""
    if offset.shape[-1] != 2:
        return matrix, offset
    return matrix[..., 1:] - matrix[..., :1], offset[..., 1:] - offset[..., :1]


def _for_all(
    coef: Float64[Tensor, "cell fit output feature"],
    intercept: Float64[Tensor, "cell fit output"],
    decision: Float64[Tensor, "cell fit sample output"],
    n_penalties: int,
) -> ProbeFits:
    """The same fit for every penalty, exact as it stands."""
    exact = coef.isfinite().all(-1).all(-1)[..., None].expand(-1, -1, n_penalties)
    return ProbeFits(
        coef=coef[:, :, None].expand(-1, -1, n_penalties, -1, -1),
        intercept=intercept[:, :, None].expand(-1, -1, n_penalties, -1),
        decision=decision[:, :, None].expand(-1, -1, n_penalties, -1, -1),
        certificate=torch.where(exact, 0.0, torch.nan).to(coef.dtype),
        converged=exact,
        solver=torch.full_like(exact, int(Solver.CLOSED_FORM), dtype=torch.int8),
    )
