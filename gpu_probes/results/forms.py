"""The documents that `gpu_probes.results.saving` writes, as frozen objects, and all of a result folder together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64

from gpu_probes.display.wording import class_name, metric_title
from gpu_probes.forms import OMITTED, Columns, Count, Flag, Number, Penalty, Place, Score, Text, Whole
from gpu_probes.results.folder import Run
from gpu_probes.results.inference import Evidence
from gpu_probes.terms import Cell, ProbeKind, TaskType

if TYPE_CHECKING:
    import pandas as pd

PERFORMANCE, BEST, CARD = "performance.json", "best_probe_predictions.json", "probe.json"
CELLS, PROBES, ALL_PREDICTIONS = "cells.parquet", "probes.safetensors", "all_predictions.json"
Metric = Literal["spearman", "roc_auc"]
Grid = tuple[tuple[Score | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SplitScores:
    """Scores of every cell, [position][layer]; None for a split that there is not."""

    train: Grid
    test: Grid | None
    cv: Grid | None


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What ``performance.json`` says; `classes`, `seed` and `probe` are not in all folders of format 1.

    `class_names` are the names of the classes where they are words, and `classes` then their places. `positive_class`
    is the one of two that is scored, and `averaging` says how the scores of more than two become one.
    """

    layer_performance: SplitScores
    layer_indices: tuple[Place, ...]
    positions: tuple[Place, ...]
    n_layers: Count
    n_positions: Count
    d_model: Count
    task_type: TaskType
    metric: Metric
    k_fold: Flag
    n_folds: Count | None
    alpha: Penalty
    fit_intercept: Flag
    standardize: Flag
    alpha_grid: tuple[Penalty, ...] | None
    selected_alphas: dict[Text, Penalty | None]
    alpha_cv_scores: dict[Text, dict[Text, Score | None]] | None = field(default=None, metadata=OMITTED)
    undefined: dict[Text, Text]
    status_counts: dict[Text, Count]
    classes: tuple[Number, ...] | None = None
    class_names: tuple[Text, ...] | None = field(default=None, metadata=OMITTED)
    positive_class: Text | None = field(default=None, metadata=OMITTED)
    averaging: Literal["one-vs-rest, macro"] | None = field(default=None, metadata=OMITTED)
    seed: Whole | None = None
    probe: ProbeKind | None = None

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas that were fitted."""
        return (self.alpha,) if self.alpha_grid is None else self.alpha_grid

    @property
    def names_of_classes(self) -> tuple[str, ...]:
        """How the classes are called, in their order: words, or numbers with all digits; empty for regression."""
        return self.class_names or tuple(map(class_name, self.classes or ()))

    @property
    def metric_title(self) -> str:
        """The metric as readers know it, with the averaging over more than two classes."""
        return metric_title(self.metric, len(self.classes or ()))

    def key(self, position_index: int, layer_index: int) -> str:
        """Name of a cell in the files: the position's value, the layer's place on the axis."""
        return f"pos_{self.positions[position_index]}_layer_{layer_index}"


@dataclass(frozen=True, kw_only=True)
class Best:
    """What ``best_probe_predictions.json`` says; rows in the stores' order, without those that were dropped.

    `test_ranked` and `cv_ranked`, and `train_ranked` of a binomial probe, order rows of classes and of its rates as
    predictions do, and tell those apart that round to 1.
    """

    best_position: Place
    best_position_idx: Count
    best_layer: Count
    best_layer_number: Place
    cv_score: Score
    test_score: Score | None
    selected_alpha: Penalty
    alpha_cv_scores: dict[Text, Score | None] | None
    train_actual: tuple[Number, ...]
    test_actual: tuple[Number, ...] | None
    train_predictions: Columns | None
    test_predictions: Columns | None
    cv_predictions: Columns | None
    train_ranked: Columns | None = field(default=None, metadata=OMITTED)
    test_ranked: Columns | None = field(default=None, metadata=OMITTED)
    cv_ranked: Columns | None = field(default=None, metadata=OMITTED)
    probe_weights: Columns
    task_type: TaskType
    metric: Metric

    @property
    def cell(self) -> Cell:
        """Its layer and position."""
        return Cell(self.best_layer_number, self.best_position)


@dataclass(frozen=True, kw_only=True)
class ProbesHeader:
    """What ``probes.safetensors`` says of its coefficients, whose shape is [position, layer, output, feature]."""

    format_version: Literal[1]
    axes: tuple[Literal["position"], Literal["layer"], Literal["output"], Literal["feature"]]
    positions: tuple[Place, ...]
    layers: tuple[Place, ...]
    task_type: TaskType
    probe: ProbeKind
    metric: Metric
    classes: tuple[Number, ...] | None
    class_names: tuple[Text, ...] | None = None
    selected_alpha: tuple[tuple[Penalty | None, ...], ...]
    status: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True, eq=False)
class SavedCoefficients:
    """``probes.safetensors``: what it says, and its arrays."""

    header: ProbesHeader
    coef: Float64[np.ndarray, "position layer output feature"]
    intercept: Float64[np.ndarray, "position layer output"]


@dataclass(frozen=True, eq=False)
class Documents:
    """A result folder.

    Attributes
    ----------
    folder : Path
    run : Run
    performance : Performance
    best : Best or None
        None where no best probe was chosen.
    evidence : Evidence or None
        None where ``inference.json`` is not among the files of a folder of format 1.
    cells : DataFrame
        A row per cell, in the order of the axes (position, then layer).
    probes : SavedCoefficients
    """

    folder: Path
    run: Run
    performance: Performance
    best: Best | None
    evidence: Evidence | None
    cells: pd.DataFrame
    probes: SavedCoefficients
