"""Confidence intervals for scores of fixed predictions.

The bootstrap resamples rows or complete clusters of rows, and corrects for bias and skewness (BCa, Efron 1987, with the
acceleration from the jackknife). The area under the ROC curve of two classes has a variance in closed form (DeLong
1988, by midranks: Sun & Xu 2014). They do not cover the variation between probes trained on different rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from gpu_probes.errors import LabelError
from gpu_probes.forms import Number, Text
from gpu_probes.scores.resampling import Metric, Part, Resampled, Side, resample, runs

_METRICS: dict[str, Metric] = {"spearman": "spearman", "r2": "r2", "roc_auc": "roc_auc"}
N_RESAMPLES = 2000
LEVEL = 0.95
_FEWEST_UNITS, _FEW_CLUSTERS = 8, 20
# Beyond 5,000 rows fewer resamples do: those of 500 move an end of the interval by about 7 % of its half width.
_FEWEST_RESAMPLES, _RESAMPLED_ROWS = 500, 10_000_000
_MOST_UNDEFINED = 0.1
# Sums of ranks that are equal may differ in the last digits.
_TIE = 1e-12


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of two, and its confidence interval; None with a reason where undefined.

    `note` says when such an interval is known to be too narrow.
    """

    estimate: Number | None
    low: Number | None
    high: Number | None
    level: Number
    method: Text
    reason: Text | None = None
    note: Text | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the files."""
        return asdict(self)


def score_interval(
    metric: str,
    actual: Any,
    predicted: Any,
    *,
    classes: Any = None,
    clusters: Any = None,
    folds: Any = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of a score: DeLong's for two classes, otherwise by bootstrap.

    Parameters
    ----------
    metric : spearman, r2 or roc_auc
    actual : array-like [sample]
        Numbers; for ``roc_auc`` the class of each row, in any values that can be sorted.
    predicted : array-like [sample] or, for more than two classes, [sample, class]
        What is ranked. For two classes, higher for the one that sorts last; for more, one column each, in sorted order.
    classes : array-like [class], optional
        For ``roc_auc``, all classes in sorted order; by default those in `actual`.
    clusters : array-like [sample], optional
        Names or numbers; rows of a cluster are resampled together.
    folds : array-like [sample], optional
        The score is the mean of the scores within each fold, as in cross-validation; rows are resampled within them.
    level : float
        Between 0 and 1.
    seed : int
        Of the resamples.

    Raises
    ------
    LabelError
        When labels, predictions, classes, clusters or folds do not match, or contain NaN.
    """
    sides = ScoredSides.of(
        metric, actual, {1: predicted}, classes=classes, clusters=clusters, folds=folds, level=level, seed=seed
    )
    return sides.score(1)


def difference_interval(
    metric: str,
    actual: Any,
    first: Any,
    second: Any,
    *,
    classes: Any = None,
    clusters: Any = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of the difference of two scores on the same rows, first minus second; as `score_interval`."""
    both = {1: first, 2: second}
    sides = ScoredSides.of(metric, actual, both, classes=classes, clusters=clusters, level=level, seed=seed)
    return sides.difference(1, 2)


@dataclass(frozen=True)
class ScoredSides:
    """Predictions of the same rows, by name: intervals of their scores and of differences, from the same resamples."""

    names: tuple[Hashable, ...]
    level: float
    found: _Placed | Bootstrapped

    @classmethod
    def of(
        cls,
        metric: str,
        actual: Any,
        sides: Mapping[Any, Any],
        *,
        classes: Any = None,
        clusters: Any = None,
        folds: Any = None,
        level: float = LEVEL,
        seed: int = 0,
    ) -> ScoredSides:
        """Score them; `sides` are predictions, everything else is as in `score_interval`."""
        rows = _Rows.of(metric, actual, list(sides.values()), classes, clusters, folds, level, seed)
        found = _Placed.of(rows) if rows.has_closed_form else Bootstrapped.of(rows, seed)
        return cls(tuple(sides), level, found)

    def score(self, name: Hashable) -> Interval:
        """Interval of one side's score."""
        return self.found.score(self.names.index(name), self.level)

    def difference(self, first: Hashable, second: Hashable) -> Interval:
        """Interval of how much better one side's score is than another's."""
        return self.found.difference(self.names.index(first), self.names.index(second), self.level)


@dataclass(frozen=True)
class _Rows:
    """Rows that are scored, checked: what is ranked on each side, and which rows belong together.

    `actual` holds numbers, or the places of classes in sorted order; `clusters` and `folds` places from 0.
    """

    metric: Metric
    actual: Float64[np.ndarray, " sample"]
    sides: Sequence[Side]
    clusters: Int64[np.ndarray, " sample"] | None
    folds: Int64[np.ndarray, " sample"] | None

    @classmethod
    def of(
        cls,
        metric: str,
        actual: Any,
        predicted: Sequence[Any],
        classes: Any,
        clusters: Any,
        folds: Any,
        level: float,
        seed: int,
    ) -> _Rows:
        if metric not in _METRICS:
            raise LabelError(f"metric={metric!r} is unknown; use {', '.join(_METRICS)}", argument="metric")
        if not 0 < level < 1:
            raise LabelError(f"level={level} is not between 0 and 1; give a share, such as 0.95", argument="level")
        if seed < 0:
            raise LabelError(f"seed={seed} is less than 0; use 0 or more", argument="seed")
        labels = _as_given(actual)
        if labels.ndim != 1:
            raise LabelError(f"labels have shape {labels.shape}; give one for each row")
        sides = _read_sides(predicted, len(labels))
        if metric == "roc_auc":
            numbers = _places_of_classes(labels, sides[0].shape[1:], classes)
        else:
            numbers = _read_numbers(labels, "labels")
            if sides[0].ndim != 1 or classes is not None:
                raise LabelError(f"{metric} takes one number for each row and no classes; for classes use roc_auc")
        places = (
            _read_places(values, name, len(labels)) for values, name in ((clusters, "clusters"), (folds, "folds"))
        )
        return cls(_METRICS[metric], numbers, sides, *places)

    @property
    def has_closed_form(self) -> bool:
        """Whether DeLong's variance holds: two classes, independent rows."""
        return self.metric == "roc_auc" and self.sides[0].ndim == 1 and self.clusters is None and self.folds is None


def _read_sides(predicted: Sequence[Any], n_rows: int) -> Sequence[Side]:
    sides = [_read_numbers(side, "predictions") for side in predicted]
    for side in sides:
        if side.ndim not in (1, 2) or len(side) != n_rows or side.shape != sides[0].shape:
            raise LabelError(f"predictions have shape {side.shape} for {n_rows} labels; give one for each")
    return sides


def _as_given(values: Any) -> Shaped[np.ndarray, "*batch"]:
    """An array of the values: in a list with a string, NumPy would turn numbers and NaN into strings."""
    array = np.asarray(values)
    made_text = array.dtype.kind in "US" and isinstance(values, list | tuple)
    return np.asarray(values, dtype=object) if made_text else array


def _read_numbers(values: Any, name: str) -> Float64[np.ndarray, "*batch"]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LabelError(f"{name} are not numbers ({error}); for classes use roc_auc") from error
    if not np.isfinite(numbers).all():
        raise LabelError(f"{name} hold NaN or infinity; leave those rows out")
    return numbers


def _places_of_classes(
    labels: Shaped[np.ndarray, " sample"], columns: tuple[int, ...], classes: Any
) -> Float64[np.ndarray, " sample"]:
    """The place of each label among the sorted classes; by what is given or, without, by those that there are."""
    found = _sorted(labels, "labels")
    known = found if classes is None else _as_given(classes)
    if not np.array_equal(known, _sorted(known, "classes")):
        raise LabelError(
            f"classes {known.tolist()} are not distinct and sorted; columns of predictions go by that order"
        )
    foreign = np.setdiff1d(found, known)
    if foreign.size:
        raise LabelError(f"label {foreign[0]!r} is not among the classes {known.tolist()}; leave its rows out")
    if len(known) > 2 and columns != (len(known),):
        raise LabelError(
            f"predictions have columns {columns} for {len(known)} classes; give [row, class], and classes=... where "
            "the labels do not have them all"
        )
    if len(known) <= 2 and columns:
        raise LabelError(
            f"predictions have columns {columns} for the classes {known.tolist()}; of two classes give one number for "
            "each row, for that which sorts last, and of more than two also classes=..."
        )
    return np.searchsorted(known, labels).astype(np.float64)


def _sorted(values: Shaped[np.ndarray, " _"], name: str) -> Shaped[np.ndarray, " _"]:
    import pandas as pd

    if pd.isna(values).any():
        raise LabelError(f"{name} hold NaN or None; leave those rows out")
    try:
        return np.unique(values)
    except TypeError as error:
        raise LabelError(
            f"{name} mix kinds that cannot be sorted ({error}); use only numbers or only strings"
        ) from error


def _read_places(values: Any, name: str, n_rows: int) -> Int64[np.ndarray, " sample"] | None:
    """Clusters or folds, by their places in sorted order."""
    if values is None:
        return None
    names = _as_given(values)
    if names.shape != (n_rows,):
        raise LabelError(f"{name} have shape {names.shape} for {n_rows} labels; give one for each row")
    return np.searchsorted(_sorted(names, name), names)


@dataclass(frozen=True)
class _Placed:
    """Of each side the area, and where each row is placed among those of the other class (DeLong)."""

    above: Float64[np.ndarray, "side positive"]
    below: Float64[np.ndarray, "side negative"]

    @classmethod
    def of(cls, rows: _Rows) -> _Placed:
        positive = rows.actual == 1
        if not positive.any() or positive.all():
            nothing = np.empty((len(rows.sides), 0))
            return cls(nothing, nothing)
        above, below = zip(*(_placements(side, positive) for side in rows.sides), strict=True)
        return cls(np.stack(above), np.stack(below))

    def score(self, index: int, level: float) -> Interval:
        """On the logit scale, which keeps the interval within 0 and 1."""
        if self._has_too_few:
            return self._too_few(level)
        area, variance = float(self.above[index].mean()), self._covariance([index])[0, 0]
        if variance == 0 or not 0 < area < 1:
            reason = "the classes are separated without an error" if area in (0, 1) else "all predictions are equal"
            return Interval(area, None, None, level, "DeLong", reason)
        half = _z(level) * np.sqrt(variance) / (area * (1 - area))
        low, high = (float(1 / (1 + np.exp(-(np.log(area / (1 - area)) + step)))) for step in (-half, half))
        return Interval(area, low, high, level, "DeLong, logit scale")

    def difference(self, first: int, second: int, level: float) -> Interval:
        """As it is, with the covariance of the two areas."""
        if self._has_too_few:
            return self._too_few(level)
        difference = self.above[first].mean() - self.above[second].mean()
        covariance = self._covariance([first, second])
        half = _z(level) * np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
        return Interval(float(difference), float(difference - half), float(difference + half), level, "DeLong, paired")

    @property
    def _has_too_few(self) -> bool:
        return min(self.above.shape[1], self.below.shape[1]) < 2

    def _too_few(self, level: float) -> Interval:
        return Interval(None, None, None, level, "DeLong", "there are fewer than two rows of a class")

    def _covariance(self, sides: list[int]) -> Float64[np.ndarray, "side side"]:
        above, below = (np.atleast_2d(np.cov(values[sides])) / values.shape[1] for values in (self.above, self.below))
        return above + below


def _placements(
    predicted: Float64[np.ndarray, " sample"], positive: Bool[np.ndarray, " sample"]
) -> tuple[Float64[np.ndarray, " positive"], Float64[np.ndarray, " negative"]]:
    """The share of the negatives that are below each positive, and of the positives above each negative; ties half."""
    order = np.argsort(predicted)
    first, after = runs(predicted[order])
    placed = np.empty((2, len(order)))
    for index, others in enumerate((~positive, positive)):
        upto = np.concatenate([[0], np.cumsum(others[order])])
        placed[index, order] = (upto[first] + upto[after]) / (2 * others.sum())
    return placed[0, positive], 1 - placed[1, ~positive]


def _z(level: float) -> float:
    from scipy import stats

    return float(stats.norm.ppf(0.5 + level / 2))


@dataclass(frozen=True)
class Bootstrapped:
    """Of each side the score, and the scores of resamples (bootstrap)."""

    scores: Resampled
    n_units: int
    method: str
    note: str | None

    @classmethod
    def of(cls, rows: _Rows, seed: int) -> Bootstrapped:
        """Resample rows, or complete clusters of them."""
        n_rows = len(rows.actual)
        folds = np.zeros(n_rows, dtype=np.int64) if rows.folds is None else rows.folds
        parts = [Part.of(np.flatnonzero(folds == fold), rows.clusters) for fold in np.unique(folds)]
        n_resamples = int(np.clip(_RESAMPLED_ROWS // n_rows, _FEWEST_RESAMPLES, N_RESAMPLES))
        scores = resample(rows.metric, rows.actual, rows.sides, parts, n_resamples=n_resamples, seed=seed)
        method = "bootstrap, BCa" + ("" if rows.clusters is None else ", whole groups")
        n_units = sum(part.n_units for part in parts)
        return cls(scores, n_units, method, _note(rows, n_units))

    def score(self, index: int, level: float) -> Interval:
        """Interval of one side's score."""
        found = self.scores
        return self._interval(found.estimate[index], found.scores[index], found.left_out[index], level, spread=1e-12)

    def difference(self, first: int, second: int, level: float) -> Interval:
        """Interval of how much better one side's score is than another's."""
        found = self.scores
        estimate, resampled, left_out = (
            values[first] - values[second] for values in (found.estimate, found.scores, found.left_out)
        )
        return self._interval(estimate, resampled, left_out, level, spread=0.0)

    def _interval(
        self,
        estimate: float,
        resampled: Float64[np.ndarray, " resample"],
        left_out: Float64[np.ndarray, " block"],
        level: float,
        *,
        spread: float,
    ) -> Interval:
        """BCa, where the scores of resamples are defined and spread at least so wide."""
        if np.isnan(estimate):
            return Interval(None, None, None, level, self.method, "the score itself is undefined")
        reason, defined = None, resampled[~np.isnan(resampled)]
        if self.n_units < _FEWEST_UNITS:
            reason = f"there are fewer than {_FEWEST_UNITS} rows or groups"
        elif len(defined) < (1 - _MOST_UNDEFINED) * len(resampled):
            reason = "the score is undefined in too many resamples"
        elif np.ptp(defined) < spread:
            reason = "the score is the same in every resample"
        if reason is not None:
            return Interval(float(estimate), None, None, level, self.method, reason)
        low, high = _bca(float(estimate), defined, left_out[~np.isnan(left_out)], level)
        return Interval(float(estimate), low, high, level, self.method, note=self.note)


def _note(rows: _Rows, n_units: int) -> str | None:
    """What simulations found about an interval's coverage (python -m benchmarks inference)."""
    few = note_on_clusters(None if rows.clusters is None else n_units)
    if few is not None:
        return few
    if rows.metric == "r2":
        tails = "labels with heavy tails (Student's t with 3 degrees of freedom)"
        return f"of {tails}, 95 % intervals of r2 hold the truth 87 % of the time"
    return None


def note_on_clusters(n_clusters: int | None) -> str | None:
    """What simulations found about intervals from few clusters; None where rows stand alone."""
    if n_clusters is None or n_clusters >= _FEW_CLUSTERS:
        return None
    rate = f"with fewer than {_FEW_CLUSTERS}, 95 % intervals hold the truth 88 to 90 % of the time"
    return f"made of {n_clusters} groups only; {rate}"


def _bca(
    estimate: float,
    resampled: Float64[np.ndarray, " resample"],
    left_out: Float64[np.ndarray, " unit"],
    level: float,
) -> tuple[float, float]:
    """Quantiles of the resamples, moved by their bias and by how skewed the score is."""
    from scipy import stats

    # Ties count half, as a score of few rows takes few values.
    share = ((resampled < estimate - _TIE).mean() + (resampled <= estimate + _TIE).mean()) / 2
    bias = stats.norm.ppf(np.clip(share, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    deviation = left_out.mean() - left_out
    spread = np.square(deviation).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    quantiles = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(resampled, quantiles)
    return float(low), float(high)
