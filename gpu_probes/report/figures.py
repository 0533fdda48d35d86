"""The figures of a page, from a result folder: each with a title, a caption and its data as a table of strings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from gpu_probes.display import charts
from gpu_probes.display.charts import Reference, Series, score_title
from gpu_probes.display.wording import interval, number, one_line, position_text, statistic_text
from gpu_probes.report import curves
from gpu_probes.report.load import SavedFiles, ends_of, strongest
from gpu_probes.report.predictions import (
    HELD_OUT_TITLE,
    MOST_CURVE_POINTS,
    MOST_POINTS,
    TEST_TITLE,
    Predicted,
    classes_of,
    held_out,
    names_of,
    roc_table,
    thinned,
)
from gpu_probes.report.sentences import ceiling_sentence
from gpu_probes.results.inference import BaselineScores, Bin, ClassScores
from gpu_probes.scores.intervals import Interval

TEST, HELD_OUT = Series(TEST_TITLE, "accent"), Series(HELD_OUT_TITLE, "others")
# The observed frequency of fewer rows has a standard error of more than 0.22, if it is near a half.
FEWEST_IN_BIN = 5
_CV, _NESTED = Series("CV", "others"), Series("nested CV, 95 % interval", "honest")
_TESTED = Series("test, 95 % interval", "accent")
_CEILING = Series("the ceiling of these labels, 95 % interval", "extra")
_CLASS_COLOURS = ("accent", "honest", "baseline", "extra", "others", "ink")


@dataclass(frozen=True)
class Figure:
    """A chart, its caption, and its data.

    Attributes
    ----------
    name : str
        Used for its files and as its anchor on the page.
    table : DataFrame
        The data as readers see them.
    min_width : int
        On screens narrower than this many pixels the figure scrolls in its own box.
    """

    name: str
    title: str
    caption: str
    chart: alt.LayerChart
    table: pd.DataFrame
    min_width: int = 260


@dataclass(frozen=True)
class Absent:
    """A figure that these results do not have, and why; `expected` if readers might look for it."""

    name: str
    title: str
    reason: str
    expected: bool = True


def heatmap(results: SavedFiles, score: str | None = None) -> Figure | Absent:
    """Scores over layers and positions."""
    shown, note = (score, "") if score else _shown_score(results)
    cells, best = results.cells, results.best_cell
    metric = results.performance.metric_title
    chart = charts.heatmap(cells, metric=metric, score=shown, best=best, tokens=results.tokens)
    undefined = int(np.isnan(charts.column_of(cells, shown)).sum())
    caption = f"The {charts.SCORES.get(shown, shown)} of each cell. {note}"
    if best is not None:
        layer, position = best
        caption += f"The dot marks the best cell by cross-validation: layer {one_line(layer)}, position "
        caption += f"{position_text(position, results.tokens.get(position))}. "
    if undefined:
        caption += f"{undefined} {'cell has' if undefined == 1 else 'cells have'} no score (grey, crossed out). "
    caption += "Layers are indices into hidden_states (0 = embeddings); position -1 is the last token."
    table = charts.readable(cells, results.tokens)
    width = 110 + 7 * results.performance.n_layers
    return Figure("heatmap", "Score by layer and position", caption, chart, table, width)


def layers(results: SavedFiles, score: str | None = None) -> Figure | Absent:
    """Scores by layer, with the unbiased estimates and the strongest baseline."""
    name, title = "layers", "Score by layer"
    shown, note = (score, "") if score else _shown_score(results)
    if np.isnan(charts.column_of(results.cells, shown)).all():
        return Absent(name, title, "no cell has a score")
    chart = charts.layers(
        results.cells,
        metric=results.performance.metric_title,
        score=shown,
        best=results.best_cell,
        tokens=results.tokens,
        references=_references(results) if shown == "cv_score" else (),
    )
    caption = f"The {charts.SCORES.get(shown, shown)} by layer, one line per position. {note}"
    if results.best is not None:
        caption += (
            "The best of many cells is biased upwards. Nested cross-validation (dashed; band: its interval) and the "
            "test score (diamond) show what to expect."
        )
        if results.evidence.ceiling_of("train", results.performance.metric) is not None and shown == "cv_score":
            caption += f" {_CEILING.name[0].upper()}{_CEILING.name[1:]} is what the true success rates would score."
    columns = ["position", "layer", *charts.SCORES.values(), "alpha"]
    table = _only(charts.readable(results.cells, results.tokens), columns)
    return Figure(name, title, caption.strip(), chart, table)


def predictions(results: SavedFiles) -> Figure | Absent:
    """Predicted against actual numbers."""
    name, title = "predictions", "Predicted against actual"
    if classes_of(results):
        return Absent(name, title, "the labels are classes", expected=False)
    parts = held_out(results)
    if not parts:
        return Absent(name, title, results.why_no_best)
    table = pd.concat([_points(part) for part in parts], ignore_index=True)
    series = [TEST if part.split == "test" else HELD_OUT for part in parts]
    # The training rows come first, so that the test rows lie on top.
    chart = curves.diagonal_scatter(
        pd.DataFrame(table[::-1]), series, ["series", "row number", "actual value", "predicted value"]
    )
    caption = "The best probe on rows that it was not fitted to. On the dashed line, predictions are exact."
    most = max(len(part.actual) for part in parts)
    if most > MOST_POINTS:
        caption += f" Where there are more than {MOST_POINTS:,} rows, {MOST_POINTS:,} evenly spaced ones are drawn."
    return Figure(
        name, title, caption, chart, _only(table, ["series", "row number", "actual value", "predicted value"])
    )


def roc(results: SavedFiles) -> Figure | Absent:
    """True against false positive rate."""
    name, title = "roc", "ROC curve"
    if not classes_of(results):
        return Absent(name, title, "the labels are numbers", expected=False)
    if not held_out(results):
        return Absent(name, title, results.why_no_best)
    table = roc_table(results)
    if not len(table):
        return Absent(name, title, "a class is missing among the labels")
    several = len(classes_of(results)) > 2
    names = list(dict.fromkeys(table["series"]))
    colours = (
        _CLASS_COLOURS * 2 if several else tuple(TEST.colour if one == TEST.name else HELD_OUT.colour for one in names)
    )
    series = [Series(one, colour) for one, colour in zip(names, colours, strict=False)]
    tips = ["series", "threshold", "false positives", "true positives"]
    caption = "True positive rate against false positive rate as the threshold falls."
    caption += f" At most {MOST_CURVE_POINTS} evenly spaced points are drawn per curve."
    if several:
        caption += f" Each class against all others, {held_out(results)[0].title}"
        left_out = len(classes_of(results)) - len(names)
        caption += f"; {left_out} classes are not drawn." if left_out else "."
    return Figure(name, title, caption, curves.roc(table, series, tips), _only(table, tips))


def reliability(results: SavedFiles) -> Figure | Absent:
    """Predicted probability against observed frequency."""
    name, title = "reliability", "Reliability"
    if not classes_of(results):
        return Absent(name, title, "the labels are numbers", expected=False)
    scores = results.evidence.scores
    if not scores:
        return Absent(name, title, results.why_missing("scores"))
    platt, temperature = results.evidence.platt, results.evidence.temperature
    tested = scores.get("test")
    split = "test" if isinstance(tested, ClassScores) and tested.reliability else "cv"
    calibrated = None if platt is None else platt.test_scores
    held = [
        (f"{split}, as fitted", "accent", scores.get("test" if split == "test" else "cv")),
        ("test, after Platt scaling", "honest", calibrated),
        ("test, after temperature scaling", "honest", None if temperature is None else temperature.test_scores),
    ]
    found = [(one, colour, content) for one, colour, content in held if isinstance(content, ClassScores)]
    if not found:
        return Absent(name, title, "inference.json has no bins for it")
    bins = [one for _, _, content in found for one in content.reliability or () if one.count]
    n_small = sum(one.count < FEWEST_IN_BIN for one in bins)
    if not bins:
        return Absent(name, title, "inference.json has no bins for it")
    if n_small == len(bins):
        return Absent(name, title, f"no bin of predicted probabilities has {FEWEST_IN_BIN} rows")
    table = pd.concat([_bins(one, content.reliability or ()) for one, _, content in found], ignore_index=True)
    tips = ["series", "predicted", "observed frequency", "rows"]
    chart = curves.reliability(table, [Series(one, colour) for one, colour, _ in found], tips)
    errors = "; ".join(f"{one} {number(content.ece)}" for one, _, content in found)
    names = names_of(results)
    what = f"class {names[1]}" if len(names) == 2 else "the predicted class"
    caption = (
        f"How often {what} is the actual class, in ten bins of its predicted probability; the number of rows is "
        f"next to each point. Bins of fewer than {FEWEST_IN_BIN} rows are not drawn ({n_small} of {len(bins)}), but "
        f"are part of the expected calibration error: {errors}."
    )
    return Figure(name, title, caption, chart, _only(table, tips))


def alphas(results: SavedFiles) -> Figure | Absent:
    """Score of the best cell at each alpha."""
    name, title = "alphas", "Penalty"
    if results.best is None:
        return Absent(name, title, results.why_no_best)
    path = results.best.alpha_cv_scores
    if not path:
        return Absent(name, title, "one alpha was fitted")
    table = pd.DataFrame({"alpha": [float(alpha) for alpha in path], "score": list(path.values())}, dtype=np.float64)
    table = table.sort_values("alpha", ignore_index=True)
    table["chosen"] = table["alpha"] == results.best.selected_alpha
    table["penalty"] = [f"{alpha:g}" for alpha in table["alpha"]]
    table["CV score"] = [number(score) for score in table["score"]]
    table["row"] = "alpha"
    chart = curves.alpha_path(table, score_title("cv_score", results.performance.metric_title), ["penalty", "CV score"])
    at = results.best.selected_alpha
    caption = f"CV score of the best cell at each alpha. The highest, at alpha {at:g}, was chosen."
    if at in (table["alpha"].iloc[0], table["alpha"].iloc[-1]):
        caption += " It is at an end of the grid: a better alpha may lie outside."
    return Figure(name, title, caption, chart, _only(table, ["penalty", "CV score"]))


def comparison(results: SavedFiles) -> Figure | Absent:
    """The best probe's biased and unbiased scores, and the baselines."""
    name, title = "comparison", "How far to trust the score"
    if results.best is None:
        return Absent(name, title, results.why_no_best)
    table = pd.DataFrame([record for record in _compared(results) if not np.isnan(record["score"])])
    table["row"] = table["name"]
    table["value"] = [number(score) for score in table["score"]]
    used = [one for one in (_CV, _NESTED, _TESTED) if one.name in set(table["series"])]
    tips = ["name", "series", "value", "95 % interval"]
    metric = f"score ({results.performance.metric_title})"
    caption = (
        "The best probe's CV score is the highest over all cells and alphas, so it is biased upwards. Nested "
        "cross-validation repeats the choice for each fold and scores it on rows that played no part in it. Intervals "
        "do not cover the variation between probes trained on different rows."
    )
    ceiling = ceiling_sentence(results)
    caption += f" {ceiling}" if ceiling else ""
    without = [f"{one_line(one.title)}, {one_line(one.note)}" for one in _unscored(results)]
    caption += f" Without a score: {'; '.join(without)}." if without else ""
    return Figure(name, title, caption, curves.comparison(table, used, metric, tips), _only(table, tips))


def permutations(results: SavedFiles) -> Figure | Absent:
    """Highest score of each permutation of the labels, and the observed one."""
    name, title = "permutations", "Permutation test"
    found = results.evidence.permutation
    if found is None or found.p_best is None or found.null_max is None:
        return Absent(name, title, results.why_missing("permutation"))
    null = np.asarray(found.null_max, dtype=np.float64)
    counts, edges = np.histogram(null, bins=min(40, max(5, len(null) // 5)))
    bins = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts, "row": "null"})
    bins["highest score"] = [f"{low:.3f} to {high:.3f}" for low, high in itertools.pairwise(edges)]
    bins["permutations"] = [str(count) for count in counts]
    observed = found.observed_max
    own = pd.DataFrame([{"score": observed, "row": "null", "label": f"true labels {observed:.3f}"}])
    own["highest score"], own["permutations"] = own["label"], ""
    metric = score_title("cv_score", results.performance.metric_title)
    tips = ["highest score", "permutations"]
    chart = curves.null_histogram(bins, own, f"highest {metric} of any cell", tips)
    by = statistic_text(found.statistic, results.performance.task_type)
    caption = (
        f"Highest CV score of any cell{by}, for each of {found.n_permutations:,} "
        f"permutations of the labels ({found.shuffled}), and for the true labels (line). Over all cells, "
        f"p = {found.p_best:.3g}; the smallest that so many permutations can give is {number(found.smallest_p, '.3g')}."
    )
    return Figure(name, title, caption, chart, _only(bins, tips))


def learning_curve(results: SavedFiles) -> Figure | Absent:
    """Score of the best cell by the number of training rows."""
    name, title = "learning_curve", "Learning curve"
    points = results.evidence.learning_curve
    if not points:
        return Absent(name, title, results.why_missing("learning_curve"))
    cv, test = Series("CV", "others"), Series("test", "accent")
    rows = [
        {
            "n_rows": point.n_rows,
            "score": score,
            "series": one.name,
            "alpha": number(point.alpha, "g"),
        }
        for one, key in ((test, "test"), (cv, "cv"))
        for point in points
        if (score := point.test_score if key == "test" else point.cv_score) is not None
    ]
    if not rows:
        return Absent(name, title, "no subset of the training rows gives a score")
    table = pd.DataFrame(rows)
    table["row"], table["training rows"] = table["series"], [f"{n:,}" for n in table["n_rows"]]
    table["value"] = [number(score) for score in table["score"]]
    tips = ["series", "training rows", "value", "alpha"]
    metric = f"score ({results.performance.metric_title})"
    used = [one for one in (test, cv) if one.name in set(table["series"])]
    caption = "The best cell fitted to growing subsets of its training rows, always scored on the same rows."
    return Figure(name, title, caption, curves.learning_curve(table, used, metric, tips), _only(table, tips))


FIGURES: tuple[Callable[[SavedFiles], Figure | Absent], ...] = (
    heatmap,
    layers,
    predictions,
    roc,
    reliability,
    comparison,
    permutations,
    alphas,
    learning_curve,
)


def _only(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: frame[name] for name in columns})


def _shown_score(results: SavedFiles) -> tuple[str, str]:
    """The column to draw, and why it is not the CV score."""
    for score in ("cv_score", "test_score", "train_score"):
        if not np.isnan(results.cells[score].to_numpy(np.float64)).all():
            why = f"({results.why_no_best[0].upper()}{results.why_no_best[1:]}.) " if score != "cv_score" else ""
            return score, why
    return "cv_score", ""


def _references(results: SavedFiles) -> list[Reference]:
    """Nested cross-validation, the strongest baseline, the ceiling, and the test score at the best layer."""
    references: list[Reference] = []
    intervals, nested = results.intervals, results.nested_score
    if nested is not None:
        references.append(Reference(_NESTED, nested, *ends_of(intervals.nested_cv_score)))
    baseline = strongest(results)
    if baseline is not None and baseline.cv_score is not None:
        series = Series(f"{one_line(baseline.title)}, CV", "baseline")
        references.append(Reference(series, baseline.cv_score))
    ceiling = results.evidence.ceiling_of("train", results.performance.metric)
    if ceiling is not None and ceiling.estimate is not None:
        references.append(Reference(_CEILING, ceiling.estimate, ceiling.low, ceiling.high))
    best, cell = results.best, results.best_cell
    if best is not None and cell is not None and best.test_score is not None:
        low, high = ends_of(intervals.test_score)
        references.append(Reference(Series(_TESTED.name, "ink"), best.test_score, low, high, cell[0]))
    return references


def _points(part: Predicted) -> pd.DataFrame:
    kept = thinned(len(part.actual))
    actual, predicted = part.actual[kept], part.predictions[kept]
    return pd.DataFrame(
        {
            "series": part.title,
            "row": part.title,
            "row number": [str(row) for row in part.rows[kept]],
            "actual": actual,
            "predicted": predicted,
            "actual value": [number(value) for value in actual],
            "predicted value": [number(value) for value in predicted],
        }
    )


def _bins(series: str, curve: Sequence[Bin]) -> pd.DataFrame:
    """Bins of a reliability curve that hold rows."""
    return pd.DataFrame(
        [
            {
                **vars(one),
                "series": series,
                "row": series,
                "predicted": number(one.mean_predicted),
                "observed frequency": number(one.fraction_positive),
                "rows": str(one.count),
            }
            for one in curve
            if one.count >= FEWEST_IN_BIN
        ]
    )


def _compared(results: SavedFiles) -> list[dict[str, Any]]:
    """A record for each score: of the best probe, and of every baseline."""
    assert results.best is not None
    intervals, baselines = results.intervals, results.evidence.baselines or {}
    probe = "best probe"
    records = [
        _record(probe, _CV, results.best.cv_score, None),
        _record(probe, _NESTED, results.nested_score, intervals.nested_cv_score),
        _record(probe, _TESTED, results.best.test_score, intervals.test_score),
    ]
    for one in baselines.values():
        title = one_line(one.title)
        records.append(_record(title, _CV, one.cv_score, None))
        records.append(_record(title, _TESTED, one.test_score, one.test_interval))
    return records


def _unscored(results: SavedFiles) -> list[BaselineScores]:
    baselines = (results.evidence.baselines or {}).values()
    return [one for one in baselines if one.cv_score is None and one.test_score is None]


def _record(name: str, series: Series, score: float | None, found: Interval | None) -> dict[str, Any]:
    low, high = ends_of(found)
    text = interval((low, high)) or "unknown"
    ends = {"low": np.nan if low is None else low, "high": np.nan if high is None else high}
    return {
        "name": name,
        "series": series.name,
        "score": np.nan if score is None else score,
        "95 % interval": text,
    } | ends
