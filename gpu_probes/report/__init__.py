"""A result folder as text, page and figures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpu_probes.errors import extra

if TYPE_CHECKING:
    from gpu_probes.report.plots import SavedResults
    from gpu_probes.report.write import write_report

_HOMES = {"SavedResults": "plots", "write_report": "write"}
__all__ = ["SavedResults", "write_report"]


def __getattr__(name: str) -> Any:
    # Altair takes a second to import, and the summary of a training needs no figure.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("report", "altair", "vl_convert"):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
