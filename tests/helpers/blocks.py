"""One cell as the solvers take it."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import torch

from gpu_probes import ArrayCellSource, Cell
from gpu_probes.features.rows import Rows
from gpu_probes.samples.folds import FoldPlan
from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.solvers.objective import ProbeFits


def block_of(
    features: np.ndarray,
    folds: FoldPlan,
    device: str = "cpu",
    weights: np.ndarray | None = None,
    chunk_rows: int | None = None,
) -> tuple[Rows, TrainingSets]:
    """Rows and training sets of one cell ``[sample, feature]``."""
    source = ArrayCellSource(features[:, None, None])
    on = torch.device(device)
    chunk_rows = len(features) if chunk_rows is None else chunk_rows
    rows = Rows(source, [Cell(0, -1)], folds.fold_of_sample, folds.n_lots, chunk_rows=chunk_rows, device=on)
    return rows, TrainingSets.of(folds, weights, on)


def only_cell(fits: ProbeFits) -> SimpleNamespace:
    """The same without the axis of cells."""
    return SimpleNamespace(**{field.name: getattr(fits, field.name)[0] for field in fields(fits)})
