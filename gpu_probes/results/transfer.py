"""Result folders by where they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_probes.errors import ProbeError
from gpu_probes.features.cells import CellSource
from gpu_probes.features.combine import combine, select_cells
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import Run, has_results
from gpu_probes.results.saved_probes import SavedProbes

# Of Zarr: a folder with it holds arrays, perhaps in many thousand files, and no results.
_OF_ARRAYS = "zarr.json"


@dataclass(frozen=True)
class FinishedTraining:
    """A result folder, its probes, and its request."""

    results: Results
    probes: SavedProbes

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.results.folder

    @property
    def run(self) -> Run:
        """What ``run.json`` says."""
        return self.results.run

    def cells_of(self, source: CellSource) -> CellSource:
        """Those cells of a source that the probes were fitted on: some layers and positions, perhaps joined."""
        asked = self.run.request.options
        return combine(select_cells(source, asked.get("layers"), asked.get("positions")), asked.get("join"))

    @property
    def label(self) -> str:
        """Name of the label."""
        return self.run.label


# As an experiment has its results below its folder, and a folder of experiments has these: models/a/probes/label.
DEPTH = 4


def find_trainings(folder: Path, *, depth: int = 1) -> list[FinishedTraining]:
    """Read a result folder, or all result folders in a folder.

    Parameters
    ----------
    folder : Path
    depth : int
        How many folders below it the results may be.

    Raises
    ------
    ProbeError
        When there is none, or one cannot be read.
    """
    folders = list(_find(folder, depth))
    if not folders:
        raise ProbeError(f"{folder} holds no finished training; give an output_dir=... of a training")
    return [FinishedTraining(each, SavedProbes.of(each)) for each in map(Results.load, folders)]


def _find(folder: Path, depth: int) -> Iterator[Path]:
    """Result folders, sorted; there are none inside another one."""
    if has_results(folder):
        yield folder
    elif depth and not (folder / _OF_ARRAYS).exists():
        for inside in sorted(folder.glob("*/")):
            if not (inside.name.startswith(".") or _is_kept(inside)):
                yield from _find(inside, depth - 1)


def _is_kept(folder: Path) -> bool:
    """Whether a folder holds results that others have replaced (`keep_results`), rather than those of a label."""
    name, _, number = folder.name.rpartition(".")
    if not (name and number.isdecimal() and folder.with_name(name).is_dir()):
        return False
    return not has_results(folder) or Run.load(folder).label != folder.name
