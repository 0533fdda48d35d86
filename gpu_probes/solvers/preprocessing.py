"""How features and targets are shifted and scaled before a probe is fitted, on its training rows alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """What is done before the fit, as scikit-learn's `fit_intercept` and its `StandardScaler`."""

    fit_intercept: bool = False
    standardize: bool = False

    @property
    def centres(self) -> bool:
        """Whether features are shifted to mean 0."""
        return self.fit_intercept or self.standardize


@dataclass(frozen=True)
class Marginals:
    """The training rows of one fit, feature by feature: their weight, mean, and squared deviations from the mean.

    `origin` is what was subtracted from all rows before.
    """

    weight: Float64[Tensor, ""]
    mean: Float64[Tensor, "cell feature"]
    squares: Float64[Tensor, "cell feature"]
    origin: Float64[Tensor, "cell feature"]

    @classmethod
    def of_rows(
        cls,
        features: Float64[Tensor, "cell row feature"],
        weight: Float64[Tensor, " row"],
        origin: Float64[Tensor, "cell feature"],
    ) -> Marginals:
        """Of rows that are all there, those left out weighing 0."""
        mean = (weight @ features) / weight.sum()
        squares = weight @ (features - mean[:, None]).square_()
        return cls(weight.sum(), mean, squares, origin)

    @property
    def deviation(self) -> Float64[Tensor, "cell feature"]:
        """Standard deviation; 1 where it cannot be told from the rounding of the mean, as `StandardScaler` has it."""
        variance = self.squares / self.weight
        rounding = self.weight * torch.finfo(variance.dtype).eps
        # The mean of the rows as they were given, and as they are worked on: either is rounded.
        largest = torch.maximum((self.mean + self.origin).abs(), self.mean.abs())
        varies = variance > rounding * variance + (rounding * largest).square()
        return torch.where(varies, variance, 1.0).sqrt()


@dataclass(frozen=True)
class Frame:
    """The shift and the scale of one fit: features become ``(x - centre) / scale``."""

    preprocessing: Preprocessing
    centre: Float64[Tensor, "cell feature"]
    scale: Float64[Tensor, "cell feature"]
    target_centre: Float64[Tensor, " target"]

    @classmethod
    def of(cls, rows: Marginals, target_mean: Float64[Tensor, " target"], preprocessing: Preprocessing) -> Frame:
        """From the training rows."""
        return cls(
            preprocessing,
            centre=rows.mean if preprocessing.centres else torch.zeros_like(rows.mean),
            scale=rows.deviation if preprocessing.standardize else torch.ones_like(rows.mean),
            target_centre=target_mean if preprocessing.fit_intercept else torch.zeros_like(target_mean),
        )

    @classmethod
    def unchanged(cls, like: Float64[Tensor, "cell feature"], n_targets: int, preprocessing: Preprocessing) -> Frame:
        """Where nothing is shifted or scaled: no rows need be summed up."""
        return cls(preprocessing, torch.zeros_like(like), torch.ones_like(like), like.new_zeros(n_targets))

    def take(self, cells: Int64[Tensor, " kept"]) -> Frame:
        """Some of the cells."""
        return replace(self, centre=self.centre[cells], scale=self.scale[cells])

    def apply(self, features: Float64[Tensor, "cell row feature"]) -> Float64[Tensor, "cell row feature"]:
        """Shift and scale."""
        return (features - self.centre[:, None]) / self.scale[:, None]

    def raw(self, coef: Float64[Tensor, "cell *column feature"]) -> Float64[Tensor, "cell *column feature"]:
        """Coefficients of raw features from those of shifted and scaled ones."""
        return coef / _beside(self.scale, coef)

    def scaled(self, raw: Float64[Tensor, "cell *column feature"]) -> Float64[Tensor, "cell *column feature"]:
        """Coefficients of shifted and scaled features from those of raw ones."""
        return raw * _beside(self.scale, raw)

    def intercept(self, raw: Float64[Tensor, "cell *column target feature"]) -> Float64[Tensor, "cell *column target"]:
        """What has to be added to raw features times raw coefficients."""
        return self.target_centre - (raw * _beside(self.centre, raw)).sum(-1)

    def back(
        self, summed: Float64[Tensor, "cell *column feature"], total: Float64[Tensor, " cell *column"]
    ) -> Float64[Tensor, "cell *column feature"]:
        """X'e of the shifted and scaled features, from that of the raw ones and the sum of e."""
        return (summed - total[..., None] * _beside(self.centre, summed)) / _beside(self.scale, summed)


def _beside(values: Float64[Tensor, "cell feature"], columns: Tensor) -> Tensor:
    """One row per cell, spread over the axes between cell and feature."""
    return values.reshape(len(values), *[1] * (columns.dim() - 2), -1)
