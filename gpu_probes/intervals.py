"""Confidence intervals for scores of fixed predictions.

The bootstrap resamples rows, or whole clusters of them, and corrects for bias and skewness (BCa, Efron 1987, with the
acceleration from the jackknife). The area under the ROC curve of two classes has a variance in closed form (DeLong
1988, by midranks: Sun & Xu 2014). What is not in them: that another training set would give another probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64, Shaped
from scipy import stats

from gpu_probes.errors import LabelError
from gpu_probes.forms import Number, Text
from gpu_probes.scoring import midranks, roc_auc, spearman

Metric = Literal["spearman", "r2", "roc_auc"]
_METRICS: dict[str, Metric] = {"spearman": "spearman", "r2": "r2", "roc_auc": "roc_auc"}
N_RESAMPLES = 2000
LEVEL = 0.95
_FEWEST_UNITS = 8
# Beyond about 20,000 rows fewer resamples do: their own error is far below the interval's width.
_FEWEST_RESAMPLES, _RESAMPLED_ROWS = 500, 40_000_000
_JACKKNIFE_BLOCKS = 200
_BATCH_VALUES = 2**21
_MOST_UNDEFINED = 0.1


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of two, and its confidence interval; None with a reason where undefined."""

    estimate: Number | None
    low: Number | None
    high: Number | None
    level: Number
    method: Text
    reason: Text | None = None

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
    """Interval of a score: DeLong's for two classes, else by bootstrap.

    Parameters
    ----------
    metric : spearman, r2 or roc_auc
    actual : array-like [sample]
        Numbers; for ``roc_auc`` the class of each row, by any names that can be sorted.
    predicted : array-like [sample] or, for more than two classes, [sample, class]
        What is ranked. Of two classes, higher for the one that sorts last; of more, a column for each, in sorted order.
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
        When labels, predictions, classes, clusters or folds do not go together, or hold NaN.
    """
    rows = _Rows.of(metric, actual, [predicted], classes, clusters, folds, level, seed)
    return _delong(rows, level) if rows.has_closed_form else _bootstrap(rows, level, seed)


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
    rows = _Rows.of(metric, actual, [first, second], classes, clusters, None, level, seed)
    return _delong(rows, level) if rows.has_closed_form else _bootstrap(rows, level, seed)


@dataclass(frozen=True)
class _Rows:
    """Rows that are scored, checked: what is ranked on each side, and which rows belong together.

    `actual` holds numbers, or the places of classes in sorted order; `clusters` and `folds` places from 0.
    """

    metric: Metric
    actual: Float64[np.ndarray, " sample"]
    sides: Float64[np.ndarray, "side sample ..."]
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
            raise LabelError(f"metric {metric!r} is unknown; use {', '.join(_METRICS)}")
        if not 0 < level < 1:
            raise LabelError(f"level {level} is not between 0 and 1; give a share, such as 0.95")
        if seed < 0:
            raise LabelError(f"seed {seed} is less than 0; use 0 or more")
        labels = np.asarray(actual)
        if labels.ndim != 1:
            raise LabelError(f"labels have shape {labels.shape}; give one for each row")
        sides = _read_sides(predicted, len(labels))
        if metric == "roc_auc":
            numbers = _places_of_classes(labels, sides.shape[2:], classes)
        else:
            numbers = _read_numbers(labels, "labels")
            if sides.ndim != 2 or classes is not None:
                raise LabelError(f"{metric} takes one number for each row and no classes; for classes use roc_auc")
        places = (
            _read_places(values, name, len(labels)) for values, name in ((clusters, "clusters"), (folds, "folds"))
        )
        return cls(_METRICS[metric], numbers, sides, *places)

    @property
    def has_closed_form(self) -> bool:
        """Whether DeLong's variance holds: two classes, independent rows."""
        return self.metric == "roc_auc" and self.sides.ndim == 2 and self.clusters is None and self.folds is None


def _read_sides(predicted: Sequence[Any], n_rows: int) -> Float64[np.ndarray, "side sample ..."]:
    sides = [_read_numbers(side, "predictions") for side in predicted]
    for side in sides:
        if side.ndim not in (1, 2) or len(side) != n_rows or side.shape != sides[0].shape:
            raise LabelError(f"predictions have shape {side.shape} for {n_rows} labels; give one for each")
    return np.stack(sides)


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
    known = found if classes is None else np.asarray(classes)
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
    if pd.isna(values).any():
        raise LabelError(f"{name} hold NaN or None; leave those rows out")
    try:
        return np.unique(values)
    except TypeError as error:
        raise LabelError(
            f"{name} mix kinds that cannot be sorted ({error}); name them all by numbers or by texts"
        ) from error


def _read_places(values: Any, name: str, n_rows: int) -> Int64[np.ndarray, " sample"] | None:
    """Clusters or folds, by their places in sorted order."""
    if values is None:
        return None
    names = np.asarray(values)
    if names.shape != (n_rows,):
        raise LabelError(f"{name} have shape {names.shape} for {n_rows} labels; give one for each row")
    return np.searchsorted(_sorted(names, name), names)


def _delong(rows: _Rows, level: float) -> Interval:
    """A single area on the logit scale, which keeps it within 0 and 1; a difference as it is."""
    positive, predicted = rows.actual == 1, rows.sides
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        return Interval(None, None, None, level, "DeLong", "there are fewer than two rows of a class")
    ranks, above, below = (
        midranks(torch.from_numpy(np.ascontiguousarray(values))).numpy()
        for values in (predicted, predicted[:, positive], predicted[:, ~positive])
    )
    placed_above = (ranks[:, positive] - above) / n
    placed_below = 1 - (ranks[:, ~positive] - below) / m
    areas = placed_above.mean(1)
    covariance = np.atleast_2d(np.cov(placed_above)) / m + np.atleast_2d(np.cov(placed_below)) / n
    z = float(stats.norm.ppf(0.5 + level / 2))
    if len(areas) == 2:
        difference = areas[0] - areas[1]
        half = z * np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
        return Interval(float(difference), float(difference - half), float(difference + half), level, "DeLong, paired")
    area, variance = float(areas[0]), covariance[0, 0]
    if variance == 0 or not 0 < area < 1:
        reason = "the classes are separated without an error" if area in (0, 1) else "all predictions are equal"
        return Interval(area, None, None, level, "DeLong", reason)
    half = z * np.sqrt(variance) / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-(np.log(area / (1 - area)) + step)))) for step in (-half, half))
    return Interval(area, low, high, level, "DeLong, logit scale")


def _bootstrap(given: _Rows, level: float, seed: int) -> Interval:
    method = "bootstrap, BCa" + ("" if given.clusters is None else ", whole groups")
    n_rows, folds = len(given.actual), given.folds
    parts = [np.arange(n_rows)] if folds is None else [np.flatnonzero(folds == k) for k in np.unique(folds)]
    units = [_units(rows, given.clusters) for rows in parts]

    def score(rows: Int64[np.ndarray, "resample row"]) -> Float64[np.ndarray, " resample"]:
        return _score_rows(given.metric, given.actual, given.sides, rows)

    estimate = float(np.mean([score(rows[None])[0] for rows in parts]))
    if np.isnan(estimate):
        return Interval(None, None, None, level, method, "the score itself is undefined")
    if sum(map(len, units)) < _FEWEST_UNITS:
        return Interval(estimate, None, None, level, method, f"there are fewer than {_FEWEST_UNITS} rows or groups")
    rng = np.random.default_rng(seed)
    n_resamples = int(np.clip(_RESAMPLED_ROWS // n_rows, _FEWEST_RESAMPLES, N_RESAMPLES))
    resampled = np.mean([_resample(score, part, n_resamples, rng) for part in units], axis=0)
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < (1 - _MOST_UNDEFINED) * n_resamples:
        return Interval(estimate, None, None, level, method, "the score is undefined in too many resamples")
    if len(given.sides) == 1 and np.ptp(defined) < 1e-12:
        return Interval(estimate, None, None, level, method, "the score is the same in every resample")
    left_out = _jackknife(score, units, parts)
    low, high = _bca(estimate, defined, left_out, level)
    return Interval(estimate, low, high, level, method)


def _units(
    rows: Int64[np.ndarray, " row"], clusters: Int64[np.ndarray, " sample"] | None
) -> list[Int64[np.ndarray, " _"]]:
    """What is resampled as one."""
    if clusters is None:
        return list(rows[:, None])
    order = rows[np.argsort(clusters[rows], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)


Score = Callable[[Int64[np.ndarray, "resample row"]], Float64[np.ndarray, " resample"]]


def _resample(
    score: Score, units: list[Int64[np.ndarray, " _"]], n_resamples: int, rng: np.random.Generator
) -> Float64[np.ndarray, " resample"]:
    """Scores of units drawn with replacement."""
    drawn = rng.integers(0, len(units), (n_resamples, len(units)))
    members, sizes = np.concatenate(units), np.array([len(unit) for unit in units])
    if (sizes == sizes[0]).all():
        members = members.reshape(len(units), -1)
        at_once = max(_BATCH_VALUES // members.size, 1)
        batches = (drawn[start : start + at_once] for start in range(0, n_resamples, at_once))
        return np.concatenate([score(members[batch].reshape(len(batch), -1)) for batch in batches])
    first = np.cumsum(sizes) - sizes
    scores = []
    for one in drawn:
        size = sizes[one]
        place = np.repeat(first[one] - (np.cumsum(size) - size), size) + np.arange(size.sum())
        scores.append(score(members[place][None]))
    return np.concatenate(scores)


def _jackknife(
    score: Score, units: list[list[Int64[np.ndarray, " _"]]], parts: list[Int64[np.ndarray, " _"]]
) -> Float64[np.ndarray, " block"]:
    """The mean over the folds without each unit in turn, or without each of 200 blocks of them."""
    whole = [float(score(rows[None])[0]) for rows in parts]
    left_out = []
    for index, part in enumerate(units):
        others = sum(whole[:index]) + sum(whole[index + 1 :])
        n_blocks = min(len(part), _JACKKNIFE_BLOCKS)
        sizes = [len(unit) for unit in part]
        block = np.repeat(np.arange(len(part)) * n_blocks // len(part), sizes)
        rows = np.concatenate(part)
        left_out += [(float(score(rows[block != out][None])[0]) + others) / len(parts) for out in range(n_blocks)]
    values = np.array(left_out)
    return values[~np.isnan(values)]


def _bca(
    estimate: float,
    resampled: Float64[np.ndarray, " resample"],
    left_out: Float64[np.ndarray, " unit"],
    level: float,
) -> tuple[float, float]:
    """Quantiles of the resamples, moved by their bias and by how skewed the score is."""
    # Ties count half, as a score of few rows takes few values.
    share = ((resampled < estimate).mean() + (resampled <= estimate).mean()) / 2
    bias = stats.norm.ppf(np.clip(share, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    deviation = left_out.mean() - left_out
    spread = np.square(deviation).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    quantiles = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(resampled, quantiles)
    return float(low), float(high)


def _score_rows(
    metric: Metric,
    actual: Float64[np.ndarray, " sample"],
    predicted: Shaped[np.ndarray, "side sample ..."],
    rows: Int64[np.ndarray, "resample row"],
) -> Float64[np.ndarray, " resample"]:
    """The score on each set of rows, or the difference of the two sides' scores."""
    y = torch.from_numpy(actual[rows])
    scores = [_score(metric, y, torch.from_numpy(side[rows])) for side in predicted]
    return (scores[0] if len(scores) == 1 else scores[0] - scores[1]).numpy()


def _score(metric: Metric, y: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    if metric == "spearman":
        return spearman(y, predicted)
    if metric == "r2":
        deviations = (y - y.mean(-1, keepdim=True)).square().sum(-1)
        return torch.where(deviations > 0, 1 - (y - predicted).square().sum(-1) / deviations, torch.nan)
    if predicted.dim() == 2:
        return roc_auc(y[..., None], predicted[..., None])
    return roc_auc((y[..., None] == torch.arange(predicted.shape[-1])).to(predicted.dtype), predicted)
