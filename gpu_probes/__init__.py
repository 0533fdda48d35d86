"""Linear probes at every (layer, position) of a language model at once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from gpu_probes.estimators.binomial import BinomialProbe, BinomialProbeCV
    from gpu_probes.estimators.logistic import LogisticProbe, LogisticProbeCV
    from gpu_probes.estimators.ridge import RidgeProbe, RidgeProbeCV
    from gpu_probes.evidence.budget import check_statistics
    from gpu_probes.evidence.infer import About, compare_overlap, infer
    from gpu_probes.features.cells import ArrayCellSource, CellSource
    from gpu_probes.features.combine import JoinedCells, JoinedLayers, MeanPositions
    from gpu_probes.results.saved_probes import SavedProbes
    from gpu_probes.results.sweep_result import BestProbe, SweepResult
    from gpu_probes.samples.groups import shared_prompts
    from gpu_probes.scores.ceiling import score_ceiling
    from gpu_probes.scores.intervals import Interval, difference_interval, score_interval
    from gpu_probes.scores.nested import NestedCV
    from gpu_probes.scores.permutation import PermutationTest
    from gpu_probes.search.not_converged import NotConvergedWarning
    from gpu_probes.search.options import ProbeOptions, SweepOptions
    from gpu_probes.search.sweep import PlannedSweep, check_sweep, plan_sweep
    from gpu_probes.sweeps import FinishedSweep, sweep, sweep_labels
    from gpu_probes.terms import Cell, Solver

_HOMES = {
    "About": "evidence.infer",
    "ArrayCellSource": "features.cells",
    "BestProbe": "results.sweep_result",
    "BinomialProbe": "estimators.binomial",
    "BinomialProbeCV": "estimators.binomial",
    "Cell": "terms",
    "CellSource": "features.cells",
    "FinishedSweep": "sweeps",
    "Interval": "scores.intervals",
    "JoinedCells": "features.combine",
    "JoinedLayers": "features.combine",
    "LogisticProbe": "estimators.logistic",
    "LogisticProbeCV": "estimators.logistic",
    "MeanPositions": "features.combine",
    "NestedCV": "scores.nested",
    "NotConvergedWarning": "search.not_converged",
    "PermutationTest": "scores.permutation",
    "PlannedSweep": "search.sweep",
    "ProbeOptions": "search.options",
    "RidgeProbe": "estimators.ridge",
    "RidgeProbeCV": "estimators.ridge",
    "SavedProbes": "results.saved_probes",
    "Solver": "terms",
    "SweepOptions": "search.options",
    "SweepResult": "results.sweep_result",
    "check_statistics": "evidence.budget",
    "check_sweep": "search.sweep",
    "compare_overlap": "evidence.infer",
    "difference_interval": "scores.intervals",
    "infer": "evidence.infer",
    "plan_sweep": "search.sweep",
    "score_ceiling": "scores.ceiling",
    "score_interval": "scores.intervals",
    "shared_prompts": "samples.groups",
    "sweep": "sweeps",
    "sweep_labels": "sweeps",
}
__all__ = [
    "About",
    "ArrayCellSource",
    "BestProbe",
    "BinomialProbe",
    "BinomialProbeCV",
    "BudgetError",
    "Cell",
    "CellError",
    "CellSource",
    "DeviceError",
    "FinishedSweep",
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
    "ProbeOptions",
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
    "score_ceiling",
    "score_interval",
    "shared_prompts",
    "sweep",
    "sweep_labels",
]


def __getattr__(name: str) -> Any:
    # A sweep needs no estimator, and scikit-learn takes a second to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
