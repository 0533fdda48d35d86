"""What the rows are summed up to, fold by fold."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from gpu_probes.folds import FoldPlan


@dataclass(frozen=True)
class Moments:
    """Count, Gram matrix X'X and X'y of several sets of rows."""

    count: Float64[Tensor, " set"]
    gram: Float64[Tensor, "set feature feature"]
    cross: Float64[Tensor, "set feature target"]


def gram(features: Float64[Tensor, "sample feature"]) -> Float64[Tensor, "feature feature"]:
    """X'X."""
    return features.T @ features


def fold_moments(
    features: Float64[Tensor, "sample feature"], targets: Float64[Tensor, "sample target"], folds: FoldPlan
) -> Moments:
    """Moments of the rows of each fold: one pass over the rows."""
    lot = torch.as_tensor(folds.fold_of_sample, device=features.device)
    members = [torch.nonzero(lot == k).squeeze(1) for k in range(folds.n_lots)]
    return Moments(
        count=torch.tensor([float(len(rows)) for rows in members], dtype=features.dtype, device=features.device),
        gram=torch.stack([gram(features[rows]) for rows in members]),
        cross=torch.stack([features[rows].T @ targets[rows] for rows in members]),
    )


def training_moments(moments: Moments, folds: FoldPlan) -> Moments:
    """Moments of each fit's training set.

    Summed from the folds that are in it: total minus fold would cancel where one fold dominates.
    """
    included = torch.as_tensor(folds.lots_of_fit(), device=moments.gram.device)
    return Moments(
        count=included @ moments.count,
        gram=torch.einsum("fl,lij->fij", included, moments.gram),
        cross=torch.einsum("fl,lit->fit", included, moments.cross),
    )
