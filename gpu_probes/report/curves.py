"""Figures of the best probe, each from a tidy table whose columns its docstring names.

A column `row` groups the marks that the arrow keys move along. Tooltips show strings, so that NaN does not become 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from gpu_probes.display.charts import PALETTE, Series, chart_of, legend_of, rows_where, stack

# As many labels as fit next to each other on a phone.
_FEW = alt.Axis(tickCount=6)


def diagonal_scatter(frame: pd.DataFrame, series: Sequence[Series], tips: Sequence[str]) -> alt.LayerChart:
    """Columns actual, predicted, series, row and the tips."""
    shared = [frame[["actual", "predicted"]].min().max(), frame[["actual", "predicted"]].max().min()]
    points = (
        chart_of(frame)
        .mark_point(filled=True, size=34, opacity=0.6)
        .encode(
            alt.X("actual:Q", title="actual", scale=alt.Scale(zero=False), axis=_FEW),
            alt.Y("predicted:Q", title="predicted", scale=alt.Scale(zero=False)),
            legend_of(series),
            tooltip=_tips(tips),
        )
    )
    # If the ranges of labels and predictions do not overlap, the line would only squeeze the points together.
    lines = [_diagonal(shared[0], shared[1], "actual", "predicted")] if shared[0] < shared[1] else []
    return stack([*lines, points], 380)


def roc(frame: pd.DataFrame, series: Sequence[Series], tips: Sequence[str]) -> alt.LayerChart:
    """Columns fpr, tpr, series, row, order and the tips."""
    x = alt.X("fpr:Q", title="false positive rate", scale=alt.Scale(domain=[0, 1]), axis=_FEW)
    y = alt.Y("tpr:Q", title="true positive rate", scale=alt.Scale(domain=[0, 1]))
    base, colour = chart_of(frame).encode(x, y), legend_of(series)
    line = base.mark_line(strokeWidth=2).encode(colour, order="order:Q")
    points = base.mark_point(filled=True, size=40, opacity=0).encode(colour, tooltip=_tips(tips))
    return stack([_diagonal(0.0, 1.0, "fpr", "tpr"), line, points], 380)


def reliability(frame: pd.DataFrame, series: Sequence[Series], tips: Sequence[str]) -> alt.LayerChart:
    """Columns mean_predicted, fraction_positive, count, rows, series, row and the tips."""
    unit = alt.Scale(domain=[0, 1])
    x = alt.X("mean_predicted:Q", title="mean predicted probability", scale=unit, axis=_FEW)
    y = alt.Y("fraction_positive:Q", title="observed frequency", scale=unit)
    base, colour = chart_of(frame).encode(x, y), legend_of(series)
    size = alt.Size("count:Q", scale=alt.Scale(range=[25, 260], zero=True), legend=None)
    line = base.mark_line(strokeWidth=1.75).encode(colour)
    points = base.mark_point(filled=True, opacity=0.85).encode(colour, size, tooltip=_tips(tips))
    # The first series' rows stand above its points, those of others below theirs.
    named = [
        chart_of(rows_where(frame, frame["series"] == one.name))
        .mark_text(dy=13 if place else -11, fontSize=11)
        .encode(x, y, colour, text="rows:N", tooltip=alt.value(None))
        for place, one in enumerate(series)
    ]
    diagonal = _diagonal(0.0, 1.0, "mean_predicted", "fraction_positive")
    return stack([diagonal, line, points, *named], 380)


def alpha_path(frame: pd.DataFrame, title: str, tips: Sequence[str]) -> alt.LayerChart:
    """Columns alpha, score, chosen, row and the tips."""
    if min(frame["alpha"]) > 0:
        x = alt.X("alpha:Q", scale=alt.Scale(type="log", nice=False, padding=12), title="alpha")
        x = x.axis(values=sorted(frame["alpha"]), format="~g", labelOverlap="greedy")
    else:
        x = alt.X("alpha:O", title="alpha", axis=alt.Axis(labelAngle=0, format="~g"))
    y = alt.Y("score:Q", title=title, scale=alt.Scale(zero=False))
    base = chart_of(rows_where(frame, frame["score"].notna())).encode(x, y)
    line = base.mark_line(color=PALETTE["accent"], strokeWidth=2)
    points = base.mark_point(filled=True, size=50, color=PALETTE["accent"], opacity=1).encode(tooltip=_tips(tips))
    chosen = chart_of(rows_where(frame, frame["chosen"])).encode(x, y, tooltip=_tips(tips))
    mark = chosen.mark_point(
        size=150, filled=True, fill=PALETTE["accent"], stroke=PALETTE["paper"], strokeWidth=2, opacity=1
    )
    return stack([line, points, mark], 260)


def comparison(frame: pd.DataFrame, series: Sequence[Series], title: str, tips: Sequence[str]) -> alt.LayerChart:
    """Columns name, score, low, high, series, row and the tips; a line of names, a point for each series."""
    names = list(dict.fromkeys(frame["name"]))
    # Names are inside, above their marks: next to them they would take half of a phone's width.
    axis = alt.Axis(labelAlign="left", labelPadding=0, labelOffset=-17, labelLimit=300, grid=False)
    y = alt.Y("name:N", title=None, sort=None, scale=alt.Scale(domain=names), axis=axis)
    places = alt.Scale(domain=[one.name for one in series], range=[22, 48])
    offset = alt.YOffset("series:N", scale=places)
    x = alt.X("score:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6, grid=True))
    colour = legend_of(series)
    bars = chart_of(rows_where(frame, frame["low"].notna())).mark_rule(strokeWidth=2)
    bars = bars.encode(
        y, offset, alt.X("low:Q", title=title, scale=alt.Scale(zero=False), axis=_FEW), alt.X2("high:Q"), colour
    )
    points = chart_of(frame).mark_point(filled=True, size=75, opacity=1)
    points = points.encode(y, offset, x, colour, tooltip=_tips(tips))
    return stack([bars, points], 64 * len(names))


def null_histogram(bins: pd.DataFrame, observed: pd.DataFrame, title: str, tips: Sequence[str]) -> alt.LayerChart:
    """Columns low, high, count, row and the tips; `observed`: score, row, and the tips."""
    x = alt.X("low:Q", title=title, scale=alt.Scale(zero=False), axis=_FEW)
    bars = chart_of(bins.assign(none=0)).mark_rect(fill=PALETTE["others"], stroke=PALETTE["paper"], strokeWidth=0.5)
    bars = bars.encode(
        x, alt.X2("high:Q"), alt.Y("count:Q", title="permutations"), alt.Y2("none:Q"), tooltip=_tips(tips)
    )
    rule = chart_of(observed).encode(alt.X("score:Q", title=title), tooltip=_tips(tips))
    line = rule.mark_rule(stroke=PALETTE["accent"], strokeWidth=2.5)
    text = rule.mark_text(align="right", dx=-6, y=8, fill=PALETTE["accent"], fontWeight="bold", fontSize=12)
    named = text.encode(text="label:N", tooltip=alt.value(None))
    return stack([bars, line, named], 220)


def learning_curve(frame: pd.DataFrame, series: Sequence[Series], title: str, tips: Sequence[str]) -> alt.LayerChart:
    """Columns n_rows, score, series, row and the tips."""
    x = alt.X("n_rows:Q", title="training rows", scale=alt.Scale(zero=True), axis=_FEW)
    base = chart_of(frame).encode(x, alt.Y("score:Q", title=title, scale=alt.Scale(zero=False)))
    colour = legend_of(series)
    line = base.mark_line(strokeWidth=2).encode(colour)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(colour, tooltip=_tips(tips))
    return stack([line, points], 260)


def _diagonal(low: float, high: float, x: str, y: str) -> alt.Chart:
    ends = pd.DataFrame({x: [low, high], y: [low, high]})
    line = chart_of(ends).mark_line(stroke=PALETTE["others"], strokeDash=[4, 4], strokeWidth=1.25)
    return line.encode(alt.X(f"{x}:Q"), alt.Y(f"{y}:Q"))


def _tips(names: Sequence[str]) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:N") for name in names]
