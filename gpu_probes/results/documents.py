"""All documents of a result folder, read once: frozen objects of the right form that agree with each other."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from gpu_probes.forms import damaged, read_form
from gpu_probes.results.agreement import check_agreement
from gpu_probes.results.folder import RUN, Run, check_listed, read_document
from gpu_probes.results.forms import (
    ALL_PREDICTIONS,
    BEST,
    CARD,
    CELLS,
    PERFORMANCE,
    PROBES,
    Best,
    Documents,
    Performance,
    ProbesHeader,
    SavedCoefficients,
)
from gpu_probes.results.inference import INFERENCE, Evidence

if TYPE_CHECKING:
    import pandas as pd

Document = TypeVar("Document")
_ALWAYS = (PERFORMANCE, CELLS, PROBES, ALL_PREDICTIONS)
# Columns of cells.parquet; the second part came later.
_NUMBERS = (("train_score", "test_score", "cv_score", "alpha"), ("nested_cv_score", "p", "p_uncorrected"))
_TEXTS = (("reason",), ("status", "solver"))


class Results(Documents):
    """A result folder, read from its files."""

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read a folder, and make sure that its files are there, as they were written, and agree.

        Raises
        ------
        ProbeError
            When one is missing, changed, of another form, or disagrees with the others.
        """
        folder = Path(folder)
        run = Run.load(folder)
        _check_names(folder, run)
        complete = run.format_version > 1
        performance = _read(Performance, folder / PERFORMANCE, complete=complete)
        _check_expected(folder, run, performance)
        found = cls(
            folder=folder,
            run=run,
            performance=performance,
            best=read_best(folder) if BEST in run.files else None,
            evidence=_read(Evidence, folder / INFERENCE, complete=complete) if INFERENCE in run.files else None,
            cells=_read_cells(folder / CELLS, complete=complete),
            probes=read_probes(folder),
        )
        if CARD in run.files:
            check_listed(folder / CARD)
        check_agreement(found)
        return found

    @property
    def files(self) -> list[str]:
        """Names of all files of the training."""
        return [*self.run.files, RUN]


def read_best(folder: Path) -> Best:
    """Read a folder's ``best_probe_predictions.json`` by itself.

    Raises
    ------
    ProbeError
        When it is missing, changed, or something else.
    """
    return _read(Best, folder / BEST, complete=False)


def read_probes(folder: Path) -> SavedCoefficients:
    """Read a folder's ``probes.safetensors`` by itself; as `read_best`."""
    path = folder / PROBES
    check_listed(path)
    try:
        with safe_open(path, framework="numpy") as file:
            about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            coef, intercept = file.get_tensor("coef"), file.get_tensor("intercept")
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise damaged(path, f"it holds no probes of a training ({error})") from error
    header = read_form(ProbesHeader, about, path)
    axes = (len(header.positions), len(header.layers))
    if coef.ndim != 4 or coef.shape[:2] != axes or intercept.shape != coef.shape[:3]:
        raise damaged(path, f"shapes {coef.shape} and {intercept.shape} do not match its axes {axes}")
    if coef.dtype != np.float64 or intercept.dtype != np.float64:
        raise damaged(path, f"{coef.dtype} and {intercept.dtype} instead of float64")
    return SavedCoefficients(header, coef, intercept)


def read_all_predictions(results: Documents) -> dict[str, np.ndarray]:
    """Read a folder's ``all_predictions.json``.

    Parameters
    ----------
    results : Documents
        What else is in the folder.

    Returns
    -------
    dict of ndarray
        ``train_predictions``, ``test_predictions`` and ``cv_predictions`` [position, layer, sample, output], NaN where
        a cell has no probe; ``train_labels`` and ``test_labels`` [sample]. What the training had none of is left out.

    Raises
    ------
    ProbeError
        When it is missing, changed, or something else.
    """
    path, performance = results.folder / ALL_PREDICTIONS, results.performance
    document = read_document(path)
    shape = (performance.n_positions, performance.n_layers)
    keys = [performance.key(p, i) for p, i in np.ndindex(*shape)]
    rows = {"train_predictions": "train_labels", "test_predictions": "test_labels", "cv_predictions": "train_labels"}
    n_outputs = results.probes.intercept.shape[-1]
    found: dict[str, np.ndarray] = {}
    try:
        for name in ("train_labels", "test_labels"):
            if document[name] is not None:
                found[name] = np.array(document[name], np.float64)
        for name, labels in rows.items():
            if labels not in found or (name == "cv_predictions" and not performance.k_fold):
                continue
            values = np.full((len(keys), len(found[labels]), n_outputs), np.nan)
            for index, key in enumerate(keys):
                if document["predictions"][key][name] is not None:
                    values[index] = np.reshape(document["predictions"][key][name], values[index].shape)
            found[name] = values.reshape(*shape, *values.shape[1:])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"it does not hold the predictions of every cell ({error!r})") from error
    return found


def _read(kind: type[Document], path: Path, *, complete: bool) -> Document:
    """Read a document; one that is complete has all keys but those that are left out where they are None."""
    document = read_document(path)
    if complete:
        for one in fields(kind):  # pyright: ignore[reportArgumentType]
            if one.default is not MISSING and "omitted" not in one.metadata and one.name not in document:
                raise damaged(path, "it is missing", [one.name])
    return read_form(kind, document, path)


def _check_names(folder: Path, run: Run) -> None:
    """Make sure that what ``run.json`` names are files next to it, those that every training leaves among them."""
    for name in _ALWAYS:
        if name not in run.files:
            raise damaged(folder / RUN, f"it does not name {name}, which every training has", ["files"])
    for name in run.files:
        if Path(name).name != name:
            raise damaged(folder / RUN, "it names a file that is not next to it", ["files", name])
        if not (folder / name).is_file():
            raise damaged(folder / name, f"it is missing, and {RUN} names it")


def _check_expected(folder: Path, run: Run, performance: Performance) -> None:
    """Make sure that ``run.json`` names what a training leaves: a best probe if and only if a cell has a CV score."""
    chosen = any(score is not None for row in performance.layer_performance.cv or () for score in row)
    expected = [BEST] if chosen else []
    if run.format_version > 1:
        expected += [INFERENCE, *([CARD] if chosen and run.origin is None else [])]
    missing = [name for name in expected if name not in run.files]
    if missing:
        raise damaged(folder / RUN, f"it does not name {missing[0]}, which this training has", ["files"])
    if not chosen and BEST in run.files:
        raise damaged(folder / RUN, f"it names {BEST}, and no cell has a CV score", ["files"])


def _read_cells(path: Path, *, complete: bool) -> pd.DataFrame:
    import pandas as pd

    check_listed(path)
    try:
        cells = pd.read_parquet(path)
    except Exception as error:  # Damaged bytes make pyarrow raise errors of many types.
        raise damaged(path, f"it is not a Parquet file ({error})") from error
    has_all = complete or "status" in cells
    numbers, texts = ((*first, *(later if has_all else ())) for first, later in (_NUMBERS, _TEXTS))
    for name in ("layer", "position", *numbers, *texts):
        if name not in cells:
            raise damaged(path, "it has no such column", [name])
    for name in numbers:
        if cells[name].dtype != np.float64 or np.isinf(cells[name].to_numpy()).any():
            raise damaged(path, "it does not hold finite numbers", [name])
    for name in texts:
        if not all(isinstance(value, str) or pd.isna(value) for value in cells[name].tolist()):
            raise damaged(path, "it does not hold strings", [name])
    return cells
