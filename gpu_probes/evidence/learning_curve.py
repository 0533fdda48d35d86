"""How the score of one cell grows with the number of training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from gpu_probes.evidence.baselines import Comparison
from gpu_probes.samples.groups import group_samples
from gpu_probes.terms import Cell

SHARES = (0.1, 0.2, 0.4, 0.8, 1.0)


@dataclass(frozen=True)
class CurvePoint:
    """Scores with a share of the training rows; those held out stay the same. NaN where undefined."""

    share: float
    n_rows: int
    cv_score: float
    test_score: float
    alpha: float


def learning_curve(comparison: Comparison, cell: Cell, seed: int) -> list[CurvePoint]:
    """Fit a cell on growing subsets of its training rows: rows outside the subset get weight 0.

    Subsets are nested, drawn at random within each fold (and class), and keep groups complete. The alpha is chosen
    again for each.
    """
    train, test = comparison.on_cell(cell)
    weights = comparison.options.sample_weight
    base = np.ones(train.n_samples) if weights is None else np.asarray(weights, dtype=np.float64)
    drawn = _ranks(comparison, seed)
    points = []
    for share in SHARES:
        inside = drawn <= share
        used = np.where(inside, base, 0.0)
        scores = (np.nan, np.nan, np.nan)
        if _trains_everywhere(comparison, used):
            fitted = comparison.sweep_on(train, test, sample_weight=used)
            scores = (float(grid[0, 0]) for grid in (fitted.cv_score, fitted.test_score, fitted.selected_alpha))
        points.append(CurvePoint(share, int(inside.sum()), *scores))
    return points


def _trains_everywhere(comparison: Comparison, weights: Float64[np.ndarray, " train_sample"]) -> bool:
    """Whether every fit has rows, and rows of every class."""
    labels, folds = comparison.result.train_labels, comparison.result.fold_of_sample
    kinds = [np.ones(len(labels), dtype=bool)]
    if comparison.result.classes is not None:
        kinds = [labels == value for value in comparison.result.classes]
    outside = [np.ones(len(labels), dtype=bool)]
    if folds is not None:
        outside += [folds != fold for fold in np.unique(folds)]
    return all(weights[kind & rows].any() for kind in kinds for rows in outside)


def _ranks(comparison: Comparison, seed: int) -> Float64[np.ndarray, " train_sample"]:
    """Place of each sample in a random order within its fold and class, between 0 and 1; the same in a group."""
    result, options = comparison.result, comparison.options
    group = group_samples(len(result.train_labels), options.groups, options.prompts).group
    grouped = result.group_of_sample is not None
    stratum = result.fold_of_sample if result.fold_of_sample is not None else np.zeros_like(group)
    if result.classes is not None and not grouped:
        _, by_class = np.unique(result.train_labels, return_inverse=True)
        stratum = stratum * len(result.classes) + by_class
    key = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group]
    ranks = np.empty(len(group))
    for value in np.unique(stratum):
        inside = np.flatnonzero(stratum == value)
        distinct, place = np.unique(key[inside], return_inverse=True)
        ranks[inside] = (place + 0.5) / len(distinct)
    return ranks
