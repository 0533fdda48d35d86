"""Data whose truth is known: labels that have nothing to do with the features, repeated rows, normal pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float64
from scipy import stats

from benchmarks.shared.measure import Limit, Spread, Table, Target
from gpu_probes import (
    ArrayCellSource,
    Interval,
    NestedCV,
    PermutationTest,
    difference_interval,
    score_interval,
    sweep,
)
from gpu_probes.terms import PermutationStatistic

_RHO, _AREA, _LEVEL = 0.5, 0.75, 0.95
# Of one feature between two classes, in standard deviations.
_SHIFT = 0.8


@dataclass(frozen=True)
class Null:
    """What sweeps over labels drawn at random found, each number minus what chance gives."""

    task: str
    best: Float64[np.ndarray, " sweep"]
    nested: Float64[np.ndarray, " sweep"]
    p_best: Float64[np.ndarray, " sweep"]
    ks_p: float

    def errors_from_zero(self, values: Float64[np.ndarray, " sweep"]) -> float:
        """Distance of the mean from zero, in its standard errors."""
        return float(abs(values.mean()) / (values.std(ddof=1) / len(values) ** 0.5))


def simulate_null(n_sweeps: int, n_permutations: int, device: str, *, classes: bool) -> Null:
    """Sweep over features and labels that are independent: 100 rows, 12 cells of 8 features, two alphas."""
    rng = np.random.default_rng(0)
    best, nested, p_best = np.empty(n_sweeps), np.empty(n_sweeps), np.empty(n_sweeps)
    chance = 0.5 if classes else 0.0
    for k in range(n_sweeps):
        source = ArrayCellSource(rng.standard_normal((100, 4, 3, 8)))
        labels = rng.permutation(np.arange(100) % 2).astype(float) if classes else rng.standard_normal(100)
        found = sweep(
            source, labels, k_fold=True, alphas=[1.0, 100.0], permutations=n_permutations, seed=k, device=device
        )
        assert found.best is not None
        assert isinstance(found.nested_cv, NestedCV)
        assert isinstance(found.permutation, PermutationTest)
        best[k], nested[k] = found.best.cv_score - chance, found.nested_cv.score - chance
        p_best[k] = found.permutation.p_best
    # p takes the values 1/(P+1), 2/(P+1), ...: spread evenly below each, it is uniform if the test is exact.
    spread = p_best - rng.random(n_sweeps) / (n_permutations + 1)
    return Null(
        "classes" if classes else "numbers", best, nested, p_best, float(stats.kstest(spread, "uniform").pvalue)
    )


def null_table(nulls: list[Null]) -> Table:
    """A row for each task."""
    rows = [
        {
            "labels at random": f"{null.task}, {len(null.best)} sweeps",
            "best CV score": f"{null.best.mean():+.3f}",
            "nested CV": f"{null.nested.mean():+.4f}",
            "its standard error": f"{null.nested.std(ddof=1) / len(null.nested) ** 0.5:.4f}",
            "share of p <= 0.05": f"{(null.p_best <= 0.05).mean():.3f}",
            "KS test of p, p": f"{null.ks_p:.3f}",
        }
        for null in nulls
    ]
    return Table("scores minus chance where nothing can be known", rows)


def null_limits(nulls: list[Null]) -> list[Target | Limit]:
    """Nested CV within its error of zero, p-values uniform, the best score not."""
    limits: list[Target | Limit] = []
    for null in nulls:
        limits += [
            Limit(f"nested CV from zero, standard errors: {null.task}", 2.0, _one(null.errors_from_zero(null.nested))),
            Target(f"best score from zero, standard errors: {null.task}", 5.0, _one(null.errors_from_zero(null.best))),
            Target(f"KS test of p-values, p: {null.task}", 0.05, _one(null.ks_p)),
        ]
    return limits


def simulate_power(n_sweeps: int, n_permutations: int, device: str) -> tuple[Table, list[Target | Limit]]:
    """How often two classes that differ a little in one cell are told from chance, by either statistic."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2.0
    found = {statistic: np.empty(n_sweeps) for statistic in get_args(PermutationStatistic)}
    for k in range(n_sweeps):
        cells = rng.standard_normal((100, 4, 3, 8))
        cells[:, 2, 1, 0] += _SHIFT * labels
        for statistic, p_best in found.items():
            result = sweep(
                ArrayCellSource(cells),
                labels,
                k_fold=True,
                alphas=[1.0, 100.0],
                nested_cv=False,
                permutations=n_permutations,
                permutation_statistic=statistic,
                seed=k,
                device=device,
            )
            assert isinstance(result.permutation, PermutationTest)
            p_best[k] = result.permutation.p_best
    told = {statistic: p_best <= 0.05 for statistic, p_best in found.items()}
    difference = told["probe"].astype(float) - told["least_squares"]
    error = difference.std(ddof=1) / n_sweeps**0.5
    rows = [
        {"statistic": statistic, "share of p <= 0.05": f"{known.mean():.2f}", "of sweeps": str(n_sweeps)}
        for statistic, known in told.items()
    ]
    lost = float(difference.mean() / error) if error else 0.0
    limit = Limit("power lost by least squares, standard errors", 2.0, _one(lost))
    return Table("two classes that differ a little in one of 12 cells", rows), [limit]


def simulate_repeats(n_sweeps: int, device: str) -> tuple[Table, list[Target | Limit]]:
    """Every row twice, labels at random: folds that separate the copies, and folds that do not."""
    rng = np.random.default_rng(0)
    apart, together = [], []
    prompts = [f"question {k}" for k in range(100)] * 2
    for k in range(n_sweeps):
        once = rng.standard_normal((100, 1, 1, 200))
        labels = np.tile(rng.permutation(np.arange(100) % 2).astype(float), 2)
        source = ArrayCellSource(np.concatenate([once, once]))
        for scores, texts in ((apart, None), (together, prompts)):
            found = sweep(
                source, labels, k_fold=True, alpha=0.01, prompts=texts, seed=k, nested_cv=False, device=device
            )
            scores.append(found.cv_score[0, 0])
    rows = [
        {"folds": name, "ROC-AUC": str(Spread.of(scores))}
        for name, scores in {"separate the copies": apart, "keep them together": together}.items()
    ]
    targets: list[Target | Limit] = [
        Target("ROC-AUC of repeated rows held out apart", 0.85, _one(float(np.mean(apart)))),
        Limit("ROC-AUC minus 0.5, held out together", 0.02, _one(abs(float(np.mean(together)) - 0.5))),
    ]
    return Table("every row twice, labels at random", rows), targets


def simulate_coverage(n_sets: int, n_rows: tuple[int, ...]) -> tuple[Table, list[Target | Limit]]:
    """How often intervals of 95 % hold the truth."""
    rows, targets = [], []
    for n in n_rows:
        for name, (truth, draw) in _KINDS.items():
            rng = np.random.default_rng(0)
            intervals = [draw(rng, n) for _ in range(n_sets)]
            covered = float(np.mean([_covers(interval, truth) for interval in intervals]))
            width = float(np.mean([(i.high or 0.0) - (i.low or 0.0) for i in intervals]))
            rows.append({"interval": f"{name}, {n} rows", "covered": f"{covered:.3f}", "mean width": f"{width:.3f}"})
            targets += [
                Target(f"coverage: {name}, {n} rows", 0.93, _one(covered)),
                Limit(f"coverage: {name}, {n} rows", 0.97, _one(covered)),
            ]
    return Table(f"95 % intervals, {n_sets} data sets each", rows), targets


def _covers(interval: Interval, truth: float) -> bool:
    return interval.low is not None and interval.high is not None and interval.low <= truth <= interval.high


def _pair(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal pairs with correlation rho."""
    x = rng.standard_normal(n)
    return _RHO * x + (1 - _RHO**2) ** 0.5 * rng.standard_normal(n), x


def _spearman(rng: np.random.Generator, n: int) -> Interval:
    return score_interval("spearman", *_pair(rng, n))


def _clustered(rng: np.random.Generator, n: int) -> Interval:
    actual, predicted = (np.repeat(values, 2) for values in _pair(rng, n // 2))
    return score_interval("spearman", actual, predicted, clusters=np.arange(len(actual)) // 2)


def _r2(rng: np.random.Generator, n: int) -> Interval:
    actual, x = _pair(rng, n)
    return score_interval("r2", actual, _RHO * x)


def _difference(rng: np.random.Generator, n: int) -> Interval:
    actual, first = _pair(rng, n)
    second = _RHO * actual + (1 - _RHO**2) ** 0.5 * rng.standard_normal(n)
    return difference_interval("spearman", actual, first, second)


def _two_classes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    actual = (rng.random(n) < 0.4).astype(float)
    return actual, actual * stats.norm.ppf(_AREA) * 2**0.5


def _area(rng: np.random.Generator, n: int) -> Interval:
    actual, means = _two_classes(rng, n)
    return score_interval("roc_auc", actual, means + rng.standard_normal(n))


def _area_difference(rng: np.random.Generator, n: int) -> Interval:
    actual, means = _two_classes(rng, n)
    common = rng.standard_normal(n) * 0.5**0.5
    first, second = (means + common + rng.standard_normal(n) * 0.5**0.5 for _ in range(2))
    return difference_interval("roc_auc", actual, first, second)


_SPEARMAN = float(6 / np.pi * np.arcsin(_RHO / 2))
_KINDS: dict[str, tuple[float, Callable[[np.random.Generator, int], Interval]]] = {
    "Spearman": (_SPEARMAN, _spearman),
    "Spearman, pairs of rows": (_SPEARMAN, _clustered),
    "R2": (_RHO**2, _r2),
    "difference of Spearman": (0.0, _difference),
    "ROC-AUC": (_AREA, _area),
    "difference of ROC-AUC": (0.0, _area_difference),
}


def _one(value: float) -> Spread:
    return Spread.of([value])
