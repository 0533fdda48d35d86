"""Every score of one probe's predictions, by scipy and scikit-learn; what is undefined is None, with the reason.

Classes are given as indices into the sorted classes; predictions as in a `SweepResult`: a number, the probability of
the second of two classes, or a probability for each class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy import optimize, special, stats
from sklearn import metrics

N_BINS = 10
FALSE_POSITIVE_RATE = 0.01
_TOP_SHARE = 0.25


@dataclass(frozen=True)
class Scores:
    """Scores by name, None where undefined; `reasons` says why."""

    values: dict[str, Any]
    reasons: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As in the files."""
        return {**self.values, "undefined": self.reasons}


class _UndefinedError(Exception):
    """Why a score does not exist for these labels and predictions."""


def regression_scores(actual: Float64[np.ndarray, " sample"], predicted: Float64[np.ndarray, " sample"]) -> Scores:
    """Spearman, Pearson, R2, mean squared and absolute error, Kendall's tau-b, and the learnability selection."""
    both = (actual, predicted)
    return _collect(
        spearman=lambda: _correlation(stats.spearmanr, both),
        pearson=lambda: _correlation(stats.pearsonr, both),
        kendall=lambda: _correlation(stats.kendalltau, both),
        r2=lambda: _r2(*both),
        mse=lambda: float(np.square(actual - predicted).mean()),
        mae=lambda: float(np.abs(actual - predicted).mean()),
        learnability=lambda: learnability(*both),
    )


def classification_scores(
    actual: Int64[np.ndarray, " sample"], probabilities: Shaped[np.ndarray, "sample ..."], n_classes: int
) -> Scores:
    """Ranking, accuracy and calibration of probabilities; the mean over the classes where there are more than two."""
    binary = n_classes == 2
    one_hot = np.eye(n_classes)[actual]
    by_class = np.stack([1 - probabilities, probabilities], 1) if binary else probabilities
    chosen = by_class.argmax(1) if not binary else (probabilities > 0.5).astype(np.int64)
    sure, right = (probabilities, actual == 1) if binary else (by_class.max(1), chosen == actual)
    columns = slice(1, None) if binary else slice(None)

    def over_classes(score: Callable[..., Any]) -> float:
        if not ((one_hot.sum(0) > 0) & (one_hot.sum(0) < len(actual))).all():
            raise _UndefinedError("a class is missing among the labels")
        return float(np.mean([score(*pair) for pair in zip(one_hot.T[columns], by_class.T[columns], strict=True)]))

    squares = np.square(by_class - one_hot)
    return _collect(
        roc_auc=lambda: over_classes(metrics.roc_auc_score),
        average_precision=lambda: over_classes(metrics.average_precision_score),
        accuracy=lambda: metrics.accuracy_score(actual, chosen),
        log_loss=lambda: metrics.log_loss(actual, by_class, labels=range(n_classes)),
        brier=lambda: squares[:, 1].mean() if binary else squares.sum(1).mean(),
        ece=lambda: calibration_error(right, sure),
        recall_at_1pct_fpr=lambda: _recall(actual, probabilities, binary=binary),
        reliability=lambda: reliability_curve(right, sure),
    )


def learnability(
    actual: Float64[np.ndarray, " sample"], predicted: Float64[np.ndarray, " sample"]
) -> dict[str, float | None]:
    """How much learnability p(1-p) a selection by predicted success rates would get.

    The quarter of the rows with the highest predicted p(1-p) is selected, tied rows at its edge in part. Their mean of
    the actual p(1-p) stands beside that of the best quarter and that of all rows.
    """
    if actual.min() < 0 or actual.max() > 1:
        raise _UndefinedError("labels are not success rates between 0 and 1")
    gain, guess = (p * (1 - p) for p in (actual, np.clip(predicted, 0.0, 1.0)))
    selected, best = _top_mean(gain, guess), _top_mean(gain, gain)
    return {
        "selected": selected,
        "best": best,
        "random": float(gain.mean()),
        "ratio": selected / best if best > 0 else None,
    }


def reliability_curve(
    right: Bool[np.ndarray, " sample"], confidence: Float64[np.ndarray, " sample"]
) -> list[dict[str, float | int | None]]:
    """Predicted and actual frequency in bins of equal width; empty ones are null."""
    place = _bin_of(confidence)
    curve: list[dict[str, float | int | None]] = []
    for index in range(N_BINS):
        inside = place == index
        means = [float(values[inside].mean()) if inside.any() else None for values in (confidence, right)]
        edges = (index / N_BINS, (index + 1) / N_BINS)
        names = ("low", "high", "count", "mean_predicted", "fraction_positive")
        curve.append(dict(zip(names, (*edges, int(inside.sum()), *means), strict=True)))
    return curve


def calibration_error(right: Bool[np.ndarray, " sample"], confidence: Float64[np.ndarray, " sample"]) -> float:
    """Expected calibration error: mean distance of the reliability curve from the diagonal, weighted by counts."""
    gaps = np.bincount(_bin_of(confidence), confidence - right, N_BINS)
    return float(np.abs(gaps).sum() / len(right))


@dataclass(frozen=True)
class PlattScaling:
    """Calibrated probability ``sigmoid(slope * logit(p) + intercept)`` of the second of two classes (Platt 1999)."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, actual: Int64[np.ndarray, " sample"], probabilities: Float64[np.ndarray, " sample"]) -> PlattScaling:
        """Fit on probabilities of samples that the probe did not see, by Platt's smoothed targets."""
        n_positive, n_negative = int((actual == 1).sum()), int((actual == 0).sum())
        targets = np.where(actual == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
        logits = _logit(probabilities)
        scale = np.abs(logits).max() or 1.0

        def loss(point: Float64[np.ndarray, " 2"]) -> tuple[float, Float64[np.ndarray, " 2"]]:
            decision = point[0] * logits / scale + point[1]
            value = (np.logaddexp(0.0, decision) - targets * decision).sum()
            error = special.expit(decision) - targets
            return float(value), np.array([error @ logits / scale, error.sum()])

        found = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
        return cls(float(found.x[0] / scale), float(found.x[1]))

    def apply(self, probabilities: Float64[np.ndarray, " sample"]) -> Float64[np.ndarray, " sample"]:
        """Calibrate."""
        return special.expit(self.slope * _logit(probabilities) + self.intercept)


def _collect(**scores: Callable[[], Any]) -> Scores:
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, score in scores.items():
        try:
            value = score()
            values[name] = value if isinstance(value, (dict, list)) else float(value)
        except _UndefinedError as error:
            values[name], reasons[name] = None, str(error)
    return Scores(values, reasons)


def _correlation(test: Any, both: tuple[Float64[np.ndarray, " sample"], Float64[np.ndarray, " sample"]]) -> float:
    for values, name in zip(both, ("labels", "predictions"), strict=True):
        if np.ptp(values) == 0:
            raise _UndefinedError(f"all {name} are equal")
    return float(test(*both).statistic)


def _r2(actual: Float64[np.ndarray, " sample"], predicted: Float64[np.ndarray, " sample"]) -> float:
    if np.ptp(actual) == 0:
        raise _UndefinedError("all labels are equal")
    return float(metrics.r2_score(actual, predicted))


def _recall(
    actual: Int64[np.ndarray, " sample"], probabilities: Shaped[np.ndarray, "sample ..."], *, binary: bool
) -> float:
    """Largest true-positive rate at a false-positive rate of at most 1 %."""
    if not binary:
        raise _UndefinedError("there are more than two classes")
    if actual.min() == actual.max():
        raise _UndefinedError("a class is missing among the labels")
    curve = metrics.roc_curve(actual, probabilities, drop_intermediate=False)
    return float(curve[1][curve[0] <= FALSE_POSITIVE_RATE].max())


def _top_mean(gain: Float64[np.ndarray, " sample"], by: Float64[np.ndarray, " sample"]) -> float:
    """Mean gain of the top quarter; of rows that tie at its edge, the mean over all ways to take some of them."""
    n_top = math.ceil(_TOP_SHARE * len(by))
    edge = np.sort(by)[-n_top]
    above, tied = by > edge, by == edge
    return float((gain[above].sum() + (n_top - above.sum()) * gain[tied].mean()) / n_top)


def _bin_of(confidence: Float64[np.ndarray, " sample"]) -> Int64[np.ndarray, " sample"]:
    return np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)


def _logit(probabilities: Float64[np.ndarray, " sample"]) -> Float64[np.ndarray, " sample"]:
    """Log odds; a probability that was rounded to 0 or 1 is as far from it as float64 can tell."""
    eps = float(np.finfo(np.float64).eps)
    return special.logit(np.clip(probabilities, eps, 1 - eps))
