"""Finished trainings in experiment trackers: settings, scores, figures and files, but no prompts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from gpu_probes.results.folder import hash_run
from probesweep.done import recall, remember
from probesweep.errors import RequestError
from probesweep.outputs import writing
from probesweep.tracking.record import read_record
from probesweep.tracking.senders import TRACKERS, WAYS_OUT, import_tracker

Kind = Literal["wandb", "mlflow", "tensorboard"]
_TRACKED = "tracked.json"


def track(kind: Kind, folder: str | Path) -> str | None:
    """Send a finished training to a tracker, which is configured in its own way (``WANDB_MODE``, ...).

    Parameters
    ----------
    kind : wandb, mlflow or tensorboard
    folder : str or Path
        The results of a training.

    Returns
    -------
    str or None
        Where to find it; None if the tracker already has these results (according to ``tracked.json``).

    Raises
    ------
    RequestError
        There is no such tracker, its package is not installed, or it did not accept the results.
    ProbeError
        There is no finished training, or its files were changed.
    """
    check_installed(kind)
    folder = Path(folder)
    results = hash_run(folder)
    with writing(folder):
        return _send(kind, folder, results)


def _send(kind: Kind, folder: Path, results: str) -> str | None:
    tracked = recall(folder / _TRACKED)
    if tracked.get(kind, {}).get("results") == results:
        return None
    with tempfile.TemporaryDirectory() as pictures:
        record = read_record(folder, Path(pictures))
        try:
            where = TRACKERS[kind](record)
        except Exception as error:  # Each tracker has its own exceptions for settings, networks and servers.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RequestError(
                f"{kind} did not accept the results, which are complete in {folder}: {reason}; {WAYS_OUT[kind]}, and "
                "run the same command again"
            ) from error
    remember(folder / _TRACKED, {**tracked, kind: {"results": results, "where": where}})
    return where


def check_installed(kind: Kind) -> None:
    """Raise `RequestError`, before anything is computed, if there is no such tracker or its package is missing."""
    if kind not in TRACKERS:
        raise RequestError(f"no tracker {kind!r}; there are {', '.join(TRACKERS)}", argument="kind")
    for module in {"tensorboard": ("torch.utils.tensorboard", "PIL.Image")}.get(kind, (kind,)):
        import_tracker(kind, module)
