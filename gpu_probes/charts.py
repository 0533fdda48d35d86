"""Scores of all cells as figures: a heatmap over layers and positions, and lines along the layers.

Charts hold no configuration of their own, so that they can be layered and joined further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from gpu_probes.wording import METRICS, number, one_line, position_text

WIDTH = 640
# Okabe and Ito's colours, told apart by all; each stands for one meaning on every figure.
PALETTE = {
    "accent": "#0072b2",
    "others": "#9aa1a9",
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
    """A name in a legend, and which colour of the palette it has."""

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
    frame = readable(cells, tokens).assign(score=cells[score].to_numpy(), row=lambda f: f["position"])
    x = alt.X("layer:N", title="layer", sort=None, scale=_axis(frame["layer"]), axis=alt.Axis(labelAngle=0))
    y = alt.Y("position:N", title="position", sort=None, scale=_axis(frame["position"]))
    legend = alt.Legend(orient="top", gradientLength=160, tickCount=4, titleLimit=300)
    colour = alt.Color("score:Q", scale=alt.Scale(scheme="viridis"), title=score_title(score, metric), legend=legend)
    scored, at_best = frame["score"].notna(), _is(cells, best)
    layers = [
        _chart(frame[~scored], x, y).mark_rect(fill=PALETTE["undefined"], stroke=PALETTE["paper"], strokeWidth=0.5),
        _chart(frame[~scored], x, y).mark_text(text=_CROSS, fontSize=13, fill=PALETTE["others"]),
        _chart(frame[scored], x, y).mark_rect(stroke=PALETTE["paper"], strokeWidth=0.5).encode(colour),
        _chart(frame[at_best], x, y).mark_point(
            shape="circle", size=70, filled=True, fill="#111111", stroke="#ffffff", strokeWidth=2, opacity=1
        ),
    ]
    return alt.layer(*(layer for layer in layers if len(layer.data))).properties(
        width=WIDTH, height=28 * frame["position"].nunique()
    )


def layers(
    cells: pd.DataFrame,
    *,
    metric: str,
    score: str = "cv_score",
    best: tuple[Any, Any] | None = None,
    tokens: Mapping[Any, str | None] | None = None,
    references: Sequence[Reference] = (),
) -> alt.LayerChart:
    """Score along the layers, a line for each position, that of the best cell in front.

    Parameters
    ----------
    cells, metric, score, best, tokens
        As for `heatmap`.
    references : sequence of Reference
        Other scores to draw into it.
    """
    frame = readable(cells, tokens).assign(score=cells[score].to_numpy(), place=cells["layer"].to_numpy())
    frame["row"] = frame["position"]
    ours = cells["position"].to_numpy() == (None if best is None else best[1])
    highlighted = Series("position " + _name(frame, ours), "accent")
    others = Series("other positions" if ours.any() else "positions", "others")
    frame["series"] = [highlighted.name if own else others.name for own in ours]
    used = [*([highlighted] if ours.any() else []), *([] if ours.all() else [others]), *(r.series for r in references)]
    colour = legend_of(used)
    x = _layer_axis(cells["layer"])
    y = alt.Y("score:Q", title=score_title(score, metric), scale=alt.Scale(zero=False))
    shown = frame[frame["score"].notna()]
    own = ours[frame["score"].notna()]
    drawn = [_reference(reference, frame, x, y, colour) for reference in references]
    for part, width in ((shown[~own], 1.25), (shown[own], 2.5)):
        drawn.append(_chart(part, x, y, tips=False).mark_line(strokeWidth=width).encode(colour, detail="position:N"))
        size = 14 if width < 2 else 36
        drawn.append(_chart(part, x, y).mark_point(filled=True, size=size, opacity=1).encode(colour))
    at_best = frame[_is(cells, best)]
    drawn.append(
        _chart(at_best, x, y).mark_point(
            size=110, filled=True, fill=PALETTE["accent"], stroke=PALETTE["paper"], strokeWidth=2, opacity=1
        )
    )
    kept = [layer for layer in drawn if isinstance(layer, alt.LayerChart) or len(layer.data)]
    return alt.layer(*kept or [_chart(frame, x, y, tips=False).mark_point()]).properties(width=WIDTH, height=320)


def readable(cells: pd.DataFrame, tokens: Mapping[Any, str | None] | None = None) -> pd.DataFrame:
    """The table of cells as texts, a row per cell, for tooltips and readers."""
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
    """Such as "CV score (Spearman)"."""
    return f"{SCORES.get(score, score)} ({METRICS.get(metric, metric)})"


def legend_of(series: Sequence[Series]) -> alt.Color:
    """Colours of a field `series`, one under the other above the chart so that they fit on a phone."""
    unique = {each.name: PALETTE[each.colour] for each in series}
    scale = alt.Scale(domain=list(unique), range=list(unique.values()))
    legend = alt.Legend(title=None, orient="top", columns=1, symbolType="circle", symbolOpacity=1, labelLimit=300)
    return alt.Color("series:N", scale=scale, legend=legend)


def _reference(reference: Reference, frame: pd.DataFrame, x: alt.X, y: alt.Y, colour: alt.Color) -> alt.LayerChart:
    """A dashed line across all layers with its interval as a band, or a point with a bar at one layer."""
    known = reference.low is not None and reference.high is not None
    text = f"[{number(reference.low)}, {number(reference.high)}]" if known else "not known"
    row = {"series": reference.series.name, "row": reference.series.name, "score": reference.value}
    row |= {"value": number(reference.value), "95 % interval": text, "low": reference.low, "high": reference.high}
    tips = [alt.Tooltip("series:N", title="what"), "value:N", "95 % interval:N"]
    if reference.layer is None:
        base = alt.Chart(pd.DataFrame([row])).encode(colour)
        band = [base.mark_rect(opacity=0.12).encode(y=alt.Y("low:Q"), y2="high:Q")] if known else []
        line = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.75).encode(y, tooltip=tips)
        return alt.layer(*band, line)
    base = alt.Chart(pd.DataFrame([row | {"place": reference.layer}])).encode(x, colour)
    bar = [base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")] if known else []
    point = base.mark_point(shape="diamond", filled=True, size=100, opacity=1).encode(y, tooltip=tips)
    return alt.layer(*bar, point)


def _chart(frame: pd.DataFrame, x: alt.X, y: alt.Y, *, tips: bool = True) -> alt.Chart:
    chart = alt.Chart(frame).encode(x, y)
    return chart.encode(tooltip=[f"{name}:N" for name in _TIPS]) if tips else chart


def _layer_axis(values: pd.Series) -> alt.X:
    """Numbers to scale, so that layers left out leave a gap; names one by one."""
    if pd.api.types.is_numeric_dtype(values):
        scale = alt.Scale(zero=False, nice=False, padding=8)
        return alt.X("place:Q", title="layer", scale=scale, axis=alt.Axis(tickMinStep=1, format="d"))
    return alt.X("place:N", title="layer", sort=None, scale=_axis(values), axis=alt.Axis(labelAngle=0))


def _axis(values: pd.Series) -> alt.Scale:
    """The values in the order in which they come."""
    return alt.Scale(domain=list(dict.fromkeys(values)))


def _is(cells: pd.DataFrame, best: tuple[Any, Any] | None) -> pd.Series:
    if best is None:
        return pd.Series(False, index=cells.index)
    return (cells["layer"] == best[0]) & (cells["position"] == best[1])


def _name(frame: pd.DataFrame, rows: Any) -> str:
    return str(frame.loc[rows, "position"].iloc[0]) if rows.any() else ""
