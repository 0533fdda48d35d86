"""Scores of probes on other stores than those they were trained and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_probes.errors import ProbeError
from gpu_probes.features.cells import CellSource
from gpu_probes.features.combine import combine
from gpu_probes.results.documents import Results
from gpu_probes.results.encoding import null_if_nan
from gpu_probes.results.folder import Run, has_results
from gpu_probes.results.saved_probes import SavedProbes
from gpu_probes.terms import Cell

if TYPE_CHECKING:
    import pandas as pd

Json = Any


@dataclass(frozen=True)
class FinishedTraining:
    """A result folder, its probes, and its request."""

    results: Results
    probes: SavedProbes

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.results.folder

    @property
    def run(self) -> Run:
        """What ``run.json`` says."""
        return self.results.run

    @property
    def label(self) -> str:
        """Name of the label."""
        return self.run.label


def find_trainings(folder: Path) -> list[FinishedTraining]:
    """Read a result folder, or all result folders in a folder.

    Raises
    ------
    ProbeError
        When there is none, or one cannot be read.
    """
    folders = [folder] if has_results(folder) else sorted(filter(has_results, folder.glob("*/")))
    if not folders:
        raise ProbeError(f"{folder} holds no finished training; give an output_dir=... of a training")
    return [FinishedTraining(each, SavedProbes.of(each)) for each in map(Results.load, folders)]


def score_all(training: FinishedTraining, store: CellSource, labels: pd.Series) -> dict[str, Json]:
    """Score every probe on all rows of a store, ``[position][layer]``; None where undefined."""
    probes, source = training.probes, combine(store, training.run.request.options.get("join"))
    grid = [
        [null_if_nan(probes.score(source, labels, Cell(layer, position))) for layer in probes.layers]
        for position in probes.positions
    ]
    best = probes.best
    chosen = None if best is None else grid[probes.positions.index(best.position)][probes.layers.index(best.layer)]
    return {"metric": probes.metric, "best": chosen, "scores": grid}


def tabulate(
    trainings: Sequence[FinishedTraining], stores: Sequence[str], scores: Sequence[Sequence[dict[str, Json]]]
) -> str:
    """The best probes' scores, a row for each training and a column for each store."""
    import pandas as pd

    rows = []
    for training, row in zip(trainings, scores, strict=True):
        best, metric = training.probes.best, training.probes.metric
        where = "no best probe" if best is None else f"layer {best.layer}, position {best.position}"
        rows.append([f"{training.folder} ({where}; {metric})", *(_text(one["best"]) for one in row)])
    return pd.DataFrame(rows, columns=pd.Index(["probe", *stores])).to_string(index=False)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
