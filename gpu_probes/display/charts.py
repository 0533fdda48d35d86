"""Scores of all cells as figures: a heatmap over layers and positions, and lines by layer.

Charts carry no configuration of their own, so that they can be layered and concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float64

from gpu_probes.display.wording import METRICS, number, one_line, position_text
from gpu_probes.errors import ProbeError

WIDTH = 640
# Okabe and Ito's colours, safe for colour-blind readers; each has one meaning in every figure.
PALETTE = {
    "accent": "#0072b2",
    "others": "#868e96",
    "honest": "#d55e00",
    "baseline": "#009e73",
    "extra": "#cc79a7",
    "ink": "#1b1f24",
    "paper": "#fefefe",
    "undefined": "#e3e6ea",
}
SCORES = {"cv_score": "CV score", "test_score": "test score", "train_score": "train score"}
_CROSS = "\N{MULTIPLICATION SIGN}"
_TIPS = ["layer", "position", *SCORES.values(), "alpha", "note"]


@dataclass(frozen=True)
class Series:
    """A name in a legend and its colour in the palette."""

    name: str
    colour: str


@dataclass(frozen=True)
class Reference:
    """A score to compare the cells with, and its interval where known; at one layer, or across all of them."""

    series: Series
    value: float
    low: float | None = None
    high: float | None = None
    layer: int | str | None = None


def heatmap(
    cells: pd.DataFrame,
    *,
    metric: str,
    score: str = "cv_score",
    best: tuple[Any, Any] | None = None,
    tokens: Mapping[Any, str | None] | None = None,
) -> alt.LayerChart:
    """Layer by position; cells without a score are grey and crossed out, the best has a dot.

    Parameters
    ----------
    cells : DataFrame
        A row per cell, as `SweepResult.to_frame` makes it.
    metric : str
        Name of the metric.
    score : str
        Column to show.
    best : (layer, position), optional
    tokens : mapping of position to token, optional
    """
    frame, values = readable(cells, tokens), column_of(cells, score)
    frame["score"], frame["row"] = values, frame["position"]
    x = alt.X("layer:N", title="layer", sort=None, scale=_axis(frame, "layer"), axis=alt.Axis(labelAngle=0))
    y = alt.Y("position:N", title="position", sort=None, scale=_axis(frame, "position"))
    legend = alt.Legend(orient="top", gradientLength=160, tickCount=4, titleLimit=300)
    colour = alt.Color("score:Q", scale=alt.Scale(scheme="viridis"), title=score_title(score, metric), legend=legend)
    undefined, scored, at_best = (
        rows_where(frame, kept) for kept in (np.isnan(values), ~np.isnan(values), _is(cells, best))
    )
    paper = PALETTE["paper"]
    drawn = [
        _cells(undefined, x, y).mark_rect(fill=PALETTE["undefined"], stroke=paper, strokeWidth=0.5),
        _cells(undefined, x, y).mark_text(text=_CROSS, fontSize=13, fill=PALETTE["others"]),
        _cells(scored, x, y).mark_rect(stroke=paper, strokeWidth=0.5).encode(colour),
        _cells(at_best, x, y).mark_point(
            shape="circle", size=70, filled=True, fill="#111111", stroke="#ffffff", strokeWidth=2, opacity=1
        ),
    ]
    return stack([part for part in drawn if _has_rows(part)], 28 * len(set(frame["position"])))


def layers(
    cells: pd.DataFrame,
    *,
    metric: str,
    score: str = "cv_score",
    best: tuple[Any, Any] | None = None,
    tokens: Mapping[Any, str | None] | None = None,
    references: Sequence[Reference] = (),
) -> alt.LayerChart:
    """Score by layer, one line per position, that of the best cell in front.

    Parameters
    ----------
    cells, metric, score, best, tokens
        As for `heatmap`.
    references : sequence of Reference
        Other scores to draw.
    """
    frame, values = readable(cells, tokens), column_of(cells, score)
    frame["score"], frame["place"], frame["row"] = values, cells["layer"], frame["position"]
    own = np.array([best is not None and position == best[1] for position in cells["position"]])
    name = next((position for position, ours in zip(frame["position"], own, strict=True) if ours), "")
    highlighted = Series(f"position {name}", "accent")
    others = Series("other positions" if own.any() else "positions", "others")
    frame["series"] = np.where(own, highlighted.name, others.name)
    used = [*([highlighted] if own.any() else []), *([] if own.all() else [others]), *(r.series for r in references)]
    colour = legend_of(used)
    x, y = _layer_axis(cells, frame), alt.Y("score:Q", title=score_title(score, metric), scale=alt.Scale(zero=False))
    drawn: list[alt.Chart | alt.LayerChart] = [_reference(reference, x, y, colour) for reference in references]
    for kept, width, size in ((~own, 1.25, 14), (own, 2.5, 36)):
        part = rows_where(frame, kept & ~np.isnan(values))
        drawn.append(chart_of(part).encode(x, y, colour, detail="position:N").mark_line(strokeWidth=width))
        drawn.append(_cells(part, x, y).encode(colour).mark_point(filled=True, size=size, opacity=1))
    drawn.append(
        _cells(rows_where(frame, _is(cells, best)), x, y).mark_point(
            size=110, filled=True, fill=PALETTE["accent"], stroke=PALETTE["paper"], strokeWidth=2, opacity=1
        )
    )
    return stack([part for part in drawn if isinstance(part, alt.LayerChart) or _has_rows(part)] or drawn[:1], 320)


def readable(cells: pd.DataFrame, tokens: Mapping[Any, str | None] | None = None) -> pd.DataFrame:
    """The table of cells as strings, a row per cell, for tooltips and readers."""
    known = tokens or {}
    texts: dict[str, list[str]] = {
        "layer": [one_line(layer) for layer in cells["layer"]],
        "position": [position_text(position, known.get(position)) for position in cells["position"]],
        **{title: [number(value) for value in cells[name]] for name, title in SCORES.items()},
        "alpha": [number(value, "g") for value in cells["alpha"]],
        "note": [reason if isinstance(reason, str) else "" for reason in cells["reason"]],
    }
    return pd.DataFrame(texts, index=cells.index)


def score_title(score: str, metric: str) -> str:
    """Such as "CV score (Spearman)"; columns that are no scores as they are."""
    title = {**SCORES, "nested_cv_score": "nested CV score"}.get(score)
    return score if title is None else f"{title} ({METRICS.get(metric, metric)})"


def column_of(cells: pd.DataFrame, name: str) -> Float64[np.ndarray, " cell"]:
    """A column of numbers.

    Raises
    ------
    ProbeError
        There is none of that name.
    """
    numeric = list(cells.select_dtypes("number").columns)
    if name not in numeric:
        raise ProbeError(f"score={name!r} is no column of numbers; give one of {', '.join(numeric)}", argument="score")
    return cells[name].to_numpy(np.float64)


def legend_of(series: Sequence[Series]) -> alt.Color:
    """Colours of a field `series`, stacked above the chart so that they fit on a phone."""
    unique = {each.name: PALETTE[each.colour] for each in series}
    scale = alt.Scale(domain=list(unique), range=list(unique.values()))
    legend = alt.Legend(title=None, orient="top", columns=1, symbolType="circle", symbolOpacity=1, labelLimit=300)
    return alt.Color("series:N", scale=scale, legend=legend)


def chart_of(frame: pd.DataFrame) -> alt.Chart:
    """A chart with a table's values inline: Altair refuses data frames of more than 5,000 rows."""
    values: Any = alt.to_values(frame)["values"]
    return alt.Chart(alt.InlineData(values=values))


def stack(layers: Sequence[alt.Chart | alt.LayerChart], height: int) -> alt.LayerChart:
    """Charts over one another, the last on top."""
    return alt.LayerChart(layer=list(layers)).properties(width=WIDTH, height=height)


def _has_rows(chart: alt.Chart) -> bool:
    return bool(chart.data.values)


def _reference(reference: Reference, x: alt.X, y: alt.Y, colour: alt.Color) -> alt.LayerChart:
    """A dashed line across all layers with its interval as a band, or a point with a bar at one layer."""
    known = reference.low is not None and reference.high is not None
    text = f"[{number(reference.low)}, {number(reference.high)}]" if known else "unknown"
    row = {"series": reference.series.name, "row": reference.series.name, "score": reference.value}
    row |= {"value": number(reference.value), "95 % interval": text, "low": reference.low, "high": reference.high}
    tips = [alt.Tooltip("series:N", title="what"), "value:N", "95 % interval:N"]
    if reference.layer is None:
        base = chart_of(pd.DataFrame([row])).encode(colour)
        band = [base.mark_rect(opacity=0.12).encode(y=alt.Y("low:Q"), y2="high:Q")] if known else []
        line = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.75).encode(y, tooltip=tips)
        return alt.LayerChart(layer=[*band, line])
    at = {"place": reference.layer, "layer": one_line(reference.layer)}
    base = chart_of(pd.DataFrame([row | at])).encode(x, colour)
    bar = [base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")] if known else []
    point = base.mark_point(shape="diamond", filled=True, size=100, opacity=1).encode(y, tooltip=tips)
    return alt.LayerChart(layer=[*bar, point])


def _cells(frame: pd.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    """Marks whose tooltips show everything about their cell."""
    return chart_of(frame).encode(x, y, tooltip=[f"{name}:N" for name in _TIPS])


def _layer_axis(cells: pd.DataFrame, names: pd.DataFrame) -> alt.X:
    """Numeric layers to scale, so that missing ones leave a gap; names one by one."""
    if pd.api.types.is_numeric_dtype(cells["layer"]):
        scale = alt.Scale(zero=False, nice=False, padding=8)
        return alt.X("place:Q", title="layer", scale=scale, axis=alt.Axis(tickMinStep=1, format="d"))
    return alt.X("layer:N", title="layer", sort=None, scale=_axis(names, "layer"), axis=alt.Axis(labelAngle=0))


def _axis(frame: pd.DataFrame, column: str) -> alt.Scale:
    """The values in their order of appearance."""
    return alt.Scale(domain=list(dict.fromkeys(frame[column])))


def _is(cells: pd.DataFrame, best: tuple[Any, Any] | None) -> np.ndarray:
    return np.array(
        [(layer, position) == best for layer, position in zip(cells["layer"], cells["position"], strict=True)]
    )


def rows_where(frame: pd.DataFrame, kept: Any) -> pd.DataFrame:
    """Rows of a table, by a mask."""
    return pd.DataFrame(frame.loc[kept])
