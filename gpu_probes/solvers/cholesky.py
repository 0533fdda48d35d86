"""Cholesky factors of penalised symmetric matrices, a block of cells at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gpu_probes.features.rows import Workspace
from gpu_probes.solvers.blas import factorise_in_place

# Columns of one panel: narrow enough for its own factor to cost little, wide enough for the matrix product.
_PANEL = 96
# By a factor of ten each, from rounding to more than the diagonal.
_MAX_RAISES = 20


@dataclass(frozen=True)
class Factor:
    """Lower triangular factors of ``matrix + penalty I``; `singular` where there is none."""

    lower: Float64[Tensor, "cell n n"]
    singular: Bool[Tensor, " cell"]

    def solve(self, right_side: Float64[Tensor, "cell n column"]) -> Float64[Tensor, "cell n column"]:
        """Apply the inverse; NaN where the matrix is singular."""
        half = torch.linalg.solve_triangular(self.lower, right_side, upper=False)
        solution = torch.linalg.solve_triangular(self.lower.mT, half, upper=True)
        return torch.where(self.singular[:, None, None], torch.nan, solution)

    @property
    def distortion(self) -> Float64[Tensor, " cell"]:
        """How many times too small the factor's own rounding can make a quadratic form of the inverse."""
        rows = self.lower.tril().square().sum(-1)
        pivots = self.lower.diagonal(dim1=-2, dim2=-1).square()
        return 1 + rows.shape[-1] * torch.finfo(rows.dtype).eps * rows.amax(-1) / pivots.amin(-1)


def factorise(matrix: Float64[Tensor, "cell n n"], penalty: float, workspace: Workspace | None = None) -> Factor:
    """Factorise ``matrix + penalty I``, given by its lower triangle; sees no right-hand side.

    In a workspace, the factor stays until the next one is made there.

    Without a penalty, a pivot that is lost in rounding (1 - R^2 of that column on the ones before it) is singular.
    """
    penalised = (workspace or Workspace()).empty("factor", matrix.shape, matrix.device).copy_(matrix)
    penalised.diagonal(dim1=-2, dim2=-1).add_(penalty)
    singular = _factorise_in_place(penalised)
    if penalty == 0:
        pivots = penalised.diagonal(dim1=-2, dim2=-1).square()
        lost = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1)
        singular = singular | (pivots <= lost).any(-1)
    return Factor(penalised, singular)


def factorise_near(matrix: Float64[Tensor, "cell n n"], penalty: float, n_penalised: int) -> Factor:
    """Factorise a matrix whose first `n_penalised` diagonal entries get the penalty, or one close to it.

    For preconditioners: where rounding leaves no factor, the diagonal is raised, first by what rounding can be, until
    there is one.
    """
    near = matrix.clone()
    lower, singular = near, torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    near.diagonal(dim1=-2, dim2=-1)[:, :n_penalised].add_(penalty)
    raised = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * near.diagonal(dim1=-2, dim2=-1).amax(-1)
    for _ in range(_MAX_RAISES):
        lower = near.clone()
        singular = _factorise_in_place(lower)
        if not bool(singular.any()):
            break
        near.diagonal(dim1=-2, dim2=-1).add_(torch.where(singular, raised, 0.0)[:, None])
        raised = 10 * raised
    return Factor(lower, singular)


def _factorise_in_place(matrix: Float64[Tensor, "cell n n"]) -> Bool[Tensor, " cell"]:
    """On a CPU by LAPACK. On a GPU left-looking, panel by panel: all but the narrow panels' own factors is products.

    cuSOLVER's batched one is made for small matrices.

    Returns
    -------
    singular : where a pivot is not above zero
    """
    n = matrix.shape[-1]
    # Small matrices, of which there may be thousands, go to torch in one call.
    if matrix.device.type == "cpu" and n > _PANEL:
        return ~torch.tensor([factorise_in_place(of_cell) for of_cell in matrix])
    singular = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    eye = torch.eye(min(_PANEL, n), dtype=matrix.dtype, device=matrix.device)
    for start in range(0, n, _PANEL):
        stop = min(start + _PANEL, n)
        done = matrix[:, start:, :start]
        panel = torch.baddbmm(matrix[:, start:, start:stop], done, done[:, : stop - start].mT, alpha=-1)
        corner, info = torch.linalg.cholesky_ex(panel[:, : stop - start])
        singular |= info != 0
        matrix[:, start:stop, start:stop] = corner
        if stop < n:
            identity = eye[: stop - start, : stop - start].expand(len(matrix), -1, -1)
            inverse = torch.linalg.solve_triangular(corner, identity, upper=False)
            matrix[:, stop:, start:stop] = panel[:, stop - start :] @ inverse.mT
    return singular
