"""What a probe minimises. The one place that knows how alpha and C become a penalty.

For coefficients w (one vector per output) and rows x_i of the training set::

    sum_i loss(y_i, x_i'w)  +  1/2 penalty |w|^2

with half the squared error, the log loss of one sigmoid, or the log loss of a softmax. This is scikit-learn's
``Ridge(alpha, fit_intercept=False)``, whose objective is twice ours, with penalty = alpha, and its
``LogisticRegression(C, fit_intercept=False)``, whose objective is C times ours, with penalty = 1/C. The original
scripts set C = 1/alpha, so the penalty is alpha for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int8
from torch import Tensor

from gpu_probes.arguments import is_finite_number
from gpu_probes.errors import PenaltyError

TaskType = Literal["regression", "classification"]
ProbeKind = Literal["ridge", "logistic", "lda", "mass_mean"]


class Solver(IntEnum):
    """How a fit was found."""

    NONE = 0
    CHOLESKY = 1
    CORRECTED = 2
    QR = 3
    NEWTON_CG = 4
    NEWTON_CHOLESKY = 5
    CLOSED_FORM = 6


@dataclass(frozen=True)
class ProbeFits:
    """What a solver returns: one probe per cell, training set and penalty, in raw features.

    `decision` holds x'w + intercept of all rows. `certificate` bounds what the objective exceeds its minimum by,
    relative to the objective at zero. Fits that have no unique solution are NaN throughout.
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


def penalties_of(alphas: Sequence[float], task_type: TaskType) -> list[float]:
    """Penalties of the objective above, one for each alpha.

    Raises
    ------
    PenaltyError
        When an alpha is not a finite number of at least zero (above zero for classification), or comes twice.
    """
    if not alphas:
        raise PenaltyError("alphas is empty; give at least one, such as 1.0")
    for alpha in alphas:
        if not is_finite_number(alpha) or alpha < 0:
            raise PenaltyError(f"alpha {alpha!r} is not a penalty; use a finite number of 0 or more")
        if alpha == 0 and task_type == "classification":
            raise PenaltyError("alpha 0 means C = 1/alpha = infinity; use an alpha above 0 for classification")
    if len(set(alphas)) < len(alphas):
        raise PenaltyError(f"alphas {list(alphas)} holds a value twice; give each once")
    return [float(alpha) for alpha in alphas]


@runtime_checkable
class Loss(Protocol):
    """The loss of one row as a function of its decision values x'w, one for each output."""

    curvature_bound: ClassVar[float]

    def value(
        self,
        decision: Float64[Tensor, "cell row column output"],
        targets: Float64[Tensor, "#cell row #column output"],
    ) -> Float64[Tensor, "cell row column"]:
        """Loss of each row."""
        ...

    def predictions(self, decision: Float64[Tensor, "*batch output"]) -> Float64[Tensor, "*batch output"]:
        """What users see: probabilities; also the gradient of the loss plus the targets."""
        ...

    def curve(
        self,
        predictions: Float64[Tensor, "*batch row column output"],
        direction: Float64[Tensor, "*batch row column output"],
    ) -> Float64[Tensor, "*batch row column output"]:
        """Second derivative of the loss times a direction in decision space."""
        ...

    def project(self, coef: Float64[Tensor, "*batch output feature"]) -> Float64[Tensor, "*batch output feature"]:
        """Drop the part of a direction that the loss cannot see and the penalty only shrinks."""
        ...


class SigmoidLoss:
    """Log loss of two classes; targets are 0 or 1, the prediction is the probability of 1."""

    curvature_bound: ClassVar[float] = 0.25

    def value(
        self, decision: Float64[Tensor, "cell row column 1"], targets: Float64[Tensor, "#cell row #column 1"]
    ) -> Float64[Tensor, "cell row column"]:
        """Return log(1 + exp(z)) - y z, by logaddexp (torch's softplus turns linear at 20)."""
        return (torch.logaddexp(decision, decision.new_zeros(())) - targets * decision).sum(-1)

    def predictions(self, decision: Float64[Tensor, "*batch 1"]) -> Float64[Tensor, "*batch 1"]:
        """Probability of the second class."""
        return torch.sigmoid(decision)

    def curve(
        self, predictions: Float64[Tensor, "*batch row column 1"], direction: Float64[Tensor, "*batch row column 1"]
    ) -> Float64[Tensor, "*batch row column 1"]:
        """Return p (1 - p) v."""
        return predictions * (1 - predictions) * direction

    def project(self, coef: Float64[Tensor, "*batch 1 feature"]) -> Float64[Tensor, "*batch 1 feature"]:
        """Nothing to drop."""
        return coef


class SoftmaxLoss:
    """Log loss of several classes, one vector for each; targets are one-hot, predictions are probabilities."""

    curvature_bound: ClassVar[float] = 0.5

    def value(
        self, decision: Float64[Tensor, "cell row column output"], targets: Float64[Tensor, "#cell row #column output"]
    ) -> Float64[Tensor, "cell row column"]:
        """Return log(sum exp z) - z_y."""
        return torch.logsumexp(decision, -1) - (targets * decision).sum(-1)

    def predictions(self, decision: Float64[Tensor, "*batch output"]) -> Float64[Tensor, "*batch output"]:
        """Probability of each class."""
        return torch.softmax(decision, -1)

    def curve(
        self,
        predictions: Float64[Tensor, "*batch row column output"],
        direction: Float64[Tensor, "*batch row column output"],
    ) -> Float64[Tensor, "*batch row column output"]:
        """Return (diag(p) - p p') v."""
        return predictions * (direction - (predictions * direction).sum(-1, keepdim=True))

    def project(self, coef: Float64[Tensor, "*batch output feature"]) -> Float64[Tensor, "*batch output feature"]:
        """Centre over the classes: adding one vector to all of them changes no probability."""
        return coef - coef.mean(-2, keepdim=True)
