"""The two packages combined: labels, trainings on stores, experiments, prediction, sharing, trackers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probesweep.errors import RequestError
    from probesweep.experiment.experiment import Experiment
    from probesweep.labelling.labelling import Labelling
    from probesweep.training import Training
    from probesweep.use.prediction import Probe
    from probesweep_errors import ProbesweepError

_HOMES = {
    "ProbesweepError": "probesweep_errors",
    "RequestError": "probesweep.errors",
    "Experiment": "probesweep.experiment.experiment",
    "Labelling": "probesweep.labelling.labelling",
    "Probe": "probesweep.use.prediction",
    "Training": "probesweep.training",
}
__all__ = ["Experiment", "Labelling", "Probe", "ProbesweepError", "RequestError", "Training"]


def __getattr__(name: str) -> Any:
    # The command line imports this package before it knows whether torch, which takes seconds, is needed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
