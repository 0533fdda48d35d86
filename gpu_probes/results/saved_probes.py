"""Probes fitted earlier, on other rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from gpu_probes.errors import CellError
from gpu_probes.features.cells import CellSource, axis
from gpu_probes.results.documents import Results, read_best, read_probes
from gpu_probes.results.folder import has_results
from gpu_probes.results.forms import BEST, SavedCoefficients
from gpu_probes.samples.labels import Task, read_labels
from gpu_probes.scores.decisions import predictions_of, score_rows
from gpu_probes.solvers.deciding import decide, row_norms
from gpu_probes.terms import Cell, ProbeKind


@dataclass(frozen=True)
class SavedProbes:
    """The probes of a result folder, and the cell that was best there."""

    layers: tuple[int | str, ...]
    positions: tuple[int | str, ...]
    task: Task
    coef: Float64[np.ndarray, "position layer output feature"]
    intercept: Float64[np.ndarray, "position layer output"]
    best: Cell | None
    probe: ProbeKind

    @classmethod
    def load(cls, folder: Path) -> SavedProbes:
        """Read ``probes.safetensors`` and the best cell's name.

        Raises
        ------
        ProbeError
            When the files are missing, damaged or not of this format.
        """
        if has_results(folder):
            return cls.of(Results.load(folder))
        best = read_best(folder).cell if (folder / BEST).exists() else None
        return cls._made(read_probes(folder), best)

    @classmethod
    def of(cls, results: Results) -> SavedProbes:
        """The probes of a result folder that is read."""
        return cls._made(results.probes, None if results.best is None else results.best.cell)

    @classmethod
    def _made(cls, saved: SavedCoefficients, best: Cell | None) -> SavedProbes:
        header = saved.header
        classes = None if header.classes is None else np.array(header.classes, dtype=np.float64)
        task = Task(header.task_type, classes, header.class_names)
        return cls(header.layers, header.positions, task, saved.coef, saved.intercept, best, header.probe)

    @property
    def metric(self) -> str:
        """Name of the score."""
        return self.task.metric

    def score(self, source: CellSource, labels: Any, cell: Cell) -> float:
        """Score of one cell's probe on all rows of a source; NaN where undefined.

        Raises
        ------
        ProbeError
            When the source does not have the cell, its features, or labels of the task.
        """
        numbers = read_labels(labels, name="labels", n_samples=source.n_samples, names=self.task.names)
        return self.score_numbers(source, numbers, cell)

    def score_numbers(self, source: CellSource, numbers: Float64[np.ndarray, " sample"], cell: Cell) -> float:
        """As `score`, of labels that are read: words are the places of their classes."""
        decision = self.decide(source, cell)
        return score_rows(self.task, numbers, decision, self.coef[self._at(cell)], row_norms(source, cell))

    def predict(self, source: CellSource, cell: Cell) -> Float64[np.ndarray, "sample output"]:
        """Numbers, rates, the probability of the second class, or one probability per class."""
        return predictions_of(self.decide(source, cell), self.task.task_type, self.probe)

    def decide(self, source: CellSource, cell: Cell) -> Float64[np.ndarray, "sample output"]:
        """Decision values: what is ranked."""
        if cell.layer not in axis(source.layers) or cell.position not in axis(source.positions):
            raise CellError(f"the store has no layer {cell.layer}, position {cell.position}; extract it with them")
        if source.n_features != self.coef.shape[-1]:
            raise CellError(
                f"the store has {source.n_features} features and the probe {self.coef.shape[-1]}; give a store of the "
                "model that the probe was trained on"
            )
        at = self._at(cell)
        return decide(source, cell, self.coef[at], self.intercept[at])

    def _at(self, cell: Cell) -> tuple[int, int]:
        return self.positions.index(cell.position), self.layers.index(cell.layer)
