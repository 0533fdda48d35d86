"""Linear probes at every (layer, position) of a language model at once."""

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
from gpu_probes.estimators.logistic import LogisticProbe, LogisticProbeCV
from gpu_probes.estimators.ridge import RidgeProbe, RidgeProbeCV
from gpu_probes.evidence.budget import check_statistics
from gpu_probes.evidence.infer import About, compare_overlap, infer
from gpu_probes.features.cells import ArrayCellSource, CellSource
from gpu_probes.features.combine import JoinedCells, JoinedLayers, MeanPositions
from gpu_probes.results.saved_probes import SavedProbes
from gpu_probes.results.sweep_result import BestProbe, SweepResult
from gpu_probes.samples.groups import shared_prompts
from gpu_probes.scores.intervals import Interval, difference_interval, score_interval
from gpu_probes.scores.nested import NestedCV
from gpu_probes.scores.permutation import PermutationTest
from gpu_probes.search.options import SweepOptions
from gpu_probes.search.sweep import PlannedSweep, check_sweep, plan_sweep, sweep, sweep_labels
from gpu_probes.terms import Cell, Solver

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
