"""Linear probes at every (layer, position) of a language model at once."""

from gpu_probes.budget import check_statistics
from gpu_probes.cells import ArrayCellSource, Cell, CellSource
from gpu_probes.combine import JoinedCells, JoinedLayers, MeanPositions
from gpu_probes.errors import (
    BudgetError,
    CellError,
    DeviceError,
    FoldError,
    LabelError,
    NotConvergedWarning,
    PenaltyError,
    ProbeError,
    ProbeWarning,
    Status,
)
from gpu_probes.estimators import LogisticProbe, LogisticProbeCV, RidgeProbe, RidgeProbeCV
from gpu_probes.groups import shared_prompts
from gpu_probes.inference import About, compare_overlap, infer
from gpu_probes.intervals import Interval, difference_interval, score_interval
from gpu_probes.nested import NestedCV
from gpu_probes.objective import Solver
from gpu_probes.options import SweepOptions
from gpu_probes.permutation import PermutationTest
from gpu_probes.results import BestProbe, SweepResult
from gpu_probes.saved_probes import SavedProbes
from gpu_probes.sweep import PlannedSweep, check_sweep, plan_sweep, sweep, sweep_labels

__all__ = [
    "About",
    "ArrayCellSource",
    "BestProbe",
    "BudgetError",
    "Cell",
    "CellError",
    "CellSource",
    "DeviceError",
    "FoldError",
    "Interval",
    "JoinedCells",
    "JoinedLayers",
    "LabelError",
    "LogisticProbe",
    "LogisticProbeCV",
    "MeanPositions",
    "NestedCV",
    "NotConvergedWarning",
    "PenaltyError",
    "PermutationTest",
    "PlannedSweep",
    "ProbeError",
    "ProbeWarning",
    "RidgeProbe",
    "RidgeProbeCV",
    "SavedProbes",
    "Solver",
    "Status",
    "SweepOptions",
    "SweepResult",
    "check_statistics",
    "check_sweep",
    "compare_overlap",
    "difference_interval",
    "infer",
    "plan_sweep",
    "score_interval",
    "shared_prompts",
    "sweep",
    "sweep_labels",
]
