"""The report of a result folder, with the prompts of the stores that it was trained on."""

from __future__ import annotations

import logging
from pathlib import Path

from activation_store import StoreError
from activation_store.opening import open_activations
from gpu_probes.report import write_report
from gpu_probes.results.folder import Run, UsedStore
from probesweep.outputs import writing

logger = logging.getLogger(__name__)


def report_on(folder: str | Path, *, figures: Path | None = None) -> Path:
    """Write ``report.html`` into a result folder.

    Parameters
    ----------
    folder : str or Path
        The results of a training.
    figures : Path, optional
        Folder for the figures as PNG, SVG and PDF.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    ProbeError
        When the folder holds no finished training.
    RequestError
        Another process is writing to it.
    """
    folder = Path(folder)
    prompts = _prompts(folder)
    with writing(folder):
        return write_report(folder, figures=figures, prompts=prompts or None)


def _prompts(folder: Path) -> dict[str, list[str]]:
    """Prompts of all training and test rows, except for stores that are gone, changed or have none."""
    request = Run.load(folder).request
    found = {"train": _questions(request.train), "test": _questions(request.test)}
    return {split: texts for split, texts in found.items() if texts is not None}


def _questions(used: UsedStore | None) -> list[str] | None:
    if used is None:
        return None
    try:
        store = open_activations(used.path)
        if store.journal_hash == used.content:
            questions = store.questions
            return questions if questions is None or used.rows is None else [questions[row] for row in used.rows]
        reason = f"{store.path} has other rows than the training"
    except (StoreError, OSError) as error:
        # An object store may be out of reach.
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    logger.warning("the report does not show these prompts: %s", reason)
    return None
