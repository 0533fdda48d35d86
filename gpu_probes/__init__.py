"""Linear probes at every (layer, position) of a language model at once."""

from gpu_probes.baselines import score_number
from gpu_probes.cells import ArrayCellSource, Cell, CellSource
from gpu_probes.errors import (
    BudgetError,
    CellError,
    DeviceError,
    FoldError,
    LabelError,
    PenaltyError,
    ProbeError,
    ProbeWarning,
    Status,
)
from gpu_probes.objective import Solver
from gpu_probes.results import BestProbe, SweepResult
from gpu_probes.sweep import SweepOptions, sweep, sweep_labels

__all__ = [
    "ArrayCellSource",
    "BestProbe",
    "BudgetError",
    "Cell",
    "CellError",
    "CellSource",
    "DeviceError",
    "FoldError",
    "LabelError",
    "PenaltyError",
    "ProbeError",
    "ProbeWarning",
    "Solver",
    "Status",
    "SweepOptions",
    "SweepResult",
    "score_number",
    "sweep",
    "sweep_labels",
]
