"""Every score of one probe's predictions, by scipy and scikit-learn; what is undefined is None, with the reason.

Classes are given as their places in the order of all classes, and predictions as decision values: of a regression the
numbers themselves, of two classes the log odds of the second, of more one value per class. Ranking uses them as they
are, or each class's log odds (`gpu_probes.scores.decisions.ranked`), so that rows whose probabilities round to 1 are
told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from gpu_probes.scores.decisions import most_probable, probabilities_of, ranked

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


def regression_scores(
    actual: Float64[np.ndarray, " sample"],
    predicted: Float64[np.ndarray, " sample"],
    ranked: Float64[np.ndarray, " sample"] | None = None,
    *,
    undefined: str | None = None,
) -> Scores:
    """Spearman, Pearson, R2, mean squared and absolute error, Kendall's tau-b, and the learnability selection.

    `ranked` orders rows as `predicted` does, and tells those apart that round to the same; `undefined` says why there
    is none of the scores.
    """
    from scipy import stats

    both = (actual, predicted)
    order = (actual, predicted if ranked is None else ranked)
    return _collect(
        undefined,
        spearman=lambda: _correlation(stats.spearmanr, order),
        pearson=lambda: _correlation(stats.pearsonr, both),
        kendall=lambda: _correlation(stats.kendalltau, order),
        r2=lambda: _r2(*both),
        mse=lambda: float(np.square(actual - predicted).mean()),
        mae=lambda: float(np.abs(actual - predicted).mean()),
        learnability=lambda: learnability(*both),
    )


def classification_scores(
    actual: Int64[np.ndarray, " sample"],
    decision: Float64[np.ndarray, "sample output"],
    names: Sequence[str],
    *,
    undefined: str | None = None,
) -> Scores:
    """Ranking, accuracy and calibration; the mean over the classes where there are more than two.

    Also the scores of each class, by its name, and the confusion matrix of the most probable classes.

    `undefined` says why there is none of them.
    """
    from sklearn import metrics

    n_classes = len(names)
    binary = n_classes == 2
    one_hot = np.eye(n_classes)[actual]
    probabilities, order = probabilities_of(decision), ranked(decision)
    by_class = np.hstack([1 - probabilities, probabilities]) if binary else probabilities
    chosen = most_probable(decision)
    sure, right = (by_class[:, 1], actual == 1) if binary else (by_class.max(1), chosen == actual)
    columns = slice(1, None) if binary else slice(None)

    def over_classes(score: Callable[..., Any]) -> float:
        if not ((one_hot.sum(0) > 0) & (one_hot.sum(0) < len(actual))).all():
            raise _UndefinedError("a class is missing among the labels")
        return float(np.mean([score(*pair) for pair in zip(one_hot.T[columns], order.T, strict=True)]))

    squares = np.square(by_class - one_hot)
    return _collect(
        undefined,
        roc_auc=lambda: over_classes(metrics.roc_auc_score),
        average_precision=lambda: over_classes(metrics.average_precision_score),
        accuracy=lambda: metrics.accuracy_score(actual, chosen),
        log_loss=lambda: metrics.log_loss(actual, by_class, labels=range(n_classes)),
        brier=lambda: squares[:, 1].mean() if binary else squares.sum(1).mean(),
        ece=lambda: calibration_error(right, sure),
        recall_at_1pct_fpr=lambda: _recall(actual, order, binary=binary),
        reliability=lambda: reliability_curve(right, sure),
        by_class=lambda: class_scores(actual, chosen, np.hstack([-order, order]) if binary else order, names),
        confusion=lambda: metrics.confusion_matrix(actual, chosen, labels=range(n_classes)).tolist(),
    )


def class_scores(
    actual: Int64[np.ndarray, " sample"],
    chosen: Int64[np.ndarray, " sample"],
    order: Float64[np.ndarray, "sample class"],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Precision, recall, F1 and ROC-AUC of each class against all others, and how many rows are of it.

    Parameters
    ----------
    actual, chosen : ndarray [sample]
        Places of the actual and of the most probable class.
    order : ndarray [sample, class]
        What each class's ROC-AUC ranks by.
    names : sequence of str
    """
    from sklearn import metrics

    def share(part: int, whole: int, why: str) -> float:
        if not whole:
            raise _UndefinedError(why)
        return part / whole

    def of_class(place: int, name: str) -> dict[str, Any]:
        is_it, is_chosen = actual == place, chosen == place
        support, predicted, right = (int(rows.sum()) for rows in (is_it, is_chosen, is_it & is_chosen))

        def roc_auc() -> float:
            if support in (0, len(actual)):
                raise _UndefinedError("all rows are of this class" if support else "no row is of this class")
            return float(metrics.roc_auc_score(is_it, order[:, place]))

        found = _collect(
            None,
            precision=lambda: share(right, predicted, "this class is predicted for no row"),
            recall=lambda: share(right, support, "no row is of this class"),
            f1=lambda: share(2 * right, support + predicted, "no row is of this class, or predicted to be"),
            roc_auc=roc_auc,
        )
        return {"name": name, "support": support, **found.to_json()}

    return [of_class(place, name) for place, name in enumerate(names)]


def learnability(
    actual: Float64[np.ndarray, " sample"], predicted: Float64[np.ndarray, " sample"]
) -> dict[str, float | None]:
    """How much learnability p(1-p) a selection by predicted success rates would get.

    The quarter of the rows with the highest predicted p(1-p) is selected, tied rows at its edge in part. Their mean of
    the actual p(1-p) is given with that of the best quarter and that of all rows.
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


def _collect(undefined: str | None, **scores: Callable[[], Any]) -> Scores:
    if undefined is not None:
        return Scores(dict.fromkeys(scores), dict.fromkeys(scores, undefined))
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
    from sklearn import metrics

    if np.ptp(actual) == 0:
        raise _UndefinedError("all labels are equal")
    return float(metrics.r2_score(actual, predicted))


def _recall(
    actual: Int64[np.ndarray, " sample"], order: Float64[np.ndarray, "sample output"], *, binary: bool
) -> float:
    """Largest true-positive rate at a false-positive rate of at most 1 %."""
    from sklearn import metrics

    if not binary:
        raise _UndefinedError("there are more than two classes")
    if actual.min() == actual.max():
        raise _UndefinedError("a class is missing among the labels")
    curve = metrics.roc_curve(actual, order[:, 0], drop_intermediate=False)
    return float(curve[1][curve[0] <= FALSE_POSITIVE_RATE].max())


def _top_mean(gain: Float64[np.ndarray, " sample"], by: Float64[np.ndarray, " sample"]) -> float:
    """Mean gain of the top quarter; of rows that tie at its edge, the mean over all ways to take some of them."""
    n_top = math.ceil(_TOP_SHARE * len(by))
    edge = np.sort(by)[-n_top]
    above, tied = by > edge, by == edge
    return float((gain[above].sum() + (n_top - above.sum()) * gain[tied].mean()) / n_top)


def _bin_of(confidence: Float64[np.ndarray, " sample"]) -> Int64[np.ndarray, " sample"]:
    return np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
