"""A result folder, read from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gpu_probes.errors import ProbeError
from gpu_probes.folder import Run, check_file, read_document
from gpu_probes.notebook import card
from gpu_probes.wording import number, position_text

if TYPE_CHECKING:
    from gpu_probes.report.plots import SavedPlots

Json = Any
_COLUMNS = ("layer", "position", "train_score", "test_score", "cv_score", "alpha", "reason")


@dataclass(frozen=True, eq=False)
class SavedResults:
    """What a finished training left in its folder.

    Attributes
    ----------
    folder : Path
    performance : dict
        ``performance.json``.
    best : dict or None
        ``best_probe_predictions.json``, which is there only if a best probe was chosen.
    inference : dict or None
        ``inference.json``.
    run : Run
        ``run.json``.
    cells : DataFrame
        ``cells.parquet``.
    """

    folder: Path
    performance: dict[str, Json]
    best: dict[str, Json] | None
    inference: dict[str, Json] | None
    run: Run
    cells: pd.DataFrame

    @classmethod
    def load(cls, folder: str | Path) -> SavedResults:
        """Read a folder.

        Raises
        ------
        ProbeError
            When a file is missing or is not as it was written.
        """
        folder = Path(folder)
        run = Run.load(folder)

        def optional(name: str) -> dict[str, Json] | None:
            return read_document(folder / name) if name in run.files else None

        return cls(
            folder=folder,
            performance=read_document(folder / "performance.json"),
            best=optional("best_probe_predictions.json"),
            inference=optional("inference.json"),
            run=run,
            cells=_read_cells(folder / "cells.parquet"),
        )

    def to_frame(self) -> pd.DataFrame:
        """A tidy table with a row per cell, in the order of the axes (position, then layer)."""
        return self.cells.copy()

    @property
    def label(self) -> str:
        """Name of what was predicted."""
        return self.run.label

    @property
    def best_cell(self) -> tuple[Any, Any] | None:
        """Layer (as in ``layer_indices``) and position of the best probe."""
        if self.best is None:
            return None
        layers: list[Any] = self.performance["layer_indices"]
        return layers[self.best["best_layer"]], self.best["best_position"]

    @property
    def tokens(self) -> Mapping[Any, str | None]:
        """Token by position; empty where cells were joined across positions."""
        positions: list[Any] = self.performance["positions"]
        tokens = self.run.position_tokens
        numbered = all(isinstance(position, int) for position in positions)
        return dict(zip(positions, tokens, strict=True)) if numbered and len(tokens) == len(positions) else {}

    @property
    def why_no_best(self) -> str:
        """Reason for `best` to be None."""
        if not self.performance["k_fold"]:
            return "no best probe is chosen without --k_fold: the only scores to choose by would be the test scores"
        return "no cell has a CV score, so there is no best probe"

    def part(self, name: str) -> Any:
        """A part of ``inference.json``; empty where it is missing."""
        return (self.inference or {}).get(name) or {}

    def why_missing(self, name: str) -> str:
        """Why a part of ``inference.json`` is missing, or holds nothing."""
        if self.inference is None:
            return "inference.json is not among the files of this training"
        found = self.part(name)
        if isinstance(found, dict) and found.get("reason"):
            return str(found["reason"])
        return self.why_no_best if self.best is None else "it is not in inference.json"

    @property
    def plot(self) -> SavedPlots:
        """Figures: ``results.plot.heatmap()``, ``results.plot.layers()`` and the others of the page."""
        # The figures are made of these results, and Altair takes a second to import.
        from gpu_probes.report.plots import SavedPlots

        return SavedPlots(self)

    def __repr__(self) -> str:
        """A few lines for the terminal."""
        axes = f"{len(self.performance['layer_indices'])} layers x {len(self.performance['positions'])} positions"
        lines = [f"{self.folder}: {self.label}, {self.performance['task_type']}, {self.performance['metric']}, {axes}"]
        if self.best is None or self.best_cell is None:
            return "\n".join([*lines, f"  best: {self.why_no_best}"])
        layer, position = self.best_cell
        where = f"layer {layer}, position {position_text(position, self.tokens.get(position))}"
        scores = f"cv {number(self.best['cv_score'])}, test {number(self.best['test_score'])}"
        return "\n".join([*lines, f"  best: {where}: {scores}"])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return card(repr(self).splitlines(), self.cells)


def _read_cells(path: Path) -> pd.DataFrame:
    check_file(path)
    try:
        cells = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path} is not a Parquet file ({error}); run probesweep train again") from error
    missing = [name for name in _COLUMNS if name not in cells]
    if missing:
        raise ProbeError(f"{path} has no column {missing[0]}: it is not from probesweep train")
    return cells
