"""Vega's JavaScript, and its pictures, out of vl-convert: no browser, no network."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import altair as alt
import vl_convert

_SCALE = 2.0
# The version of Vega-Lite that Altair writes for: vl-convert holds several, named like v6_1.
_VERSION = "_".join(alt.SCHEMA_VERSION.split(".")[:2])


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines ``vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VERSION)


def svg(spec: dict[str, Any]) -> str:
    """Draw a Vega-Lite specification."""
    return vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=_VERSION)


def png(spec: dict[str, Any]) -> bytes:
    """Draw a Vega-Lite specification, two pixels for each of its units."""
    return vl_convert.vegalite_to_png(json.dumps(spec), vl_version=_VERSION, scale=_SCALE)


def pdf(spec: dict[str, Any]) -> bytes:
    """Draw a Vega-Lite specification as vectors on a page of its size."""
    return vl_convert.vegalite_to_pdf(json.dumps(spec), vl_version=_VERSION)
