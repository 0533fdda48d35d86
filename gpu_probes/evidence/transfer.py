"""Scores of the probes of a training on other rows than its own, and how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Real

from gpu_probes.evidence.baselines import Baseline, Comparison, number_baseline, tfidf_baseline
from gpu_probes.features.cells import ArrayCellSource, CellSource
from gpu_probes.forms import Count, Json, Number, Score, Text, plain
from gpu_probes.results.encoding import null_if_nan
from gpu_probes.results.inference import AllScores, BaselineScores, Evidence, read_scores
from gpu_probes.results.saved_probes import SavedProbes
from gpu_probes.results.transfer import FinishedTraining
from gpu_probes.samples.labels import read_labels
from gpu_probes.scores.calibration import PlattScaling, TemperatureScaling
from gpu_probes.scores.decisions import is_flat, one_column, predictions_of, ranked
from gpu_probes.scores.intervals import Interval, ScoredSides
from gpu_probes.scores.metrics import classification_scores, regression_scores
from gpu_probes.search.options import SweepOptions
from gpu_probes.search.sweep import plan_sweep
from gpu_probes.solvers.deciding import row_norms
from gpu_probes.terms import Cell

_BEST = ("best probe",)


@dataclass(frozen=True, kw_only=True)
class CalibrationScores:
    """How far calibrated predictions are from the labels.

    Attributes
    ----------
    kind : str or None
        ``linear`` or ``platt``, fitted in training; None: predictions are as they are, for the `reason`.
    bias : float or None
        Mean prediction minus mean label; for two classes the second one's probability and share.
    scores : RegressionScores or ClassScores or None
        Of the calibrated predictions.
    """

    kind: Text | None
    bias: Number | None
    scores: AllScores | None
    reason: Text | None


@dataclass(frozen=True, kw_only=True)
class TransferScore:
    """The best probe of a training on some rows, and the score of every cell.

    Attributes
    ----------
    metric : str
    n : int or None
        Rows that are scored.
    n_in_training : int or None
        Those of them whose prompt was trained on; None where prompts are unknown.
    best : float or None
        Score of the best probe.
    interval : Interval or None
    baselines : dict of BaselineScores
        Fitted to the training rows, scored on the same rows.
    no_baselines : str or None
        Why there are none.
    calibration : CalibrationScores or None
    scores : list of lists or None
        Of every cell, ``[position][layer]``.
    reason : str or None
        Why the best probe has no score.
    """

    metric: Text
    n: Count | None = None
    n_in_training: Count | None = None
    best: Score | None = None
    interval: Interval | None = None
    baselines: dict[Text, BaselineScores]
    no_baselines: Text | None = None
    calibration: CalibrationScores | None = None
    scores: tuple[tuple[Score | None, ...], ...] | None = None
    reason: Text | None = None

    def to_json(self) -> dict[str, Json]:
        """As in the file."""
        return plain(self)

    @property
    def strongest_baseline(self) -> BaselineScores | None:
        """The one with the highest score."""
        scored = [one for one in self.baselines.values() if one.test_score is not None]
        return max(scored, key=lambda one: one.test_score or 0.0, default=None)


@dataclass(frozen=True)
class FittedRows:
    """What baselines are fitted to.

    Attributes
    ----------
    labels : one number per row
        As the training read them: of words the places of their classes.
    prompts : list of str or None
    numbers : mapping of str to ndarray [sample]
        Baselines of one number, by name.
    groups : one number or string per row, optional
    """

    labels: Any
    prompts: list[str] | None
    numbers: Mapping[str, Real[np.ndarray, " sample"]]
    groups: Any = None


@dataclass(frozen=True)
class OtherRows:
    """Rows that probes are transferred to.

    Attributes
    ----------
    source : CellSource
        As stored, before cells are joined.
    labels : one number per row
    prompts : list of str or None
    numbers : mapping of str to ndarray [sample]
        As of `FittedRows`.
    clusters : ndarray [sample] or None
        What belongs together: intervals resample complete ones.
    n_in_training : int or None
        Rows whose prompt was trained on.
    """

    source: CellSource
    labels: Any
    prompts: list[str] | None
    numbers: Mapping[str, Real[np.ndarray, " sample"]]
    clusters: Int64[np.ndarray, " sample"] | None
    n_in_training: int | None


def no_transfer(training: FinishedTraining, reason: str) -> TransferScore:
    """An empty cell of the table."""
    return TransferScore(metric=training.probes.metric, baselines={}, reason=reason)


def score_transfer(training: FinishedTraining, other: OtherRows, fitted: FittedRows | str) -> TransferScore:
    """Score all probes of a training on other rows, the best one with an interval, baselines and its calibration.

    Parameters
    ----------
    training : FinishedTraining
    other : OtherRows
    fitted : FittedRows or str
        The training's rows, or why they are unknown.

    Raises
    ------
    ProbeError
        The rows have no such cells, or labels of another task.
    """
    probes, source = training.probes, training.cells_of(other.source)
    labels = read_labels(other.labels, name="labels", n_samples=source.n_samples, names=probes.task.names)
    grid = tuple(
        tuple(null_if_nan(probes.score_numbers(source, labels, Cell(layer, position))) for layer in probes.layers)
        for position in probes.positions
    )
    found = TransferScore(
        metric=probes.metric, n=len(labels), n_in_training=other.n_in_training, scores=grid, baselines={}
    )
    best = probes.best
    if best is None:
        return replace(found, reason="the training chose no best probe")
    at = probes.positions.index(best.position), probes.layers.index(best.layer)
    decision = probes.decide(source, best)
    if not np.isfinite(decision).all():
        return replace(found, reason="its hidden states hold NaN or infinity")
    flat = is_flat(decision, probes.coef[at], row_norms(source, best))
    undefined = "all predictions are equal" if flat else None
    score, plain_scores = grid[at[0]][at[1]], _all_scores(probes, labels, decision, undefined)
    baselines = [] if isinstance(fitted, str) else _baselines(training, fitted, other, labels)
    sides = {} if score is None else {_BEST: decision}
    sides |= {one.name: one.test_decision for one in baselines if one.test_decision is not None}
    scored = _intervals(training, labels, sides, other.clusters)
    return replace(
        found,
        best=score,
        interval=scored.score(_BEST) if scored is not None and score is not None else None,
        baselines={one.name: _baseline(one, scored) for one in baselines},
        no_baselines=fitted if isinstance(fitted, str) else None,
        calibration=_calibration(training, labels, decision, undefined),
        reason=None if score is not None else plain_scores.undefined.get(probes.metric, "its score is undefined"),
    )


def _intervals(
    training: FinishedTraining,
    labels: Float64[np.ndarray, " sample"],
    sides: Mapping[Any, Float64[np.ndarray, "sample output"]],
    clusters: Int64[np.ndarray, " sample"] | None,
) -> ScoredSides | None:
    """The best probe and the baselines on the same resamples."""
    if not sides:
        return None
    task, seed = training.probes.task, training.run.request.options.get("seed", 0)
    columns = {name: one_column(ranked(decision)) for name, decision in sides.items()}
    return ScoredSides.of(task.metric, labels, columns, classes=task.classes, clusters=clusters, seed=seed)


def _baselines(
    training: FinishedTraining, fitted: FittedRows, other: OtherRows, labels: Float64[np.ndarray, " sample"]
) -> list[Baseline]:
    """Those that need no activations, with the training's folds."""
    asked, names = training.run.request.options, fitted.numbers.keys() & other.numbers.keys()
    given = SweepOptions(
        task_type=training.probes.task.task_type,
        probe="binomial" if training.probes.probe == "binomial" else "auto",
        k_fold=True,
        n_folds=asked.get("n_folds", 5),
        seed=asked.get("seed", 42),
        nested_cv=False,
        groups=fitted.groups,
        prompts=None if asked.get("split_repeats") else fitted.prompts,
        device="cpu",
    )
    # A source without information: only folds and labels are wanted of it.
    sources = [ArrayCellSource(np.ones((n, 1, 1, 1))) for n in (len(fitted.labels), len(labels))]
    result = plan_sweep(sources[0], {"labels": fitted.labels}, sources[1], {"labels": labels}, **vars(given)).run()[
        "labels"
    ]
    comparison = Comparison(result, sources[0], sources[1], given)
    found = [number_baseline(comparison, name, fitted.numbers[name], other.numbers[name]) for name in sorted(names)]
    if fitted.prompts is not None and other.prompts is not None:
        found.append(tfidf_baseline(comparison, fitted.prompts, other.prompts))
    return found


def _baseline(one: Baseline, scored: ScoredSides | None) -> BaselineScores:
    is_scored = scored is not None and one.name in scored.names and not np.isnan(one.test_score)
    return BaselineScores(
        title=one.title,
        cv_score=null_if_nan(one.cv_score),
        test_score=null_if_nan(one.test_score),
        note=one.note,
        test_interval=scored.score(one.name) if scored is not None and is_scored else None,
        difference=scored.difference(_BEST, one.name)
        if scored is not None and is_scored and _BEST in scored.names
        else None,
    )


def _all_scores(
    probes: SavedProbes,
    labels: Float64[np.ndarray, " sample"],
    decision: Float64[np.ndarray, "sample output"],
    undefined: str | None,
) -> Any:
    task = probes.task
    if task.classes is None:
        predicted = predictions_of(decision, task.task_type, probes.probe)[:, 0]
        found = regression_scores(labels, predicted, decision[:, 0], undefined=undefined)
    else:
        places = np.searchsorted(task.classes, labels).astype(np.int64)
        found = classification_scores(places, decision, task.names_of_classes, undefined=undefined)
    return read_scores(found.values, found.reasons)


def _calibration(
    training: FinishedTraining,
    labels: Float64[np.ndarray, " sample"],
    decision: Float64[np.ndarray, "sample output"],
    undefined: str | None,
) -> CalibrationScores:
    """Apply what the training fitted to held-out predictions; the task's own predictions where there is nothing."""
    probes, evidence = training.probes, training.results.evidence or Evidence()
    task = probes.task
    is_linear = task.classes is None and probes.probe != "binomial"
    fit = evidence.calibration if is_linear else evidence.platt
    kind, reason = None, "the training fitted none"
    if fit is not None:
        reason = fit.reason
    if fit is not None and fit.slope is not None and fit.intercept is not None:
        kind = "linear" if is_linear else "platt"
        decision = PlattScaling(fit.slope, fit.intercept).log_odds(decision)
    if evidence.temperature is not None:
        reason = evidence.temperature.reason
        if evidence.temperature.temperature is not None:
            kind, decision = "temperature", TemperatureScaling(evidence.temperature.temperature).scale(decision)
    predicted = one_column(predictions_of(decision, task.task_type, probes.probe))
    bias = None
    if predicted.ndim == 1:
        truth = labels if task.classes is None else labels == task.classes[-1]
        bias = float(predicted.mean() - truth.mean())
    return CalibrationScores(
        kind=kind, bias=bias, scores=_all_scores(probes, labels, decision, undefined), reason=reason
    )


def tabulate(
    trainings: Sequence[FinishedTraining], stores: Sequence[str], scores: Sequence[Sequence[TransferScore]]
) -> str:
    """The best probes' scores, a table for each training with a row for each store."""
    blocks: list[str] = []
    for training, row in zip(trainings, scores, strict=True):
        best, metric = training.probes.best, training.probes.metric
        where = "no best probe" if best is None else f"layer {best.layer}, position {best.position}"
        lines = [_HEADING, *(_row(store, one) for store, one in zip(stores, row, strict=True))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        reasons = [(store, one.reason) for store, one in zip(stores, row, strict=True) if one.reason]
        empty = [reason if store in reason else f"{store}: {reason}" for store, reason in reasons]
        blocks.append("\n".join([f"{training.folder}: {training.label}, {where} ({metric})", *table, *empty]))
    return "\n\n".join(blocks)


_HEADING = ("store", "rows", "score", "95 % interval", "strongest baseline", "lead, 95 % interval", "calibrated")


def _row(store: str, one: TransferScore) -> tuple[str, ...]:
    n = "-" if one.n is None else str(one.n)
    trained = f" ({one.n_in_training} trained on)" if one.n_in_training else ""
    strongest = one.strongest_baseline
    baseline = "-" if strongest is None else f"{strongest.title} {_text(strongest.test_score)}"
    lead = None if strongest is None else strongest.difference
    ahead = "-" if lead is None else f"{_text(lead.estimate)} {_ends(lead)}".rstrip()
    return store, n + trained, _text(one.best), _ends(one.interval) or "-", baseline, ahead, _calibrated(one)


def _calibrated(one: TransferScore) -> str:
    """The error of calibrated predictions that has the labels' unit, and their bias."""
    found = one.calibration
    if found is None or found.scores is None:
        return "-"
    name = "ece" if hasattr(found.scores, "ece") else "mae"
    bias = "" if found.bias is None else f", bias {found.bias:+.3f}"
    return f"{name.upper()} {_text(getattr(found.scores, name))}{bias}"


def _ends(interval: Interval | None) -> str:
    return "" if interval is None or interval.low is None else f"[{interval.low:.3f}, {interval.high:.3f}]"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
