"""A result folder for notebooks: what a report needs, and the page's figures as Altair charts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import altair as alt

from gpu_probes.errors import ProbeError
from gpu_probes.report import figures
from gpu_probes.report.figures import Absent, Figure
from gpu_probes.report.load import SavedFiles


@dataclass(frozen=True)
class SavedPlots:
    """Figures of a result folder; a missing one raises a `ProbeError` with the reason."""

    results: SavedFiles

    def heatmap(self, score: str | None = None) -> alt.LayerChart:
        """Layer by position, the best cell marked; `score` is a column of `to_frame()`, by default the CV score."""
        return _chart(figures.heatmap(self.results, score))

    def layers(self, score: str | None = None) -> alt.LayerChart:
        """Score by layer, with the unbiased estimates; `score` as for `heatmap`."""
        return _chart(figures.layers(self.results, score))

    def predictions(self) -> alt.LayerChart:
        """Predicted against actual numbers."""
        return self._draw(figures.predictions)

    def roc(self) -> alt.LayerChart:
        """True against false positive rate."""
        return self._draw(figures.roc)

    def reliability(self) -> alt.LayerChart:
        """Predicted probability against observed frequency."""
        return self._draw(figures.reliability)

    def comparison(self) -> alt.LayerChart:
        """The best probe's biased and unbiased scores, and the baselines."""
        return self._draw(figures.comparison)

    def permutations(self) -> alt.LayerChart:
        """Highest score of each permutation of the labels, and the observed one."""
        return self._draw(figures.permutations)

    def alphas(self) -> alt.LayerChart:
        """Score of the best cell at each alpha."""
        return self._draw(figures.alphas)

    def learning_curve(self) -> alt.LayerChart:
        """Score of the best cell by the number of training rows."""
        return self._draw(figures.learning_curve)

    def _draw(self, make: Callable[[SavedFiles], Figure | Absent]) -> alt.LayerChart:
        return _chart(make(self.results))


class SavedResults(SavedFiles):
    """What a finished training left in its folder, and its figures."""

    @property
    def plot(self) -> SavedPlots:
        """Figures: ``results.plot.heatmap()``, ``results.plot.layers()`` and the others of the page."""
        return SavedPlots(self)


def _chart(made: Figure | Absent) -> alt.LayerChart:
    if isinstance(made, Absent):
        raise ProbeError(f"there is no figure {made.name}: {made.reason}")
    return made.chart
