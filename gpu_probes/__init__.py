"""Linear probes at every (layer, position) of a language model at once."""

from gpu_probes.baselines import score_number
from gpu_probes.cells import ArrayCellSource, Cell, CellSource
from gpu_probes.errors import (
    CellError,
    DeviceError,
    FoldError,
    LabelError,
    PenaltyError,
    ProbeError,
    ProbeWarning,
    Status,
)
from gpu_probes.results import BestProbe, SweepResult
from gpu_probes.sweep import sweep

__all__ = [
    "ArrayCellSource",
    "BestProbe",
    "Cell",
    "CellError",
    "CellSource",
    "DeviceError",
    "FoldError",
    "LabelError",
    "PenaltyError",
    "ProbeError",
    "ProbeWarning",
    "Status",
    "SweepResult",
    "score_number",
    "sweep",
]
