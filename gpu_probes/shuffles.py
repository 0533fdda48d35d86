"""Which labels change places in a permutation test. Pure: labels and groups in, orders out.

Labels may change places where they are exchangeable if the features tell nothing about them: anywhere; within a group;
where labels belong to whole groups, between groups; and samples with the same prompt only together. In stratified folds
they stay in their fold, so that each keeps its classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from gpu_probes.folds import FoldPlan
from gpu_probes.groups import Grouping

_MOST_REDRAWS = 200


@dataclass(frozen=True)
class Shuffles:
    """Orders of the labels.

    Attributes
    ----------
    order : ndarray [shuffle, sample]
        In a shuffle, sample i gets the label of sample ``order[i]``.
    scheme : str
        Which labels change places, in words.
    """

    order: Int64[np.ndarray, "shuffle sample"]
    scheme: str


def draw_shuffles(
    labels: Float64[np.ndarray, " sample"], grouping: Grouping, folds: FoldPlan, *, n_shuffles: int, seed: int
) -> Shuffles | str:
    """Draw orders that respect the groups and the folds, uniformly and independently.

    Returns
    -------
    Shuffles, or the reason why none changes anything
    """
    unit, stratum, scheme = _exchangeable(labels, grouping, folds)
    blocks = list(_interchangeable(unit, stratum))
    if all(np.array_equal(labels[m], np.broadcast_to(labels[m[:1]], m.shape)) for m in blocks):
        return f"no label differs from those that it may change places with ({scheme})"
    rng = np.random.default_rng(seed)
    order = _draw(rng, blocks, n_shuffles, len(labels))
    # Labels that leave a fold without a score are drawn anew: those observed have one in every fold.
    for _ in range(_MOST_REDRAWS):
        bad = np.flatnonzero(~_vary_in_folds(labels[order], folds))
        if not len(bad):
            return Shuffles(order, scheme)
        order[bad] = _draw(rng, blocks, len(bad), len(labels))
    return f"shuffled labels hardly ever differ within every fold ({scheme}); use fewer folds"


def _draw(
    rng: np.random.Generator, blocks: list[np.ndarray], n_shuffles: int, n_samples: int
) -> Int64[np.ndarray, "shuffle sample"]:
    order = np.tile(np.arange(n_samples), (n_shuffles, 1))
    for members in blocks:
        chosen = rng.permuted(np.tile(np.arange(len(members)), (n_shuffles, 1)), axis=1)
        order[:, members] = members[chosen]
    return order


def _vary_in_folds(shuffled: Float64[np.ndarray, "shuffle sample"], folds: FoldPlan) -> Bool[np.ndarray, " shuffle"]:
    """Whether labels take two values in every fold."""
    by_fold = [shuffled[:, folds.fold_of_sample == fold] for fold in range(folds.n_folds)]
    if not by_fold:
        return np.ones(len(shuffled), dtype=bool)
    return np.all([(held_out != held_out[:, :1]).any(1) for held_out in by_fold], axis=0)


def _exchangeable(
    labels: Float64[np.ndarray, " sample"], grouping: Grouping, folds: FoldPlan
) -> tuple[Int64[np.ndarray, " sample"], Int64[np.ndarray, " sample"], str]:
    """What moves as one, within which stratum it moves, and both in words."""
    everywhere = np.zeros_like(grouping.group)
    if not grouping.has_column:
        unit, stratum, scheme = grouping.block, everywhere, "among all samples"
    elif _varies_within(labels, grouping.group):
        unit, stratum, scheme = grouping.block, grouping.group, "within groups"
    else:
        unit, stratum, scheme = grouping.group, everywhere, "whole groups, as labels do not vary within them"
    if len(np.unique(unit)) < len(unit) and unit is grouping.block:
        scheme += ", repeated prompts together"
    if folds.stratified:
        stratum, scheme = stratum * folds.n_lots + folds.fold_of_sample, f"{scheme}, within folds"
    return unit, stratum, scheme


def _varies_within(labels: Float64[np.ndarray, " sample"], group: Int64[np.ndarray, " sample"]) -> bool:
    order = np.argsort(group, kind="stable")
    same_group = group[order][1:] == group[order][:-1]
    return bool(np.any(same_group & (labels[order][1:] != labels[order][:-1])))


def _interchangeable(
    unit: Int64[np.ndarray, " sample"], stratum: Int64[np.ndarray, " sample"]
) -> Iterator[Int64[np.ndarray, "unit member"]]:
    """Samples of units that may change places: those of a stratum with equally many samples."""
    order = np.lexsort((np.arange(len(unit)), unit))
    _, first, size = np.unique(unit[order], return_index=True, return_counts=True)
    key = stratum[order[first]] * (int(size.max()) + 1) + size
    by_key = np.argsort(key, kind="stable")
    for units in np.split(by_key, np.flatnonzero(np.diff(key[by_key])) + 1):
        yield order[first[units][:, None] + np.arange(int(size[units[0]]))]
