"""The report of a result folder, with the prompts of the stores that it was trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from activation_store import StoreError
from activation_store.interop import open_activations
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
    return write_report(folder, figures=figures, prompts=_prompts(folder))


def _prompts(folder: Path) -> dict[str, list[str]] | None:
    """Texts of the training and the scored test rows; None where the stores are gone, changed or hold none."""
    path = folder / "run.json"
    if not path.exists():
        return None
    request = json.loads(path.read_text())["request"]
    train = _questions(request["train"])
    test = None if train is None else _questions(request["test"])
    if train is None or test is None:
        return None
    if request["options"]["drop_overlap"]:
        left_out = set(json.loads((folder / "inference.json").read_text())["overlap"]["rows"])
        test = [text for row, text in enumerate(test) if row not in left_out]
    return {"train": train, "test": test}


def _questions(description: dict[str, Any]) -> list[str] | None:
    try:
        store = open_activations(description["path"])
    except StoreError as error:
        logger.warning("the report is without prompts: %s", error)
        return None
    if store.journal_hash != description["content"]:
        logger.warning("the report is without prompts: %s holds other rows than were trained on", store.path)
        return None
    return store.questions
