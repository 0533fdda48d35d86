"""Write a page, and its figures as image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_probes.report.figures import FIGURES, Figure
from gpu_probes.report.load import SavedFiles
from gpu_probes.report.page import render
from gpu_probes.report.pictures import save_pictures
from gpu_probes.results.files import commit_file
from gpu_probes.results.folder import PAGE


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write one HTML page about a result folder; it opens from disk, without a network.

    Parameters
    ----------
    folder : Path
        The results of a training.
    output : Path, optional
        The page; by default ``report.html`` in the folder.
    figures : Path, optional
        Folder for the figures as PNG, SVG and PDF.
    prompts : mapping of "train" and "test" to texts, optional
        Prompts of all rows of the stores, in order, to show with the largest errors.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    ProbeError
        When the folder holds no finished training, or the prompts do not match its rows.
    """
    results = SavedFiles.load(folder)
    made = [make(results) for make in FIGURES]
    page = render(results, made, prompts)
    if figures is not None:
        save_pictures([one for one in made if isinstance(one, Figure)], Path(figures))
    target = results.folder / PAGE if output is None else Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    commit_file(target, page.encode())
    return target
