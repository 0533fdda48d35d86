"""Scores of resamples, in which a row counts as often as it was drawn.

Values are sorted once. A resample is a vector of counts, and what it makes of the ranks is a cumulative sum of them in
the order of the values: no row is copied and nothing is sorted again, so memory is that of a few vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Shaped

Metric = Literal["spearman", "r2", "roc_auc"]
Side = Float64[np.ndarray, "sample ..."]
Counts = Int32[np.ndarray, "resample unit"]
# Counts of a batch of resamples stay within a cache; sides whose order is kept at the same time, within this memory.
_BATCH_COUNTS, _KEPT_BYTES = 2**15, 2**26
_JACKKNIFE_BLOCKS = 200


@dataclass(frozen=True)
class Resampled:
    """Scores of each side on the rows, on the same resamples of them, and without each unit or block of units.

    NaN where undefined.
    """

    estimate: Float64[np.ndarray, " side"]
    scores: Float64[np.ndarray, "side resample"]
    left_out: Float64[np.ndarray, "side block"]


@dataclass(frozen=True)
class Part:
    """Rows within which units are drawn: all, or those of a fold; and the unit that each belongs to."""

    rows: Int64[np.ndarray, " sample"]
    unit: Int64[np.ndarray, " sample"]
    n_units: int

    @classmethod
    def of(cls, rows: Int64[np.ndarray, " sample"], clusters: Int64[np.ndarray, " _"] | None) -> Part:
        """Rows one by one or, where there are clusters, these."""
        if clusters is None:
            return cls(rows, np.arange(len(rows)), len(rows))
        found, unit = np.unique(clusters[rows], return_inverse=True)
        return cls(rows, unit, len(found))


def resample(
    metric: Metric,
    actual: Float64[np.ndarray, " sample"],
    sides: Sequence[Side],
    parts: Sequence[Part],
    *,
    n_resamples: int,
    seed: int,
) -> Resampled:
    """Score all sides on the same resamples; the mean over the parts, within which units are drawn.

    Parameters
    ----------
    metric : spearman, r2 or roc_auc
    actual : ndarray [sample]
        Numbers, or the places of classes.
    sides : sequence of ndarray [sample] or, for more than two classes, [sample, class]
    parts : sequence of Part
    n_resamples : int
    seed : int
        Of the resamples.
    """
    lots = [_resample_lot(metric, actual, few, parts, n_resamples, seed) for few in _lots(sides)]
    names = ("estimate", "scores", "left_out")
    return Resampled(*(np.concatenate([getattr(lot, name) for lot in lots]) for name in names))


def _lots(sides: Sequence[Side]) -> Iterator[Sequence[Side]]:
    """Sides whose orders fit in memory at the same time; each lot draws its resamples again."""
    at_once = max(_KEPT_BYTES // (4 * sides[0].nbytes + 1), 1)
    return (sides[start : start + at_once] for start in range(0, len(sides), at_once))


def _resample_lot(
    metric: Metric,
    actual: Float64[np.ndarray, " sample"],
    sides: Sequence[Side],
    parts: Sequence[Part],
    n_resamples: int,
    seed: int,
) -> Resampled:
    rng = np.random.default_rng(seed)
    wholes, scores, without = [], [], []
    for part in parts:
        score = _SCORES[metric](actual[part.rows], [side[part.rows] for side in sides], part.unit)
        wholes.append(_score_all(score, iter([np.ones((1, part.n_units), dtype=np.int32)])))
        scores.append(_score_all(score, draw_units(rng, part.n_units, n_resamples)))
        without.append(_score_all(score, leave_units_out(part.n_units)))
    whole = np.concatenate(wholes, axis=1)
    others = [np.delete(whole, index, axis=1).sum(1, keepdims=True) for index in range(len(parts))]
    left_out = [(here + rest) / len(parts) for here, rest in zip(without, others, strict=True)]
    return Resampled(whole.mean(1), np.mean(scores, axis=0), np.concatenate(left_out, axis=1))


Score = Callable[[Counts], Float64[np.ndarray, "side resample"]]


def _score_all(score: Score, batches: Iterator[Counts]) -> Float64[np.ndarray, "side resample"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([score(counts) for counts in batches], axis=1)


def draw_units(rng: np.random.Generator, n_units: int, n_resamples: int) -> Iterator[Counts]:
    """How often each unit is drawn, with replacement, a few resamples at a time."""
    at_once = max(_BATCH_COUNTS // n_units, 1)
    for start in range(0, n_resamples, at_once):
        drawn = rng.integers(0, n_units, (min(at_once, n_resamples - start), n_units))
        counts = np.empty(drawn.shape, dtype=np.int32)
        for index, one in enumerate(drawn):
            counts[index] = np.bincount(one, minlength=n_units)
        yield counts


def leave_units_out(n_units: int) -> Iterator[Counts]:
    """Every unit once but for each in turn, or for each of 200 blocks of them."""
    n_blocks, at_once = min(n_units, _JACKKNIFE_BLOCKS), max(_BATCH_COUNTS // n_units, 1)
    block = np.arange(n_units) * n_blocks // n_units
    for start in range(0, n_blocks, at_once):
        out = np.arange(start, min(start + at_once, n_blocks))
        yield (block != out[:, None]).astype(np.int32)


class _Sorted:
    """Rows in ascending order of some values, with the runs of equal ones."""

    def __init__(self, values: Float64[np.ndarray, " sample"], unit: Int64[np.ndarray, " sample"]) -> None:
        self.order = np.argsort(values)
        self.unit = unit[self.order]
        self.first, self.after = runs(values[self.order])

    def counts(self, counts: Counts) -> Int32[np.ndarray, "resample sample"]:
        """How often each row was drawn, in order."""
        return counts.take(self.unit, axis=1)

    def ranks(self, counts: Int32[np.ndarray, "resample sample"]) -> Float64[np.ndarray, "resample sample"]:
        """Twice the midranks less their mean, in order: whole numbers."""
        upto = _upto(counts)
        return (_at(upto, self.first) + _at(upto, self.after) - upto[:, -1:]).astype(np.float64)


Places = Int64[np.ndarray, " sample"] | slice


def runs(ordered: Float64[np.ndarray, " sample"]) -> tuple[Places, Places]:
    """Where the run of equal values around each of some ascending ones begins, and where it is over."""
    differs = ordered[1:] != ordered[:-1]
    if differs.all():
        return slice(0, -1), slice(1, None)
    starts = np.flatnonzero(np.concatenate([[True], differs]))
    run = np.concatenate([[0], np.cumsum(differs)])
    return starts[run], np.append(starts[1:], len(ordered))[run]


def _upto(counts: Int32[np.ndarray, "resample sample"]) -> Int32[np.ndarray, "resample sample+1"]:
    """How many were drawn before each place."""
    upto = np.zeros((counts.shape[0], counts.shape[1] + 1), dtype=counts.dtype)
    np.cumsum(counts, axis=1, dtype=counts.dtype, out=upto[:, 1:])
    return upto


def _at(values: Shaped[np.ndarray, "resample place"], places: Places) -> Shaped[np.ndarray, "resample sample"]:
    return values[:, places] if isinstance(places, slice) else values.take(places, axis=1)


class _RankCorrelation:
    """Spearman's: Pearson's of the midranks; NaN where the labels or the predictions that were drawn are all equal."""

    def __init__(
        self, actual: Float64[np.ndarray, " sample"], sides: Sequence[Side], unit: Int64[np.ndarray, " sample"]
    ) -> None:
        self._labels = _Sorted(actual, unit)
        place = np.empty_like(self._labels.order)
        place[self._labels.order] = np.arange(len(place))
        self._sides = [_Sorted(side, unit) for side in sides]
        self._places = [place[side.order] for side in self._sides]

    def __call__(self, counts: Counts) -> Float64[np.ndarray, "side resample"]:
        drawn = self._labels.counts(counts)
        ranks = self._labels.ranks(drawn)
        weighted = drawn * ranks
        norm = np.vecdot(weighted, ranks)
        scores = []
        for side, place in zip(self._sides, self._places, strict=True):
            drawn = side.counts(counts)
            ranks = side.ranks(drawn)
            product = np.vecdot(weighted.take(place, axis=1), ranks)
            scores.append(product / np.sqrt(norm) / np.sqrt(np.vecdot(drawn * ranks, ranks)))
        return np.stack(scores)


class _Determination:
    """R2; NaN where the labels that were drawn are all equal."""

    def __init__(
        self, actual: Float64[np.ndarray, " sample"], sides: Sequence[Side], unit: Int64[np.ndarray, " sample"]
    ) -> None:
        self._actual, self._unit = actual, unit
        self._squares = np.stack([np.square(actual - side) for side in sides])

    def __call__(self, counts: Counts) -> Float64[np.ndarray, "side resample"]:
        drawn = counts.take(self._unit, axis=1).astype(np.float64)
        mean = drawn @ self._actual / drawn.sum(1)
        deviations = np.vecdot(drawn, np.square(self._actual - mean[:, None]))
        # Deviations of equal labels may round to more than 0.
        varies = np.where(drawn > 0, self._actual, -np.inf).max(1) > np.where(drawn > 0, self._actual, np.inf).min(1)
        return 1 - self._squares @ drawn.T / np.where(varies, deviations, np.nan)


class _Area:
    """ROC-AUC, the Mann-Whitney way; of more than two classes the mean of each against the rest.

    NaN where a class, or all others, were not drawn.
    """

    def __init__(
        self, actual: Float64[np.ndarray, " sample"], sides: Sequence[Side], unit: Int64[np.ndarray, " sample"]
    ) -> None:
        self._sides = [
            [_OneClass(side, actual == 1, unit)]
            if side.ndim == 1
            else [_OneClass(column, actual == place, unit) for place, column in enumerate(side.T)]
            for side in sides
        ]

    def __call__(self, counts: Counts) -> Float64[np.ndarray, "side resample"]:
        return np.stack([np.mean([one.area(counts) for one in classes], axis=0) for classes in self._sides])


class _OneClass:
    """A class against the rest: rows in order of its predictions, and where its own rows are among them."""

    def __init__(
        self,
        values: Float64[np.ndarray, " sample"],
        positive: Bool[np.ndarray, " sample"],
        unit: Int64[np.ndarray, " sample"],
    ) -> None:
        self._rows = _Sorted(values, unit)
        self._own = np.flatnonzero(positive[self._rows.order])
        places = np.arange(len(values) + 1)
        self._first, self._after = places[self._rows.first][self._own], places[self._rows.after][self._own]

    def area(self, counts: Counts) -> Float64[np.ndarray, " resample"]:
        """Half, and half of how many more rows of the rest are below a row of the class than above it, on average."""
        drawn = self._rows.counts(counts)
        upto, own = _upto(drawn), drawn.take(self._own, axis=1)
        n_own, n_drawn = own.sum(1), upto[:, -1].astype(np.int64)
        # As many more of all rows: those of the class itself cancel.
        more = upto.take(self._first, axis=1) + upto.take(self._after, axis=1) - upto[:, -1:]
        lead = np.vecdot(own.astype(np.float64), more.astype(np.float64))
        return 0.5 + lead / (2 * n_own * (n_drawn - n_own))


_SCORES: dict[Metric, Callable[..., Score]] = {
    "spearman": _RankCorrelation,
    "r2": _Determination,
    "roc_auc": _Area,
}
