"""The ceiling of scores on success rates, against simulations that know the true rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import special, stats

from benchmarks.shared.measure import Limit, Spread, Table, Target, progress
from gpu_probes import score_ceiling
from gpu_probes.scores.ceiling import OF_RATES, Pairs

# How far off the mean may be, from this many attempts on; of fewer it is called approximate.
_SPEARMAN_OFF, _PEARSON_OFF, _ENOUGH_ATTEMPTS = 0.02, 0.01, 4
# Enough for a population score to three digits.
_POPULATION = 200_000
Draw = Callable[[np.random.Generator, int], Float64[np.ndarray, " question"]]


def _mixed(share: float, first: tuple[float, float], second: tuple[float, float]) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Float64[np.ndarray, " question"]:
        return np.where(rng.random(n) < share, rng.beta(*first, n), rng.beta(*second, n))

    return draw


def _with_atoms(rng: np.random.Generator, n: int) -> Float64[np.ndarray, " question"]:
    where = rng.random(n)
    return np.where(where < 0.25, 0.01, np.where(where < 0.4, 0.98, rng.beta(1.5, 1.5, n)))


SHAPES: dict[str, Draw] = {
    "Beta(.3, .3)": lambda rng, n: rng.beta(0.3, 0.3, n),
    "Beta(.4, 1.6)": lambda rng, n: rng.beta(0.4, 1.6, n),
    "Beta(4, 4)": lambda rng, n: rng.beta(4.0, 4.0, n),
    "logit-normal(-1, 2)": lambda rng, n: special.expit(rng.normal(-1.0, 2.0, n)),
    "40 % Beta(1, 8), 60 % Beta(8, 2)": _mixed(0.4, (1.0, 8.0), (8.0, 2.0)),
    "25 % at .01, 15 % at .98, Beta(1.5, 1.5)": _with_atoms,
}


def measure_ceiling(
    *, n_draws: int, n_questions: int = 600, n_attempts: Sequence[int] = (2, 4, 8, 16)
) -> tuple[list[Table], list[Target | Limit]]:
    """Compare mean ceilings with the mean correlation of true rates and estimates, for each shape of rates.

    Parameters
    ----------
    n_draws : int
        Simulated data sets of each kind; a quarter of them get intervals.
    n_questions : int
        Of a data set.
    n_attempts : sequence of int
        At each question.
    """
    n_covered = max(n_draws // 4, 1)
    rows: list[dict[str, str]] = []
    limits: list[Target | Limit] = []
    for k in n_attempts:
        off: dict[str, list[float]] = {"Spearman": [], "Pearson": []}
        for name, draw in SHAPES.items():
            progress(f"ceiling: {name}, {k} attempts")
            rng = np.random.default_rng(k)
            drawn = [_draw(rng, draw, n_questions, k) for _ in range(n_draws)]
            correct = [one for _, one in drawn]
            true = np.mean([_scores(*one, k) for one in drawn], axis=0)
            found = _ceilings(correct, k).mean(1)
            covered = _coverage(rng, draw, k, correct[:n_covered])
            row = {"true rates": f"{name}, k = {k}"}
            for place, score in enumerate(off):
                error = float(found[place] - true[place])
                off[score].append(abs(error))
                row[score] = f"{true[place]:.3f}"
                row[f"{score}, ceiling"] = f"{found[place]:.3f} ({error:+.3f})"
                row[f"{score}, covered"] = f"{covered[place]:.2f}"
            rows.append(row)
        if k >= _ENOUGH_ATTEMPTS:
            limits += [
                Limit(f"ceiling of {score}, k = {k}, off by at most", most, Spread.of([max(off[score])]))
                for score, most in (("Spearman", _SPEARMAN_OFF), ("Pearson", _PEARSON_OFF))
            ]
    title = (
        f"Correlation of true rates and estimates, and its ceiling (and how far off), means of {n_draws} draws of "
        f"{n_questions} questions; of k = 2 approximate; share of {n_covered} intervals that hold the truth"
    )
    return [Table(title, rows)], limits


def _draw(
    rng: np.random.Generator, draw: Draw, n_questions: int, n_attempts: int
) -> tuple[Float64[np.ndarray, " question"], Float64[np.ndarray, " question"]]:
    rates = draw(rng, n_questions)
    return rates, rng.binomial(n_attempts, rates).astype(np.float64)


def _scores(
    rates: Float64[np.ndarray, " question"], correct: Float64[np.ndarray, " question"], n_attempts: int
) -> tuple[float, float]:
    """Spearman and Pearson of the true rates with the estimates."""
    found: list[Any] = [score(rates, correct / n_attempts) for score in (stats.spearmanr, stats.pearsonr)]
    return float(found[0].statistic), float(found[1].statistic)


def _ceilings(draws: Sequence[Float64[np.ndarray, " question"]], n_attempts: int) -> Float64[np.ndarray, "score draw"]:
    """Spearman's and Pearson's of each draw, all at once."""
    places = np.arange(n_attempts + 1.0)
    counts = np.stack([np.bincount(correct.astype(np.int64), minlength=n_attempts + 1) for correct in draws])
    found = Pairs(np.full(n_attempts + 1, float(n_attempts)), places, None).scores(counts.astype(np.float64))
    return found[[OF_RATES.index("spearman"), OF_RATES.index("pearson")]]


def _coverage(
    rng: np.random.Generator, draw: Draw, n_attempts: int, draws: Sequence[Float64[np.ndarray, " question"]]
) -> tuple[float, float]:
    """How often intervals hold the score of the population."""
    truth = _scores(*_draw(rng, draw, _POPULATION, n_attempts), n_attempts)
    held = []
    for correct in draws:
        found = score_ceiling(correct, np.full(len(correct), n_attempts))
        ends = [(found[name].low, found[name].high) for name in ("spearman", "pearson")]
        held.append(
            [low is not None and low <= true <= (high or 1.0) for (low, high), true in zip(ends, truth, strict=True)]
        )
    return tuple(np.mean(held, axis=0).tolist())
