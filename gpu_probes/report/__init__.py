"""Results as figures and as one self-contained page."""

from gpu_probes.report.load import SavedResults
from gpu_probes.report.write import write_report

__all__ = ["SavedResults", "write_report"]
