"""Labels that are rates: how often each question was tried, and how often its answer was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

# Columns of a store, as `probesweep label` names them; the last is of attempts that ended before their answer did.
N_SAMPLES, N_CORRECT, N_TRUNCATED = "n_samples", "n_correct", "n_truncated"
COUNTS = (N_SAMPLES, N_CORRECT, N_TRUNCATED)
# Rates are written with rounded digits.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Attempts:
    """Attempts at each question, and how many of them were right.

    Attributes
    ----------
    n_samples, n_correct : ndarray [sample]
    threshold : float or None
        None where the label is the rate ``n_correct / n_samples``. Otherwise it is one of two classes, and says on
        which side of this number the rate is.
    """

    n_samples: Int64[np.ndarray, " sample"]
    n_correct: Int64[np.ndarray, " sample"]
    threshold: float | None = None


@dataclass(frozen=True)
class AttemptColumns:
    """Columns of attempts as a store has them.

    Attributes
    ----------
    n_samples : array-like [sample]
    n_correct : array-like [sample], optional
        By default the label times `n_samples`.
    """

    n_samples: Any
    n_correct: Any | None = None

    def of_rows(self, kept: Bool[np.ndarray, " sample"]) -> AttemptColumns:
        """Some of the rows."""
        n_correct = None if self.n_correct is None else np.asarray(self.n_correct)[kept]
        return AttemptColumns(np.asarray(self.n_samples)[kept], n_correct)

    def read(self, labels: Float64[np.ndarray, " sample"], classes: Sequence[float] | None) -> Attempts | str | None:
        """What they say of a label.

        With `n_correct`, a label of numbers is the rate where it is ``n_correct / n_samples`` in every row, and one of
        two classes where the rates of one class are all above those of the other. Without it, the label is the rate
        where it is between 0 and 1, and times `n_samples` a whole number; labels of 0 and 1 alone may be anything.

        Parameters
        ----------
        labels : ndarray [sample]
            Numbers, or classes as numbers.
        classes : sequence of float, optional
            None for numbers.

        Returns
        -------
        Attempts
            Or the reason why they are no counts of attempts; None if the label has nothing to do with them.
        """
        n_samples = _numbers(self.n_samples)
        if self.n_correct is None:
            return _of_rates(labels, n_samples, classes)
        n_correct = _numbers(self.n_correct)
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = n_correct / n_samples
        threshold = None
        if classes is not None:
            threshold = _threshold(labels, rates, classes)
            if threshold is None:
                return None
        elif not np.allclose(labels, rates, rtol=0, atol=_ROUNDING):
            return None
        wrong = _not_whole(n_samples, 1.0, np.inf, N_SAMPLES) or _not_whole(n_correct, 0.0, n_samples, N_CORRECT)
        return wrong or _counted(n_samples, n_correct, threshold)


def _of_rates(
    labels: Float64[np.ndarray, " sample"],
    n_samples: Float64[np.ndarray, " sample"],
    classes: Sequence[float] | None,
) -> Attempts | str | None:
    """Attempts of labels that may be rates themselves."""
    if labels.min() < -_ROUNDING or labels.max() > 1 + _ROUNDING:
        return None
    is_split = bool(((labels > _ROUNDING) & (labels < 1 - _ROUNDING)).any())
    if not is_split and (n_samples != 1).any():
        return None
    wrong = _not_whole(n_samples, 1.0, np.inf, N_SAMPLES)
    if wrong is None:
        wrong = _not_whole(labels * n_samples, 0.0, n_samples, f"the label times {N_SAMPLES}")
    return wrong or _counted(n_samples, labels * n_samples, None if classes is None else 0.5)


def _counted(
    n_samples: Float64[np.ndarray, " sample"], n_correct: Float64[np.ndarray, " sample"], threshold: float | None
) -> Attempts:
    return Attempts(np.rint(n_samples).astype(np.int64), np.rint(n_correct).astype(np.int64), threshold)


def _threshold(
    labels: Float64[np.ndarray, " sample"], rates: Float64[np.ndarray, " sample"], classes: Sequence[float]
) -> float | None:
    """Midway between the rates of two classes; None where these are not apart."""
    if len(classes) != 2 or not np.isfinite(rates).all():
        return None
    sides = [rates[labels == value] for value in classes]
    if not all(len(side) for side in sides):
        return None
    low, high = sorted(sides, key=np.max)
    below, above = float(low.max()), float(high.min())
    return (below + above) / 2 if below < above else None


def _not_whole(
    values: Float64[np.ndarray, " sample"], least: float, most: Float64[np.ndarray, " sample"] | float, name: str
) -> str | None:
    """Why values are no counts."""
    bad: Bool[np.ndarray, " sample"] = ~((values >= least - _ROUNDING) & (values <= most + _ROUNDING))
    bad |= ~(np.abs(values - np.rint(values)) <= _ROUNDING)
    if not bad.any():
        return None
    row = int(np.flatnonzero(bad)[0])
    return f"{name} is {values[row]:g} in row {row}, which is no number of attempts"


def _numbers(values: Any) -> Float64[np.ndarray, " sample"]:
    """Numbers; NaN for what is none."""
    import pandas as pd

    column: Any = pd.to_numeric(pd.Series(values), errors="coerce")
    return column.to_numpy(np.float64, na_value=np.nan)
