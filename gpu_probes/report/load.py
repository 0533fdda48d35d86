"""A result folder, read from its files, as a report needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpu_probes.display.notebook import summary_html
from gpu_probes.display.wording import number, position_text
from gpu_probes.report.paper import methods
from gpu_probes.results.documents import Results, read_all_predictions
from gpu_probes.results.folder import Run
from gpu_probes.results.forms import Best, Performance
from gpu_probes.results.inference import BaselineScores, Evidence, Intervals
from gpu_probes.scores.intervals import Interval
from gpu_probes.terms import Cell

if TYPE_CHECKING:
    import pandas as pd
    import xarray

Files = TypeVar("Files", bound="SavedFiles")
_ROWS = {"train_predictions": "train_sample", "test_predictions": "test_sample", "cv_predictions": "train_sample"}
_NO_INTERVALS = Intervals(test_score=None, nested_cv_score=None, best_minus_cell=())


def ends_of(interval: Interval | None) -> tuple[float | None, float | None]:
    """Low and high end; None where they are unknown."""
    return (None, None) if interval is None else (interval.low, interval.high)


@dataclass(frozen=True, eq=False)
class SavedFiles:
    """What a finished training left in its folder.

    Attributes
    ----------
    documents : Results
        Everything in it.
    """

    documents: Results

    @classmethod
    def load(cls: type[Files], folder: str | Path) -> Files:
        """Read a folder.

        Raises
        ------
        ProbeError
            When a file is missing or was changed.
        """
        return cls(Results.load(folder))

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.documents.folder

    @property
    def run(self) -> Run:
        """What ``run.json`` says."""
        return self.documents.run

    @property
    def performance(self) -> Performance:
        """What ``performance.json`` says."""
        return self.documents.performance

    @property
    def best(self) -> Best | None:
        """What ``best_probe_predictions.json`` says, which exists only if a best probe was chosen."""
        return self.documents.best

    @property
    def evidence(self) -> Evidence:
        """What ``inference.json`` says; empty for folders of earlier versions that have none."""
        return self.documents.evidence or Evidence()

    @property
    def intervals(self) -> Intervals:
        """Intervals of the best probe's scores; without ends where there are none."""
        return self.evidence.intervals or _NO_INTERVALS

    @property
    def nested_score(self) -> float | None:
        """The nested CV score; None where there is none."""
        return None if self.evidence.nested_cv is None else self.evidence.nested_cv.score

    @property
    def cells(self) -> pd.DataFrame:
        """A row per cell, in the order of the axes (position, then layer)."""
        return self.documents.cells

    def to_frame(self) -> pd.DataFrame:
        """A tidy table with a row per cell, in the order of the axes (position, then layer)."""
        return self.cells.copy()

    def to_xarray(self) -> xarray.Dataset:
        """As `SweepResult.to_xarray`: scores, probes and predictions with labelled axes."""
        import xarray

        performance, probes = self.performance, self.documents.probes
        axes = {"position": list(performance.positions), "layer": list(performance.layer_indices)}
        shape = tuple(map(len, axes.values()))
        cell = tuple(axes)
        scores = {name: name for name in ("train_score", "test_score", "cv_score")}
        arrays: dict[str, Any] = {
            name: (cell, self.cells[column].to_numpy().reshape(shape))
            for name, column in {**scores, "selected_alpha": "alpha"}.items()
        }
        arrays["reason"] = (cell, self.cells["reason"].fillna("").to_numpy(object).astype(str).reshape(shape))
        grid = performance.alpha_cv_scores
        by_alpha = self.cells["cv_score"].tolist() if grid is None else [list(of.values()) for of in grid.values()]
        arrays["alpha_cv_score"] = ((*cell, "alpha"), np.array(by_alpha, np.float64).reshape(*shape, -1))
        arrays["coef"] = ((*cell, "output", "feature"), probes.coef)
        arrays["intercept"] = ((*cell, "output"), probes.intercept)
        for name, values in read_all_predictions(self.documents).items():
            dims = (name.replace("labels", "sample"),) if name.endswith("labels") else (*cell, _ROWS[name], "output")
            arrays[name] = (dims, values)
        about = {"task_type": performance.task_type, "probe": probes.header.probe, "metric": performance.metric}
        return xarray.Dataset(arrays, {**axes, "alpha": list(performance.alphas)}, about)

    @property
    def label(self) -> str:
        """Name of what was predicted."""
        return self.run.label

    @property
    def methods(self) -> str:
        """How the results came about, in sentences for a paper."""
        return methods(self.documents)

    @property
    def best_cell(self) -> Cell | None:
        """Layer (as in ``layer_indices``) and position of the best probe."""
        return None if self.best is None else self.best.cell

    @property
    def tokens(self) -> Mapping[int | str, str | None]:
        """Token by position; empty where cells were joined across positions."""
        positions, tokens = self.performance.positions, self.run.position_tokens
        numbered = all(isinstance(position, int) for position in positions)
        return dict(zip(positions, tokens, strict=True)) if numbered and len(tokens) == len(positions) else {}

    @property
    def why_no_best(self) -> str:
        """Why `best` is None."""
        if not self.performance.k_fold:
            return "no best probe is chosen without cross-validation: only the test scores would be left to choose by"
        return "no cell has a CV score, so there is no best probe"

    def why_missing(self, name: str) -> str:
        """Why a part of ``inference.json`` is missing or empty."""
        if self.documents.evidence is None:
            return "inference.json is not among the files of this training"
        reason = getattr(getattr(self.evidence, name), "reason", None)
        if reason:
            return str(reason)
        return self.why_no_best if self.best is None else "it is not in inference.json"

    def __repr__(self) -> str:
        """A few lines for the terminal."""
        axes = f"{self.performance.n_layers} layers x {self.performance.n_positions} positions"
        lines = [f"{self.folder}: {self.label}, {self.performance.task_type}, {self.performance.metric_title}, {axes}"]
        if self.best is None or self.best_cell is None:
            return "\n".join([*lines, f"  best: {self.why_no_best}"])
        layer, position = self.best_cell
        where = f"layer {layer}, position {position_text(position, self.tokens.get(position))}"
        scores = f"cv {number(self.best.cv_score)}, test {number(self.best.test_score)}"
        return "\n".join([*lines, f"  best: {where}: {scores}"])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return summary_html(repr(self).splitlines(), self.cells)


def strongest(results: SavedFiles) -> BaselineScores | None:
    """The baseline with the highest test score or, where there are none, the highest CV score."""
    baselines = list((results.evidence.baselines or {}).values())
    for name in ("test_score", "cv_score"):
        scored = [(getattr(one, name), one) for one in baselines if getattr(one, name) is not None]
        if scored:
            return max(scored, key=lambda pair: pair[0])[1]
    return None
