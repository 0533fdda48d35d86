"""The best scores that any predictor can reach on labels that are themselves estimates.

A label that is the share of k attempts that were right differs from the question's true success rate by luck. Not even
the true rates predict it exactly: the ceiling of a score is what they would reach.

The distribution of the true rates is estimated from the counts: a beta-binomial by maximum likelihood, then steps of
the EM algorithm on a grid of rates, which lead towards the nonparametric maximum-likelihood estimate (Kiefer &
Wolfowitz 1956). There are few of them: what the counts do not decide keeps the shape of the smooth fit.

Everything is computed for a batch of samples at once, each a row of `counts`: how often each pair of n_samples and
n_correct occurs in it. So the questions, the resamples of an interval and the jackknife take the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from gpu_probes.errors import LabelError
from gpu_probes.samples.attempts import AttemptColumns, Attempts
from gpu_probes.scores.intervals import LEVEL, Bootstrapped, Interval, note_on_clusters
from gpu_probes.scores.resampling import Resampled, draw_units, leave_units_out

N_RATES, N_STEPS = 200, 100
OF_RATES, OF_CLASSES = ("spearman", "pearson", "r2"), ("roc_auc",)
# With few pairs 1,000 resamples take a second. Fewer move the ends of an interval by a few percent of its width.
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _RESAMPLED_PAIRS = 1000, 200, 50_000
# Two attempts tell the mean and the variance of the rates, and nothing else.
_FEW_ATTEMPTS = 3
_NEWTON_STEPS, _HALVINGS, _LONGEST_STEP, _SHORTEST_STEP = 50, 10, 1.0, 1e-8
# Sums that rounding alone tells apart.
_SAME = 1e-15
# Logarithms of the beta distribution's parameters: beyond, it is narrower or wider than any grid shows.
_LEAST_LOG, _MOST_LOG = -6.0, 9.0

Counts = Float64[np.ndarray, "batch pair"]


def score_ceiling(
    n_correct: Any,
    n_samples: Any,
    *,
    threshold: float | None = None,
    clusters: Any = None,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval]:
    """The best scores that any predictor of success rates can reach, where these are shares of a few attempts.

    Parameters
    ----------
    n_correct, n_samples : array-like [question]
        Attempts that were right, and all of them.
    threshold : float, optional
        The label is whether the rate is above this number, instead of the rate.
    clusters : array-like [question], optional
        Names or numbers; questions of a cluster are resampled together.
    level : float
        Of the intervals, between 0 and 1.
    seed : int
        Of the resamples.

    Returns
    -------
    dict of Interval
        By score: ``spearman``, ``pearson`` and ``r2``, or with a `threshold` ``roc_auc``. What is undefined has a
        `reason`; a `note` says where an estimate is approximate.

    Raises
    ------
    LabelError
        When the counts are none.
    """
    correct, tried = (np.asarray(values, dtype=np.float64) for values in (n_correct, n_samples))
    if correct.ndim != 1 or correct.shape != tried.shape or not len(correct):
        raise LabelError(
            f"n_correct and n_samples have shapes {correct.shape} and {tried.shape}; give one of each per question"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = AttemptColumns(tried, correct).read(correct / tried, None)
    if not isinstance(found, Attempts):
        why = "n_samples is 0 or no number in some row" if found is None else found
        raise LabelError(f"{why}; give whole numbers, n_samples of 1 or more")
    units = None if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    attempts = Attempts(found.n_samples, found.n_correct, threshold)
    return ceilings_of(attempts, clusters=units, level=level, seed=seed)


def ceilings_of(
    attempts: Attempts,
    *,
    clusters: Int64[np.ndarray, " sample"] | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval]:
    """As `score_ceiling`, of counts that were checked; `clusters` are numbers."""
    names = OF_RATES if attempts.threshold is None else OF_CLASSES
    method = "bootstrap, BCa" + ("" if clusters is None else ", whole groups")
    pairs, pair = np.unique(np.stack([attempts.n_samples, attempts.n_correct]), axis=1, return_inverse=True)
    tried, right = pairs.astype(np.float64)
    table = Pairs(tried, right, attempts.threshold)
    whole = np.bincount(pair.ravel())[None].astype(np.float64)
    reason = table.why_undefined(whole)
    if reason is not None:
        return {name: Interval(None, None, None, level, method, reason) for name in names}
    by_unit = _count_by_unit(pair.ravel(), clusters)
    n_units = by_unit.shape[1]
    n_resamples = int(np.clip(_RESAMPLED_PAIRS // by_unit.shape[0], _FEWEST_RESAMPLES, _MOST_RESAMPLES))
    drawn = draw_units(np.random.default_rng(seed), n_units, n_resamples)
    batches = ([whole], *([(by_unit @ counts.T).T for counts in few] for few in (drawn, leave_units_out(n_units))))
    estimate, scores, left_out = (table.scores(np.concatenate(batch).astype(np.float64)) for batch in batches)
    found = Bootstrapped(
        Resampled(estimate[:, 0], scores, left_out),
        n_units,
        method,
        _note(attempts, None if clusters is None else n_units),
    )
    return {name: found.score(place, level) for place, name in enumerate(names)}


def _count_by_unit(pair: Int64[np.ndarray, " sample"], clusters: Int64[np.ndarray, " sample"] | None) -> Any:
    """How often each pair is in each unit: a sparse matrix [pair, unit]."""
    from scipy import sparse

    unit = np.arange(len(pair)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    return sparse.coo_array((np.ones(len(pair)), (pair, unit))).tocsr()


def _note(attempts: Attempts, n_clusters: int | None) -> str | None:
    few = None
    if attempts.n_samples.mean() < _FEW_ATTEMPTS:
        few = (
            f"approximate: made of {attempts.n_samples.mean():.3g} attempts per question, which say little of the rates"
        )
    notes = [note for note in (few, note_on_clusters(n_clusters)) if note is not None]
    return "; ".join(notes) or None


@dataclass(frozen=True)
class Pairs:
    """The different pairs of counts that questions have, and the ceilings of samples of them.

    Attributes
    ----------
    n_samples, n_correct : ndarray [pair]
    threshold : float or None
        As of `score_ceiling`.
    """

    n_samples: Float64[np.ndarray, " pair"]
    n_correct: Float64[np.ndarray, " pair"]
    threshold: float | None

    def why_undefined(self, counts: Float64[np.ndarray, "1 pair"]) -> str | None:
        """Why there is no ceiling."""
        if (self.n_samples == 1).all():
            return "every question has one attempt, which does not say how far its success rate is known"
        if np.ptp(self.rate) == 0:
            return "all success rates are equal"
        if self.threshold is not None and not 0 < (self.rate > self.threshold).sum() < len(self.rate):
            return "all success rates are on one side of the threshold"
        if self.reliability(counts)[0] <= 0:
            return "success rates differ no more between questions than they would by luck"
        return None

    @cached_property
    def rate(self) -> Float64[np.ndarray, " pair"]:
        """The labels."""
        return self.n_correct / self.n_samples

    def scores(self, counts: Counts) -> Float64[np.ndarray, "score batch"]:
        """The ceilings, in the order of their names; NaN where all labels are equal."""
        with np.errstate(divide="ignore", invalid="ignore"):
            reliability = np.maximum(self.reliability(counts), 0.0)
            if self.threshold is None:
                return np.stack([self._spearman(counts), np.sqrt(reliability), reliability])
            return self._roc_auc(counts)[None]

    def reliability(self, counts: Counts) -> Float64[np.ndarray, " batch"]:
        """Share of the labels' variance that is not luck: ``1 - mean(p (1 - p) / (k - 1)) / var(p)``.

        Of a question with one attempt p (1 - p) is unknown; it takes the mean of the others.
        """
        total = counts.sum(1)
        mean = counts @ self.rate / total
        # Away from the mean, which squares of the rates would cancel with.
        variance = (counts * np.square(self.rate - mean[:, None])).sum(1) / (total - 1)
        several = self.n_samples > 1
        tried, of_one_attempt = self.n_samples[several], self.rate[several] * (1 - self.rate[several])
        of_one_attempt = of_one_attempt * tried / (tried - 1)
        known, other = counts[:, several], counts[:, ~several].sum(1)
        noise = known @ (of_one_attempt / tried) + other * (known @ of_one_attempt) / known.sum(1)
        return 1 - noise / total / variance

    def _spearman(self, counts: Counts) -> Float64[np.ndarray, " batch"]:
        """Correlation of the midranks of rates and labels."""
        share = counts / counts.sum(1, keepdims=True)
        values, place = np.unique(self.rate, return_inverse=True)
        of_value = share @ (place[:, None] == np.arange(len(values)))
        label_rank = _midranks(of_value)
        mass, likelihood = self._mixture(share)
        mass_seen = _step(mass, likelihood, share)
        rank = _midranks(mass_seen)
        both = (_step(mass, likelihood, share * label_rank[:, place]) * rank).sum(1)
        spread = (mass_seen * np.square(rank)).sum(1) * (of_value * np.square(label_rank)).sum(1)
        return both / np.sqrt(spread)

    def _roc_auc(self, counts: Counts) -> Float64[np.ndarray, " batch"]:
        """Chance that the rate of a question above the threshold is higher than that of one below it."""
        share = counts / counts.sum(1, keepdims=True)
        above = self.rate > self.threshold
        mass, likelihood = self._mixture(share)
        high, low = (_step(mass, likelihood, share * side) for side in (above, ~above))
        lower = np.cumsum(low, 1) - low / 2
        return (high * lower).sum(1) / (high.sum(1) * low.sum(1))

    def _mixture(self, share: Counts) -> tuple[Float64[np.ndarray, "batch rate"], Float64[np.ndarray, "pair rate"]]:
        """Distribution of the true rates, and the likelihood of each pair at each of them."""
        from scipy import special, stats

        # As wide as the error of an estimate is there: narrow near 0 and 1.
        edges, rates = (np.square(np.sin(np.pi / 2 * np.linspace(*ends))) for ends in _GRID)
        likelihood = stats.binom.pmf(self.n_correct[:, None], self.n_samples[:, None], rates)
        first, second = self._fit_beta(share)
        mass = np.diff(special.betainc(first[:, None], second[:, None], edges), axis=1)
        for _ in range(N_STEPS):
            mass = _step(mass, likelihood, share)
        return mass, likelihood

    def _fit_beta(self, share: Counts) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]:
        """Parameters of the beta-binomial distribution of the highest likelihood, by Newton's method.

        The log likelihood is a sum of logarithms (Griffiths 1973): ``log(a + j)`` for each j below n_correct,
        ``log(b + j)`` below the number of wrong attempts, less ``log(a + b + j)`` below n_samples.
        """
        upto = np.arange(int(self.n_samples.max()))
        right, wrong, tried = (
            share @ (limit[:, None] > upto)
            for limit in (self.n_correct, self.n_samples - self.n_correct, self.n_samples)
        )

        def likelihood(point: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, " batch"]:
            first, second = np.exp(point).T[:, :, None]
            terms = right * np.log(first + upto) + wrong * np.log(second + upto) - tried * np.log(first + second + upto)
            return terms.sum(1)

        mean = (share @ self.rate)[:, None]
        variance = (share * np.square(self.rate - mean)).sum(1, keepdims=True)
        concentration = np.clip(mean * (1 - mean) / np.maximum(variance, 1e-9) - 1, 0.1, 100.0)
        point = np.log(np.maximum(np.hstack([mean, 1 - mean]), 1e-3) * concentration)
        value = likelihood(point)
        for _ in range(_NEWTON_STEPS):
            step = _ascent(np.exp(point), right, wrong, tried, upto)
            there = np.clip(point + step, _LEAST_LOG, _MOST_LOG)
            new, least = likelihood(there), value - _SAME * np.abs(value)
            for _ in range(_HALVINGS):
                worse = ~(new >= least)
                if not worse.any():
                    break
                step[worse] /= 2
                there = np.clip(point + step, _LEAST_LOG, _MOST_LOG)
                new = likelihood(there)
            better = new >= least
            point, value = np.where(better[:, None], there, point), np.where(better, new, value)
            if np.abs(step[better]).max(initial=0.0) < _SHORTEST_STEP:
                break
        first, second = np.exp(point).T
        return first, second


def _ascent(
    parameters: Float64[np.ndarray, "batch 2"],
    right: Float64[np.ndarray, "batch below"],
    wrong: Float64[np.ndarray, "batch below"],
    tried: Float64[np.ndarray, "batch below"],
    upto: Int64[np.ndarray, " below"],
) -> Float64[np.ndarray, "batch 2"]:
    """Newton's step of the logarithms of both parameters, uphill also where the likelihood is not concave."""
    inverse = [1 / (each[:, None] + upto) for each in (*parameters.T, parameters.sum(1))]
    both, curved = ((tried * inverse[2] ** power).sum(1) for power in (1, 2))
    ends = ((right, inverse[0]), (wrong, inverse[1]))
    gradient = parameters * np.stack([(counts * each).sum(1) - both for counts, each in ends], 1)
    hessian = parameters[:, :, None] * parameters[:, None] * curved[:, None, None]
    own = np.stack([(counts * each**2).sum(1) for counts, each in ends], 1)
    for k in range(2):
        hessian[:, k, k] += gradient[:, k] - parameters[:, k] ** 2 * own[:, k]
    highest = np.linalg.eigvalsh(hessian)[:, -1]
    # Moved until it is concave, with the gradient's direction where nothing is known of the curvature.
    shift = np.maximum(highest, 0.0) * 1.5 + 1e-9
    step = -np.linalg.solve(hessian - shift[:, None, None] * np.eye(2), gradient[:, :, None])[:, :, 0]
    length = np.linalg.norm(step, axis=1, keepdims=True)
    return step * np.minimum(1.0, _LONGEST_STEP / np.maximum(length, 1e-300))


def _step(
    mass: Float64[np.ndarray, "batch rate"], likelihood: Float64[np.ndarray, "pair rate"], share: Counts
) -> Float64[np.ndarray, "batch rate"]:
    """A step of EM: what is known of the rates once the pairs are seen, in these shares."""
    seen = np.maximum(mass @ likelihood.T, 1e-300)
    return mass * ((share / seen) @ likelihood)


def _midranks(mass: Float64[np.ndarray, "batch value"]) -> Float64[np.ndarray, "batch value"]:
    """Mean rank of each value among all, from -1/2 to 1/2; the mean over all is 0."""
    return np.cumsum(mass, 1) - mass / 2 - 0.5


# Edges and middles of the cells of the grid, on a scale of equal precision.
_GRID = ((0.0, 1.0, N_RATES + 1), (0.5 / N_RATES, 1 - 0.5 / N_RATES, N_RATES))
