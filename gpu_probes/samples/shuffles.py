"""Which labels are permuted in a permutation test. Pure: labels and groups in, permutations out.

Labels are permuted where they are exchangeable if the features carry no information: among all samples; within groups;
if labels are constant within groups, between groups; and samples with the same prompt only together. With stratified
folds they stay in their fold, so that each fold keeps its classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from gpu_probes.samples.folds import FoldPlan
from gpu_probes.samples.groups import Grouping

_MOST_REDRAWS = 200
# Orders that are drawn at a time hold so many numbers.
_BATCH_VALUES = 2**19


@dataclass(frozen=True)
class Shuffles:
    """Permutations of the labels.

    Attributes
    ----------
    order : ndarray [shuffle, sample], or what draws the same again and again
        In a permutation, sample i gets the label of sample ``order[i]``.
    scheme : str
        Which labels are permuted, in words.
    """

    order: Int32[np.ndarray, "shuffle sample"] | Int64[np.ndarray, "shuffle sample"] | DrawnAnew
    scheme: str

    @property
    def n_shuffles(self) -> int:
        """Number of permutations."""
        return len(self.order)

    def batches(self, at_once: int) -> Iterator[Int64[np.ndarray, "shuffle sample"]]:
        """Yield all permutations, a few at a time."""
        if isinstance(self.order, DrawnAnew):
            yield from self.order.batches(at_once)
            return
        for start in range(0, len(self.order), at_once):
            yield self.order[start : start + at_once].astype(np.int64)


def draw_shuffles(
    labels: Float64[np.ndarray, " sample"],
    grouping: Grouping,
    folds: FoldPlan,
    *,
    n_shuffles: int,
    seed: int,
    kept_bytes: int | None = None,
) -> Shuffles | str:
    """Draw permutations that respect groups and folds, uniformly and independently.

    Parameters
    ----------
    labels : ndarray [sample]
    grouping : Grouping
    folds : FoldPlan
    n_shuffles : int
    seed : int
    kept_bytes : int, optional
        Orders that take more are not kept, but drawn again whenever they are needed.

    Returns
    -------
    Shuffles, or the reason why none changes anything
    """
    unit, stratum, scheme = _exchangeable(labels, grouping, folds)
    blocks = list(_interchangeable(unit, stratum))
    if all(np.array_equal(labels[m], np.broadcast_to(labels[m[:1]], m.shape)) for m in blocks):
        return f"no label differs from those that it may change places with ({scheme})"
    kept = None
    if kept_bytes is None or 4 * n_shuffles * len(labels) <= kept_bytes:
        kept = np.empty((n_shuffles, len(labels)), dtype=np.int32)
    rng, which, rounds = np.random.default_rng(seed), np.arange(n_shuffles), []
    # Labels that leave a fold without a score are drawn again: the observed labels have one in every fold.
    for _ in range(_MOST_REDRAWS):
        rounds.append(_Round.of(which, blocks, rng))
        which = _look_over(rounds[-1], rng, labels, folds, kept)
        if not len(which):
            return Shuffles(DrawnAnew(n_shuffles, rounds) if kept is None else kept, scheme)
    return f"shuffled labels hardly ever differ within every fold ({scheme}); use fewer folds"


@dataclass(frozen=True)
class DrawnAnew:
    """Orders that are drawn whenever they are asked for, always the same; a round for those that were drawn again."""

    n_shuffles: int
    rounds: list[_Round]

    @property
    def nbytes(self) -> int:
        """Nothing is kept, as an array's would be."""
        return 0

    def __len__(self) -> int:
        return self.n_shuffles

    def batches(self, at_once: int) -> Iterator[Int64[np.ndarray, "shuffle sample"]]:
        """Yield all permutations, a few at a time."""
        draws = [_Draws(round_) for round_ in self.rounds]
        for start in range(0, self.n_shuffles, at_once):
            stop = min(start + at_once, self.n_shuffles)
            order = draws[0].take(stop - start)
            for again in draws[1:]:
                which = again.round.which
                here = which[(which >= start) & (which < stop)] - start
                order[here] = again.take(len(here))
            yield order


@dataclass(frozen=True)
class _Round:
    """Shuffles that are drawn one after the other.

    Attributes
    ----------
    which : ndarray [shuffle]
    blocks : list of ndarray [unit, member]
        Samples of units that may change places.
    states : list
        Of the generator, before it draws all these shuffles of each block.
    """

    which: Int64[np.ndarray, " shuffle"]
    blocks: list[Int64[np.ndarray, "_ _"]]
    states: list[Any]

    @classmethod
    def of(
        cls, which: Int64[np.ndarray, " shuffle"], blocks: list[Int64[np.ndarray, "_ _"]], rng: np.random.Generator
    ) -> _Round:
        """Find the states; where the last one ends up is known once all is drawn (`_Draws.end`)."""
        states = []
        for members in blocks[:-1]:
            states.append(rng.bit_generator.state)
            for few in _batch_sizes(len(which), members.shape[0]):
                _permute(rng, members, few)
        return cls(which, blocks, [*states, rng.bit_generator.state])


class _Draws:
    """The orders of a round, from the first one on."""

    def __init__(self, round_: _Round) -> None:
        self.round, self._states, self._rng = round_, list(round_.states), np.random.default_rng(0)

    @property
    def end(self) -> Any:
        """The generator's state after what was taken so far of the last block."""
        return self._states[-1]

    def take(self, n_shuffles: int) -> Int64[np.ndarray, "shuffle sample"]:
        """Draw the next orders."""
        order = np.empty((n_shuffles, sum(members.size for members in self.round.blocks)), dtype=np.int64)
        for index, members in enumerate(self.round.blocks):
            self._rng.bit_generator.state = self._states[index]
            order[:, members] = _permute(self._rng, members, n_shuffles)
            self._states[index] = self._rng.bit_generator.state
        return order


def _permute(
    rng: np.random.Generator, members: Int64[np.ndarray, "unit member"], n_shuffles: int
) -> Int64[np.ndarray, "shuffle unit member"]:
    return members[rng.permuted(np.tile(np.arange(len(members)), (n_shuffles, 1)), axis=1)]


def _batch_sizes(n_shuffles: int, n_values: int) -> Iterator[int]:
    """How many shuffles to draw at a time, of so many values each."""
    at_once = max(_BATCH_VALUES // n_values, 1)
    return (min(at_once, n_shuffles - start) for start in range(0, n_shuffles, at_once))


def _look_over(
    round_: _Round,
    rng: np.random.Generator,
    labels: Float64[np.ndarray, " sample"],
    folds: FoldPlan,
    kept: Int32[np.ndarray, "shuffle sample"] | None,
) -> Int64[np.ndarray, " bad"]:
    """Draw a round, keep its orders where there is room, and find those that leave a fold without a score."""
    draws, start, bad = _Draws(round_), 0, []
    for few in _batch_sizes(len(round_.which), len(labels)):
        which, order = round_.which[start : start + few], draws.take(few)
        start += few
        if kept is not None:
            kept[which] = order
        bad.append(which[~_vary_in_folds(labels[order], folds)])
    rng.bit_generator.state = draws.end
    return np.concatenate(bad)


def _vary_in_folds(shuffled: Float64[np.ndarray, "shuffle sample"], folds: FoldPlan) -> Bool[np.ndarray, " shuffle"]:
    """Whether labels vary in every fold."""
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
