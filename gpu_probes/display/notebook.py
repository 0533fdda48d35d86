"""Results in a notebook: a short card, and figures on demand."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpu_probes.display.wording import number, visible
from gpu_probes.errors import extra

if TYPE_CHECKING:
    import altair
    import pandas as pd


@dataclass(frozen=True, eq=False)
class CellPlots:
    """Figures of the scores of all cells, as Altair charts.

    Attributes
    ----------
    cells : DataFrame
        A row per cell.
    metric : str
    best : (layer, position) or None
    """

    cells: pd.DataFrame
    metric: str
    best: tuple[Any, Any] | None

    def heatmap(self, score: str = "cv_score") -> altair.LayerChart:
        """Layer by position, the best cell marked; `score` is a column of `to_frame()`."""
        return _charts().heatmap(self.cells, metric=self.metric, score=score, best=self.best)

    def layers(self, score: str = "cv_score") -> altair.LayerChart:
        """Score by layer, one line per position."""
        return _charts().layers(self.cells, metric=self.metric, score=score, best=self.best)


def _charts() -> Any:
    # Altair takes a second to import, and may not be there: only those who plot wait for it.
    with extra("report", "altair"):
        return import_module("gpu_probes.display.charts")


def summary_html(lines: Sequence[str], cells: pd.DataFrame) -> str:
    """HTML of a few lines and a table with the best cell of every position; all text is escaped."""
    first, *others = (html.escape(visible(line)) for line in lines)
    text = "".join(f"<br>{line}" for line in others)
    return f"<p><strong>{first}</strong>{text}</p>{_by_position(cells)}"


def _by_position(cells: pd.DataFrame) -> str:
    scored = cells[cells["cv_score"].notna()]
    if not len(scored):
        return "<p>No cell has a CV score.</p>"
    rows = scored.loc[scored.groupby("position", sort=False)["cv_score"].idxmax()]
    shown = rows[["position", "layer", "cv_score", "test_score", "alpha"]].copy()
    for column in ("position", "layer"):
        shown[column] = shown[column].map(visible)
    for column, spec in (("cv_score", ".3f"), ("test_score", ".3f"), ("alpha", "g")):
        shown[column] = [number(value, spec) for value in shown[column]]
    return shown.to_html(index=False, escape=True, border=0)
