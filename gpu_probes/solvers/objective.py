"""What a probe minimises. The one place that knows how alpha and C become a penalty.

For coefficients w (one vector per output) and rows x_i of the training set::

    sum_i loss(y_i, x_i'w)  +  1/2 penalty |w|^2

with half the squared error, the log loss of one sigmoid (of classes, or of rates, which count for both), or the log
loss of a softmax. This is scikit-learn's
``Ridge(alpha, fit_intercept=False)``, whose objective is twice ours, with penalty = alpha, and its
``LogisticRegression(C, fit_intercept=False)``, whose objective is C times ours, with penalty = 1/C. The original
scripts set C = 1/alpha, so the penalty is alpha for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float64, Int8
from torch import Tensor

from gpu_probes.arguments import is_finite_number
from gpu_probes.errors import PenaltyError
from gpu_probes.terms import TaskType


@dataclass(frozen=True)
class ProbeFits:
    """What a solver returns: one probe per cell, training set and penalty, in raw features.

    `decision` holds x'w + intercept of all rows. `certificate` bounds what the objective exceeds its minimum by,
    relative to the objective at zero. The coefficients of fits that have no unique solution are NaN.
    """

    coef: Float64[Tensor, "cell fit penalty output feature"]
    intercept: Float64[Tensor, "cell fit penalty output"]
    decision: Float64[Tensor, "cell fit penalty sample output"]
    certificate: Float64[Tensor, "cell fit penalty"]
    converged: Bool[Tensor, "cell fit penalty"]
    solver: Int8[Tensor, "cell fit penalty"]

    @classmethod
    def joined(cls, parts: Sequence[ProbeFits]) -> ProbeFits:
        """Fits of several groups of penalties as one."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts], 2) for name in names})


# For shuffled targets: fold, penalty, and the decision values of the fold's samples by fits that left it out,
# ``[cell, shuffle, sample, output]``, samples in ascending order; a constant of all samples of a fold may be missing.
HeldOut = Iterator[tuple[int, float, Float64[Tensor, "cell shuffle sample output"]]]


def duality_gap(gradient_square: Float64[Tensor, "*#fit"], penalty: Float64[Tensor, "*#fit"]) -> Tensor:
    """Bound on the excess of the objective over its minimum: |gradient|^2 / (2 penalty).

    The objective is strongly convex with modulus `penalty`. The same number is the duality gap at the dual point
    that belongs to the coefficients, the rows' errors. Infinite without a penalty, where it bounds nothing.
    """
    return torch.where(penalty > 0, gradient_square / (2 * penalty), torch.inf)


def penalties_of(alphas: Sequence[float], task_type: TaskType, *, argument: str) -> list[float]:
    """Penalties of the objective above, one for each alpha; `argument` is where these come from.

    Raises
    ------
    PenaltyError
        When an alpha is not a finite number of at least zero (above zero for log losses), or comes twice.
    """
    if not alphas:
        raise PenaltyError(f"{argument}=[] is empty; give at least one, such as 1.0", argument=argument)
    for alpha in alphas:
        if not is_finite_number(alpha) or alpha < 0:
            given = f"{argument}={alpha!r} is" if argument == "alpha" else f"{argument}=... holds {alpha!r}, which is"
            raise PenaltyError(f"{given} not a penalty; use a finite number of 0 or more", argument=argument)
        if alpha == 0 and task_type == "classification":
            raise PenaltyError(
                "alpha 0 means C = 1/alpha = infinity; use an alpha above 0 for classification and for rates",
                argument=argument,
            )
    if len(set(alphas)) < len(alphas):
        raise PenaltyError(f"{argument}={list(alphas)} holds a value twice; give each once", argument=argument)
    return [float(alpha) for alpha in alphas]
