"""Everything about a finished sweep besides its scores: how far to trust them, and what they beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

from gpu_probes.errors import Status
from gpu_probes.evidence.baselines import (
    Baseline,
    Comparison,
    layer_zero_baseline,
    number_baseline,
    random_direction_baseline,
    random_labels_baseline,
    tfidf_baseline,
)
from gpu_probes.evidence.learning_curve import learning_curve
from gpu_probes.features.cells import CellSource
from gpu_probes.results.encoding import null_if_nan, nulls_if_nan
from gpu_probes.results.inference import (
    BaselineScores,
    Ceiling,
    ClassScores,
    CurvePoint,
    Evidence,
    FoldChoice,
    Groups,
    Intervals,
    Lead,
    Line,
    NestedScore,
    Overlap,
    Permutation,
    Platt,
    RegressionScores,
    Temperature,
    read_scores,
)
from gpu_probes.results.sweep_result import BestProbe, SweepResult
from gpu_probes.samples.attempts import AttemptColumns, Attempts
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.labels import read_labels
from gpu_probes.scores.calibration import NOT_RISING, PlattScaling, TemperatureScaling, fit_line
from gpu_probes.scores.ceiling import ceilings_of
from gpu_probes.scores.decisions import is_flat, one_column, predictions_of, ranked
from gpu_probes.scores.intervals import ScoredSides, score_interval
from gpu_probes.scores.metrics import classification_scores, regression_scores
from gpu_probes.scores.nested import NestedCV
from gpu_probes.scores.permutation import PermutationTest
from gpu_probes.search.options import SweepOptions
from gpu_probes.solvers.deciding import decide, row_norms


@dataclass(frozen=True)
class About:
    """What is known about the rows besides their features and labels.

    Attributes
    ----------
    train_prompts, test_prompts : list of str, optional
        Prompts of the rows.
    test_groups : array-like, optional
        The group of each test row; intervals resample complete groups.
    numbers : mapping of str to a pair of arrays [train_sample], [test_sample]
        Baselines of one number, by name; None for test rows that there are not.
    train_attempts, test_attempts : AttemptColumns, optional
        How many attempts at each question the label may be a share of.
    """

    train_prompts: list[str] | None = None
    test_prompts: list[str] | None = None
    test_groups: Any = None
    numbers: Mapping[str, tuple[Real[np.ndarray, " train_sample"], Real[np.ndarray, " test_sample"] | None]] = field(
        default_factory=dict
    )
    train_attempts: AttemptColumns | None = None
    test_attempts: AttemptColumns | None = None


def infer(
    result: SweepResult,
    train: CellSource,
    test: CellSource | None,
    options: SweepOptions,
    about: About,
    *,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Evidence:
    """Nested CV, intervals, p-values, baselines and scores of a sweep.

    Parameters
    ----------
    result : SweepResult
        Of `train`, `test` and `options`.
    train, test : CellSource
        None where there is no test set.
    options : SweepOptions
    about : About
    progress : callable
        Wraps the names of the parts while they are computed, such as `tqdm`.

    Returns
    -------
    Evidence
        Everything except the overlap: see `compare_overlap`.
    """
    comparison = Comparison(result, train, test, options)
    clusters = None if result.test_labels is None else _clusters(len(result.test_labels), about)
    best, seed = result.best, options.seed
    baselines = cache(lambda: _baselines(comparison, about))
    tested = cache(lambda: _score_test_rows(result, baselines(), clusters, seed))
    parts: dict[str, Callable[[], Any]] = {
        "nested_cv": lambda: _nested(result),
        "permutation": lambda: _permutation(result),
        "baselines": lambda: {one.name: _baseline(one, tested()) for one in baselines()},
        "intervals": lambda: _intervals(result, tested(), seed),
        "scores": lambda: None if best is None else _scores(result, best),
        "platt": lambda: None if best is None else _platt(result, best),
        "temperature": lambda: None if best is None else _temperature(result, best),
        "calibration": lambda: None if best is None else _calibration(result, best),
        "learning_curve": lambda: () if best is None else _curve(comparison, best, seed),
        "groups": lambda: _groups(result, options, test_rows_grouped=clusters is not None),
        "ceiling": lambda: _ceilings(result, about, clusters, seed),
    }
    return Evidence(**{name: parts[name]() for name in progress(list(parts))})


def compare_overlap(
    result: SweepResult,
    test: CellSource,
    test_labels: Any,
    shared: Bool[np.ndarray, " test_sample"],
    *,
    dropped: bool,
    are_places: bool = False,
) -> Overlap:
    """Score the best probe on test rows that also occur in training, and on the others.

    Parameters
    ----------
    result : SweepResult
    test : CellSource
        All test rows.
    test_labels : one number or class per test row
    shared : ndarray [test_sample]
        Which of them also occur in training.
    dropped : bool
        Whether the test scores of `result` are without them.
    are_places : bool
        Whether the labels are those of `result`: places of the classes where these are words.
    """
    found = Overlap(n_shared=int(shared.sum()), rows=tuple(np.flatnonzero(shared).tolist()), dropped=dropped)
    best = result.best
    if best is None or not shared.any():
        return found
    at = (best.position_index, best.layer_index)
    coef, norms = result.coef[at], row_norms(test, best.cell)
    decision = decide(test, best.cell, coef, result.intercept[at])
    names = None if are_places else result.class_names
    labels = read_labels(test_labels, name="test_labels", n_samples=test.n_samples, names=names, known=False)
    # Dropped rows may have labels that training never saw.
    known = np.isfinite(decision).all(1) & (True if result.classes is None else np.isin(labels, result.classes))
    scores: list[RegressionScores | ClassScores | None] = []
    for rows in (shared & known, ~shared & known):
        flat = rows.any() and is_flat(decision[rows], coef, norms[rows])
        reason = Status.TEST_CONSTANT_PREDICTIONS.value if flat else None
        scores.append(all_scores(result, labels[rows], decision[rows], undefined=reason) if rows.any() else None)
    return replace(found, scores_of_shared=scores[0], scores_of_others=scores[1], n_unscored=int((~known).sum()))


def _clusters(n_test: int, about: About) -> Int64[np.ndarray, " test_sample"] | None:
    grouping = group_samples(n_test, about.test_groups, about.test_prompts)
    return None if grouping.is_trivial else grouping.group


def _baselines(comparison: Comparison, about: About) -> list[Baseline]:
    best, options = comparison.result.best, comparison.options
    found = [number_baseline(comparison, name, *values) for name, values in about.numbers.items()]
    if about.train_prompts is not None and (about.test_prompts is not None or comparison.test is None):
        found.append(tfidf_baseline(comparison, about.train_prompts, about.test_prompts))
    if best is None:
        return found
    return [
        *found,
        layer_zero_baseline(comparison),
        random_direction_baseline(comparison, best.cell, options.seed),
        random_labels_baseline(comparison, best.cell, options.seed),
    ]


def _nested(result: SweepResult) -> NestedScore:
    nested, best = result.nested_cv, result.best
    if isinstance(nested, str):
        return NestedScore(score=None, reason=nested)
    assert best is not None
    predictions = one_column(predictions_of(nested.decision, result.task_type, result.probe))
    return NestedScore(
        score=nested.score,
        best_cv_score=best.cv_score,
        optimism=best.cv_score - nested.score,
        folds=tuple(
            FoldChoice(
                layer=choice.cell.layer,
                position=choice.cell.position,
                alpha=choice.alpha,
                inner_score=choice.inner_score,
                score=choice.outer_score,
            )
            for choice in nested.choices
        ),
        predictions=tuple(predictions.tolist()) if predictions.ndim == 1 else _rows(predictions),
        reason=None,
    )


def _permutation(result: SweepResult) -> Permutation:
    test = result.permutation
    statistic = result.permutation_statistic
    if not isinstance(test, PermutationTest):
        return Permutation(statistic=statistic, p_best=None, p=None, reason=test)
    observed = None if statistic == "probe" else tuple(map(tuple, nulls_if_nan(result.observed_score)))
    return Permutation(
        statistic=statistic,
        observed=observed,
        p_best=test.p_best,
        p=tuple(map(tuple, nulls_if_nan(test.p))),
        p_uncorrected=tuple(map(tuple, nulls_if_nan(test.p_uncorrected))),
        n_permutations=len(test.null_max),
        shuffled=test.scheme,
        observed_max=test.observed_max,
        null_max=tuple(test.null_max.tolist()),
        reason=None,
    )


# The best probe among the sides of the test rows; others are indices of a position and layer, or names of baselines.
_BEST = ("best probe",)


def _score_test_rows(
    result: SweepResult,
    baselines: Sequence[Baseline],
    clusters: Int64[np.ndarray, " test_sample"] | None,
    seed: int,
) -> ScoredSides | None:
    """The best probe, the best cells of other positions and the baselines, all on the same resamples."""
    best, sides = result.best, {}
    if result.test_labels is None:
        return None
    if best is not None and best.test_score is not None and result.test_decision is not None:
        at = (best.position_index, best.layer_index)
        sides[_BEST] = result.test_decision[at]
        others = (cell for cell in _best_of_each_position(result) if cell != at)
        sides |= {cell: result.test_decision[cell] for cell in others if not np.isnan(result.test_score[cell])}
    for one in baselines:
        if one.test_decision is not None and not np.isnan(one.test_score):
            sides[one.name] = one.test_decision
    if not sides:
        return None
    ranked_sides = {name: one_column(ranked(decision)) for name, decision in sides.items()}
    return ScoredSides.of(
        result.metric, result.test_labels, ranked_sides, classes=result.classes, clusters=clusters, seed=seed
    )


def _intervals(result: SweepResult, tested: ScoredSides | None, seed: int) -> Intervals:
    """Of the best probe's test score, its lead over the best cells of other positions, and of the nested CV score."""
    nested = result.nested_cv
    of_test, of_nested, leads = None, None, []
    if tested is not None and _BEST in tested.names:
        of_test = tested.score(_BEST)
        leads = [
            Lead(
                layer=result.layers[i],
                position=result.positions[p],
                test_score=tested.difference(_BEST, (p, i)),
            )
            for p, i in _best_of_each_position(result)
            if (p, i) in tested.names
        ]
    if isinstance(nested, NestedCV):
        of_nested = score_interval(
            result.metric,
            result.train_labels,
            one_column(ranked(nested.decision)),
            classes=result.classes,
            clusters=result.group_of_sample,
            folds=result.fold_of_sample,
            seed=seed,
        )
    return Intervals(test_score=of_test, nested_cv_score=of_nested, best_minus_cell=tuple(leads))


def _best_of_each_position(result: SweepResult) -> list[tuple[int, int]]:
    """Indices of the cell with the highest CV score, position by position."""
    scored = [p for p in range(len(result.positions)) if not np.isnan(result.cv_score[p]).all()]
    return [(p, int(np.nanargmax(result.cv_score[p]))) for p in scored]


def _baseline(baseline: Baseline, tested: ScoredSides | None) -> BaselineScores:
    """Scores, the interval of the test score, and the best probe's lead."""
    names = () if tested is None else tested.names
    interval = difference = None
    if tested is not None and baseline.name in names:
        interval = tested.score(baseline.name)
        difference = tested.difference(_BEST, baseline.name) if _BEST in names else None
    return BaselineScores(
        title=baseline.title,
        cv_score=null_if_nan(baseline.cv_score),
        test_score=null_if_nan(baseline.test_score),
        note=baseline.note,
        test_interval=interval,
        difference=difference,
    )


def _scores(result: SweepResult, best: BestProbe) -> dict[str, RegressionScores | ClassScores]:
    """All scores of the best probe; those in cross-validation are of the pooled predictions, not means over folds.

    Where the sweep has no score of a split, there is none here, for the same reason.
    """
    at = (best.position_index, best.layer_index)
    splits = {
        "train": (result.train_labels, result.train_decision, result.train_score),
        "cv": (result.train_labels, result.cv_decision, result.cv_score),
        "test": (result.test_labels, result.test_decision, result.test_score),
    }
    found: dict[str, RegressionScores | ClassScores] = {}
    for name, (labels, decision, scores) in splits.items():
        if labels is None or decision is None or not np.isfinite(decision[at]).all():
            continue
        reason = result.reason(*at) if np.isnan(scores[at]) else None
        found[name] = all_scores(result, labels, decision[at], undefined=reason)
    return found


def all_scores(
    result: SweepResult,
    labels: Float64[np.ndarray, " sample"],
    decision: Float64[np.ndarray, "sample output"],
    *,
    undefined: str | None = None,
) -> RegressionScores | ClassScores:
    """Every score that the task has, of decision values; `undefined` says why there is none of them."""
    if result.classes is None:
        predicted = predictions_of(decision, result.task_type, result.probe)[:, 0]
        found = regression_scores(labels, predicted, decision[:, 0], undefined=undefined)
    else:
        places = _places(result.classes, labels)
        found = classification_scores(places, decision, result.names_of_classes, undefined=undefined)
    return read_scores(found.values, found.reasons)


def _platt(result: SweepResult, best: BestProbe) -> Platt:
    """Platt scaling on cross-validated decision values, and what it does to the calibration on the test rows."""
    at = (best.position_index, best.layer_index)
    of_rates = result.probe == "binomial"
    if not of_rates and (result.classes is None or len(result.classes) != 2):
        return Platt(slope=None, intercept=None, reason="Platt scaling is for two classes and for rates")
    assert result.cv_decision is not None
    actual = result.train_labels if result.classes is None else _places(result.classes, result.train_labels)
    scaling = PlattScaling.fit(actual, result.cv_decision[at][:, 0])
    if not scaling.slope > 0:
        return Platt(slope=None, intercept=None, reason=NOT_RISING)
    calibrated = None
    if result.test_labels is not None and best.test_score is not None and result.test_decision is not None:
        calibrated = all_scores(result, result.test_labels, scaling.log_odds(result.test_decision[at]))
    return Platt(slope=scaling.slope, intercept=scaling.intercept, reason=None, test_scores=calibrated)


def _temperature(result: SweepResult, best: BestProbe) -> Temperature | None:
    """One temperature by cross-validated decision values, and what it does to the calibration on the test rows."""
    at = (best.position_index, best.layer_index)
    if result.classes is None or len(result.classes) <= 2:
        return None
    assert result.cv_decision is not None
    scaling = TemperatureScaling.fit(_places(result.classes, result.train_labels), result.cv_decision[at])
    if isinstance(scaling, str):
        return Temperature(temperature=None, reason=scaling)
    calibrated = None
    if result.test_labels is not None and best.test_score is not None and result.test_decision is not None:
        calibrated = all_scores(result, result.test_labels, scaling.scale(result.test_decision[at]))
    return Temperature(temperature=scaling.temperature, reason=None, test_scores=calibrated)


def _calibration(result: SweepResult, best: BestProbe) -> Line:
    """Least-squares line from cross-validated predictions to the labels: a penalty shrinks predictions."""
    at = (best.position_index, best.layer_index)
    if result.classes is not None or result.probe == "binomial":
        return Line(slope=None, intercept=None, reason="this calibration is for numbers; see platt")
    assert result.cv_decision is not None
    predicted = result.cv_decision[at][:, 0]
    if np.ptp(predicted) == 0:
        return Line(slope=None, intercept=None, reason="all predictions are equal")
    slope, intercept = fit_line(predicted, result.train_labels)
    if not slope > 0:
        return Line(slope=None, intercept=None, reason=NOT_RISING)
    if not np.isfinite([slope, intercept]).all():
        reason = "predictions are so small that no number takes them to the labels"
        return Line(slope=None, intercept=None, reason=reason)
    return Line(slope=slope, intercept=intercept, reason=None)


def _curve(comparison: Comparison, best: BestProbe, seed: int) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            share=point.share,
            n_rows=point.n_rows,
            cv_score=null_if_nan(point.cv_score),
            test_score=null_if_nan(point.test_score),
            alpha=null_if_nan(point.alpha),
        )
        for point in learning_curve(comparison, best.cell, seed)
    )


def _groups(result: SweepResult, options: SweepOptions, *, test_rows_grouped: bool) -> Groups:
    grouping = group_samples(len(result.train_labels), options.groups, options.prompts)
    known = options.prompts is not None
    return Groups(
        n_groups=grouping.n_groups,
        column=grouping.has_column,
        test_rows_grouped=test_rows_grouped,
        n_repeated_prompts=grouping.n_exact if known else None,
        n_repeated_but_for_case_and_whitespace=grouping.n_normalised if known else None,
    )


def _ceilings(
    result: SweepResult, about: About, clusters: Int64[np.ndarray, " test_sample"] | None, seed: int
) -> dict[Literal["train", "test"], Ceiling] | None:
    """The best scores on labels that are shares of attempts; None if they are none, or nobody knows of how many."""

    def read(columns: AttemptColumns | None, labels: Any) -> Attempts | str | None:
        return None if columns is None or labels is None else columns.read(labels, result.classes)

    train = read(about.train_attempts, result.train_labels)
    test = read(about.test_attempts, result.test_labels)
    if train is None and test is None:
        return None
    of_train = _ceiling(train, result.group_of_sample, seed)
    return (
        {"train": of_train}
        if result.test_labels is None
        else {"train": of_train, "test": _ceiling(test, clusters, seed)}
    )


def _ceiling(found: Attempts | str | None, clusters: Int64[np.ndarray, " sample"] | None, seed: int) -> Ceiling:
    if not isinstance(found, Attempts):
        return Ceiling(reason=found or "it is not known how many attempts these labels are shares of")
    return Ceiling(
        fewest_samples=int(found.n_samples.min()),
        most_samples=int(found.n_samples.max()),
        threshold=found.threshold,
        scores=ceilings_of(found, clusters=clusters, seed=seed),
    )


def _places(classes: Sequence[float], labels: Float64[np.ndarray, " sample"]) -> Int64[np.ndarray, " sample"]:
    """The place of each label among the sorted classes."""
    return np.searchsorted(classes, labels).astype(np.int64)


def _rows(values: Float64[np.ndarray, "sample output"]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))
