"""Losses of classifiers: value, gradient and curvature."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor


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

    def curvature(
        self,
        predictions: Float64[Tensor, "cell row column output"],
        weights: Float64[Tensor, "cell row column"],
    ) -> Float64[Tensor, "cell row column output"]:
        """What `curve` needs of the weighted rows' second derivatives, whatever the direction."""
        ...

    def curve(
        self,
        curvature: Float64[Tensor, "cell row column output"],
        predictions: Float64[Tensor, "cell row column output"],
        direction: Float64[Tensor, "cell row column output"],
    ) -> Float64[Tensor, "cell row column output"]:
        """Second derivative of the weighted rows' losses times a direction in decision space."""
        ...

    def project(self, coef: Float64[Tensor, "*batch output feature"]) -> Float64[Tensor, "*batch output feature"]:
        """Drop the part of a direction that the loss cannot see and the penalty only shrinks."""
        ...


class SigmoidLoss:
    """Log loss of two classes; targets are 0 or 1, the prediction is the probability of 1.

    A target between is a rate: the loss is that of a row of class 1 with this weight and one of class 0 with the rest.
    """

    curvature_bound: ClassVar[float] = 0.25

    def value(
        self, decision: Float64[Tensor, "cell row column 1"], targets: Float64[Tensor, "#cell row #column 1"]
    ) -> Float64[Tensor, "cell row column"]:
        """Return log(1 + exp(z)) - y z, by logaddexp (torch's softplus turns linear at 20)."""
        return (torch.logaddexp(decision, decision.new_zeros(())) - targets * decision).sum(-1)

    def predictions(self, decision: Float64[Tensor, "*batch 1"]) -> Float64[Tensor, "*batch 1"]:
        """Probability of the second class."""
        return torch.sigmoid(decision)

    def curvature(
        self, predictions: Float64[Tensor, "cell row column 1"], weights: Float64[Tensor, "cell row column"]
    ) -> Float64[Tensor, "cell row column 1"]:
        """Return weight p (1 - p)."""
        return weights[..., None] * (predictions * (1 - predictions))

    def curve(
        self,
        curvature: Float64[Tensor, "cell row column 1"],
        predictions: Float64[Tensor, "cell row column 1"],
        direction: Float64[Tensor, "cell row column 1"],
    ) -> Float64[Tensor, "cell row column 1"]:
        """Return weight p (1 - p) v."""
        return curvature * direction

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

    def curvature(
        self, predictions: Float64[Tensor, "cell row column output"], weights: Float64[Tensor, "cell row column"]
    ) -> Float64[Tensor, "cell row column output"]:
        """Return weight p."""
        return weights[..., None] * predictions

    def curve(
        self,
        curvature: Float64[Tensor, "cell row column output"],
        predictions: Float64[Tensor, "cell row column output"],
        direction: Float64[Tensor, "cell row column output"],
    ) -> Float64[Tensor, "cell row column output"]:
        """Return weight (diag(p) - p p') v."""
        return curvature * (direction - (predictions * direction).sum(-1, keepdim=True))

    def project(self, coef: Float64[Tensor, "*batch output feature"]) -> Float64[Tensor, "*batch output feature"]:
        """Centre over the classes: adding one vector to all of them changes no probability."""
        return coef - coef.mean(-2, keepdim=True)
