"""The report of a result folder, with the prompts of the stores that it was trained on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from activation_store import StoreError
from activation_store.interop import open_activations
from gpu_probes.files import read_document
from gpu_probes.report import write_report

logger = logging.getLogger(__name__)


def report_on(folder: str | Path, *, figures: Path | None = None) -> Path:
    """Write ``report.html`` into a result folder.

    Parameters
    ----------
    folder : str or Path
        An ``--output_dir`` of ``probesweep train``.
    figures : Path, optional
        Folder for the figures as PNG and SVG.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ProbeError
        When the folder holds no finished training.
    """
    folder = Path(folder)
    return write_report(folder, figures=figures, prompts=_prompts(folder) or None)


def _prompts(folder: Path) -> dict[str, list[str]]:
    """Texts of all training and test rows, without those of stores that are gone, changed or hold none."""
    path = folder / "run.json"
    request = read_document(path)["request"] if path.exists() else {}
    found = {split: _questions(request[split]) for split in ("train", "test") if split in request}
    return {split: texts for split, texts in found.items() if texts is not None}


def _questions(description: dict[str, Any]) -> list[str] | None:
    try:
        store = open_activations(description["path"])
    except StoreError as error:
        logger.warning("the report is without these prompts: %s", error)
        return None
    if store.journal_hash != description["content"]:
        logger.warning("the report is without these prompts: %s holds other rows than were trained on", store.path)
        return None
    return store.questions
