"""Files that are whole or not there, and what JSON of a result folder must hold."""

import json
import os
from pathlib import Path
from typing import Any

from gpu_probes.errors import ProbeError

_KEYS = {
    "performance.json": ("layer_performance", "layer_indices", "positions", "task_type", "metric", "k_fold"),
    "best_probe_predictions.json": ("best_position", "best_layer", "best_layer_number", "cv_score", "train_actual"),
    "inference.json": ("nested_cv", "permutation"),
    "run.json": ("request", "label", "files"),
    "probe.json": ("format_version",),
}


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON file of a result folder.

    Raises
    ------
    ProbeError
        When it is missing, is not JSON, or lacks what such a file holds.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ProbeError(f"{path} cannot be read ({error.strerror}); run probesweep train again") from error
    except ValueError as error:
        raise ProbeError(f"{path} is not JSON ({error}); run probesweep train again") from error
    missing = [key for key in _KEYS.get(path.name, ()) if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        raise ProbeError(
            f"{path} has no {missing[0] if missing else 'keys'}: it is not from probesweep train; run that again"
        )
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a temporary file beside the target, make it durable, and put it in place."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
