"""Axes, letters and colours of a chart: as CSS variables on a page, which has a light and a dark scheme, or as such."""

from __future__ import annotations

from typing import Any

import altair as alt

from gpu_probes.display.charts import PALETTE

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_TEXTS = {"text": "#3d444d", "muted": "#656d76", "grid": "#e6e8eb"}


def page_spec(chart: alt.LayerChart) -> dict[str, Any]:
    """A chart as Vega-Lite for a page: as wide as its place, colours taken from the page's style."""
    spec = _unconfigured(chart)
    shown = {key: value if key == "datasets" else _exchange(value) for key, value in spec.items()}
    colours = {name: f"var(--{name})" for name in _TEXTS}
    return {**shown, "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}} | {
        "config": _config(colours, _FONT)
    }


def picture_spec(chart: alt.LayerChart) -> dict[str, Any]:
    """A chart as Vega-Lite for a file on white."""
    return {**_unconfigured(chart), "background": "#ffffff", "padding": 12, "config": _config(_TEXTS, "sans-serif")}


def _unconfigured(chart: alt.LayerChart) -> dict[str, Any]:
    spec = chart.to_dict()
    spec.pop("config", None)
    return spec


def _exchange(value: Any) -> Any:
    """Colours of the palette for the page's variables, anywhere in a specification."""
    if isinstance(value, dict):
        return {key: _exchange(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_exchange(one) for one in value]
    return _VARIABLES.get(value, value) if isinstance(value, str) else value


_VARIABLES = {colour: f"var(--{name})" for name, colour in PALETTE.items()}


def _config(colours: dict[str, str], font: str) -> dict[str, Any]:
    text, muted, grid = colours["text"], colours["muted"], colours["grid"]
    return {
        "background": None,
        "font": font,
        # A reader of the screen gets the caption, the table and the marks one by one, not every path of the picture.
        "aria": False,
        "view": {"stroke": None},
        "axis": {
            "domain": False,
            "ticks": False,
            "gridColor": grid,
            "labelColor": muted,
            "titleColor": text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelPadding": 6,
            "titlePadding": 10,
            "labelOverlap": "greedy",
            "labelSeparation": 5,
            "labelLimit": 150,
        },
        "axisBand": {"grid": False},
        "axisX": {"grid": False, "labelFlush": False},
        "legend": {
            "labelColor": text,
            "titleColor": text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "gradientStrokeColor": None,
            "offset": 12,
        },
        "text": {"fill": text},
    }
