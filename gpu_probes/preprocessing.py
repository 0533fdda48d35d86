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
    """Weighted sums over the training rows of one fit, without any products of features."""

    weight: Float64[Tensor, ""]
    features: Float64[Tensor, "cell feature"]
    squares: Float64[Tensor, "cell feature"]
    targets: Float64[Tensor, " target"]


@dataclass(frozen=True)
class Frame:
    """The shift and the scale of one fit: features become ``(x - centre) / scale``."""

    preprocessing: Preprocessing
    centre: Float64[Tensor, "cell feature"]
    scale: Float64[Tensor, "cell feature"]
    target_centre: Float64[Tensor, " target"]

    @classmethod
    def of(cls, sums: Marginals, preprocessing: Preprocessing) -> Frame:
        """From sums over the training rows."""
        mean = sums.features / sums.weight
        scale = torch.ones_like(mean)
        if preprocessing.standardize:
            variance = sums.squares / sums.weight - mean.square()
            # As StandardScaler: what does not vary (but for rounding) keeps its scale. The rows are shifted by the
            # first of them, so the mean is not far from 0 and nothing cancels.
            varies = variance > 1e3 * torch.finfo(mean.dtype).eps * mean.square()
            scale = torch.where(varies, variance, 1.0).sqrt()
        target_mean = sums.targets / sums.weight
        return cls(
            preprocessing,
            centre=mean if preprocessing.centres else torch.zeros_like(mean),
            scale=scale,
            target_centre=target_mean if preprocessing.fit_intercept else torch.zeros_like(target_mean),
        )

    @classmethod
    def of_rows(
        cls,
        features: Float64[Tensor, "cell row feature"],
        targets: Float64[Tensor, "row target"],
        weight: Float64[Tensor, " row"],
        preprocessing: Preprocessing,
    ) -> Frame:
        """From the training rows, those left out weighing 0."""
        nothing = torch.zeros_like(features[:, 0])
        sums, squares = (weight @ features, weight @ features.square()) if preprocessing.centres else (nothing, nothing)
        return cls.of(Marginals(weight.sum(), sums, squares, weight @ targets), preprocessing)

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
