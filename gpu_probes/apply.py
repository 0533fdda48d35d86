"""Probes that were fitted earlier, on other rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from safetensors import SafetensorError, safe_open

from gpu_probes import scoring
from gpu_probes.cells import Cell, CellSource, axis
from gpu_probes.errors import CellError, ProbeError
from gpu_probes.folder import check_file, read_document
from gpu_probes.labels import Task, read_labels
from gpu_probes.objective import SigmoidLoss, SoftmaxLoss, TaskType


@dataclass(frozen=True)
class SavedProbes:
    """The probes of a result folder, and the cell that was best there."""

    layers: tuple[int | str, ...]
    positions: tuple[int | str, ...]
    task: Task
    coef: Float64[np.ndarray, "position layer output feature"]
    intercept: Float64[np.ndarray, "position layer output"]
    best: Cell | None

    @classmethod
    def load(cls, folder: Path) -> SavedProbes:
        """Read ``probes.safetensors`` and the best cell's name.

        Raises
        ------
        ProbeError
            When the files are missing, damaged or not of this format.
        """
        path = folder / "probes.safetensors"
        check_file(path)
        try:
            with safe_open(path, framework="numpy") as file:
                about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                coef, intercept = file.get_tensor("coef"), file.get_tensor("intercept")
            classes = about["classes"]
            task = Task(about["task_type"], None if classes is None else np.array(classes, dtype=np.float64))
            layers, positions = tuple(about["layers"]), tuple(about["positions"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ProbeError(f"{path} does not hold probes of probesweep train ({error}); train again") from error
        if coef.shape[:2] != (len(positions), len(layers)) or intercept.shape != coef.shape[:3]:
            raise ProbeError(f"{path}: shapes {coef.shape} and {intercept.shape} do not go with its axes; train again")
        return cls(layers, positions, task, coef, intercept, _read_best(folder))

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
        numbers = read_labels(labels, name="labels", n_samples=source.n_samples)
        decision = self.decide(source, cell)
        return score_rows(self.task, numbers, decision, self.coef[self._at(cell)], row_norms(source, cell))

    def predict(self, source: CellSource, cell: Cell) -> Float64[np.ndarray, "sample output"]:
        """Numbers, the probability of the second class, or one probability per class."""
        return predictions_of(self.decide(source, cell), self.task.task_type)

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


def decide(
    source: CellSource,
    cell: Cell,
    coef: Float64[np.ndarray, "output feature"],
    intercept: Float64[np.ndarray, " output"],
) -> Float64[np.ndarray, "sample output"]:
    """Decision values of every row of a cell."""
    # Rows that are not finite decide nothing, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([_widened(block) @ coef.T + intercept for _, block in source.cell_blocks(*cell)])


def row_norms(source: CellSource, cell: Cell) -> Float64[np.ndarray, " sample"]:
    """Euclidean length of every row of a cell."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([np.linalg.norm(_widened(block), axis=1) for _, block in source.cell_blocks(*cell)])


def score_rows(
    task: Task,
    labels: Float64[np.ndarray, " sample"],
    decision: Float64[np.ndarray, "sample output"],
    coef: Float64[np.ndarray, "output feature"],
    norms: Float64[np.ndarray, " sample"],
) -> float:
    """The sweep's score of one probe's decision values; NaN where it is undefined, as there.

    Parameters
    ----------
    task : Task
    labels : ndarray [sample]
    decision : ndarray [sample, output]
    coef : ndarray [output, feature]
        What the decision values were computed with.
    norms : ndarray [sample]
        Of the rows.
    """
    targets = torch.from_numpy(task.targets(labels, "labels").copy())
    if not scoring.labels_rank(task.task_type, targets):
        return float("nan")
    values, weights = (torch.from_numpy(each)[None, None] for each in (decision, coef))
    largest = torch.tensor([norms.max()])
    scores, _ = scoring.score_decision(task.task_type, targets[None, None], values, weights, largest)
    return float(scores)


def is_flat(
    decision: Float64[np.ndarray, "sample output"],
    coef: Float64[np.ndarray, "output feature"],
    norms: Float64[np.ndarray, " sample"],
) -> bool:
    """Whether decision values differ by no more than rounding, so that no score is defined; as `score_rows`."""
    values, weights = (torch.from_numpy(each)[None, None] for each in (decision, coef))
    level = scoring.rounding_level(torch.tensor([norms.max()]), weights)
    return bool(scoring.is_flat(values, level))


def predictions_of(
    decision: Float64[np.ndarray, "*batch sample output"], task_type: TaskType
) -> Float64[np.ndarray, "*batch sample output"]:
    """What users see: numbers as they are, probabilities of classes."""
    if task_type == "regression":
        return decision
    return (SigmoidLoss() if decision.shape[-1] == 1 else SoftmaxLoss()).predictions(torch.tensor(decision)).numpy()


def ranked(decision: Float64[np.ndarray, "sample output"]) -> Float64[np.ndarray, "sample output"]:
    """What scores rank: decision values, and each class's log odds where there are more than two."""
    return scoring.ranked(torch.tensor(decision)).numpy()


def one_column(values: Float64[np.ndarray, "sample output"]) -> Shaped[np.ndarray, "sample ..."]:
    """Values of a single output as [sample]; of several as they are."""
    return values[:, 0] if values.shape[1] == 1 else values


def _widened(block: Shaped[np.ndarray, "row feature"]) -> Float64[np.ndarray, "row feature"]:
    return block.astype(np.float64)


def _read_best(folder: Path) -> Cell | None:
    path = folder / "best_probe_predictions.json"
    if not path.exists():
        return None
    best = read_document(path)
    return Cell(best["best_layer_number"], best["best_position"])
