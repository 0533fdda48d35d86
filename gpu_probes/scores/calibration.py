"""From decision values to probabilities, and from predictions to labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Real


@dataclass(frozen=True)
class PlattScaling:
    """Calibrated probability ``sigmoid(slope * decision + intercept)`` of the second of two classes (Platt 1999).

    Of rates likewise: a row counts for each side by its share.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, actual: Real[np.ndarray, " sample"], decision: Float64[np.ndarray, " sample"]) -> PlattScaling:
        """Fit on decision values of samples that the probe did not see, by Platt's smoothed targets."""
        from scipy import optimize, special

        n_positive, n_negative = actual.sum(), (1 - actual).sum()
        targets = actual * ((n_positive + 1) / (n_positive + 2)) + (1 - actual) * (1 / (n_negative + 2))
        # Decision values may be of any size: the search is for the slope of values with mean 0 and deviation 1.
        centre, scale = decision.mean(), decision.std() or 1.0
        columns = np.stack([(decision - centre) / scale, np.ones(len(decision))])

        def loss(point: Float64[np.ndarray, " 2"]) -> tuple[float, Float64[np.ndarray, " 2"]]:
            odds = point @ columns
            value = (np.logaddexp(0.0, odds) - targets * odds).sum()
            return float(value), columns @ (special.expit(odds) - targets)

        def curvature(point: Float64[np.ndarray, " 2"]) -> Float64[np.ndarray, "2 2"]:
            probability = special.expit(point @ columns)
            return (columns * probability * (1 - probability)) @ columns.T

        found = optimize.minimize(
            loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}
        )
        slope = float(found.x[0] / scale)
        return cls(slope, float(found.x[1] - slope * centre))

    def log_odds(self, decision: Float64[np.ndarray, "*batch"]) -> Float64[np.ndarray, "*batch"]:
        """Calibrated log odds of the second class."""
        return self.slope * decision + self.intercept

    def apply(self, decision: Float64[np.ndarray, "*batch"]) -> Float64[np.ndarray, "*batch"]:
        """Calibrated probability of the second class."""
        from scipy import special

        return special.expit(self.log_odds(decision))


@dataclass(frozen=True)
class TemperatureScaling:
    """Calibrated probabilities ``softmax(decision / temperature)`` of more than two classes (Guo 2017)."""

    temperature: float

    @classmethod
    def fit(
        cls, actual: Int64[np.ndarray, " sample"], decision: Float64[np.ndarray, "sample class"]
    ) -> TemperatureScaling | str:
        """Fit on decision values of samples that the probe did not see, by the least log loss; or why there is none.

        The loss is convex in 1 / temperature: its slope has one root, or none where the decision values rank the
        actual class no higher than others do, or first in every row.
        """
        from scipy import optimize, special

        # Decision values may be of any size, and those of a row can be shifted together.
        centred = decision - decision.max(1, keepdims=True)
        unit = -centred.mean() or 1.0
        scaled = centred / unit
        of_actual = scaled[np.arange(len(actual)), actual]

        def slope(inverse: float) -> float:
            return float(((special.softmax(inverse * scaled, axis=1) * scaled).sum(1) - of_actual).mean())

        if slope(0.0) >= 0:
            return NOT_RISING
        if not of_actual.any():
            return "the held-out predictions put the actual class first in every row, so no temperature is the best"
        highest = 1.0
        while slope(highest) < 0:
            highest *= 2
            if highest > _LARGEST:
                return "no temperature above 0 is the best for the held-out predictions"
        inverse: Any = optimize.brentq(slope, 0.0, highest, xtol=1e-14)
        return cls(float(unit / inverse))

    def scale(self, decision: Float64[np.ndarray, "*batch class"]) -> Float64[np.ndarray, "*batch class"]:
        """Decision values whose softmax is calibrated."""
        return decision / self.temperature


# A calibration that does not rise would reverse the ranking, or end it.
NOT_RISING = "labels do not rise with the held-out predictions"
_LARGEST = 2.0**60


def fit_line(predicted: Float64[np.ndarray, " sample"], actual: Float64[np.ndarray, " sample"]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line from predictions to labels; infinite where no number holds them."""
    from scipy import stats

    # Squares of what a huge penalty leaves of predictions would be 0; powers of two change no digit.
    unit, label_unit = _power_of_two(predicted), _power_of_two(actual)
    line: Any = stats.linregress(predicted / unit, actual / label_unit)
    with np.errstate(over="ignore"):
        return float(line.slope / unit * label_unit), float(line.intercept * label_unit)


def _power_of_two(values: Float64[np.ndarray, " sample"]) -> float:
    """Of the size of the largest value."""
    return float(np.ldexp(1.0, np.frexp(np.abs(values).max())[1] - 1))
