"""Finished trainings in experiment trackers: settings, scores and figures, but no prompts."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from activation_store.durable import commit_file
from gpu_probes.report import write_report
from gpu_probes.summary import describe
from probesweep.errors import RequestError

Kind = Literal["wandb", "mlflow", "tensorboard"]
_PROJECT = "probesweep"
_TRACKED = "tracked.json"


@dataclass(frozen=True)
class Record:
    """What a tracker is given.

    Attributes
    ----------
    name : str
        Of the label and the folder.
    folder : Path
        Of the results.
    settings : dict
        What was asked for, in one level.
    scores : dict of float
        By name; what is undefined is left out.
    along_layers : dict of list of (int, float)
        By name: scores of each position, by layer.
    figures : dict of Path
        PNG files by name.
    """

    name: str
    folder: Path
    settings: dict[str, str | int | float | bool]
    scores: dict[str, float]
    along_layers: dict[str, list[tuple[int, float]]]
    figures: dict[str, Path]


def track(kind: Kind, folder: str | Path) -> str | None:
    """Send a finished training to a tracker, which takes its settings in its own way (``WANDB_MODE``, ...).

    Parameters
    ----------
    kind : wandb, mlflow or tensorboard
    folder : str or Path
        An ``--output_dir`` of ``probesweep train``.

    Returns
    -------
    str or None
        Where it is to be found; None where the tracker has these results already (``tracked.json`` says so).

    Raises
    ------
    RequestError
        The tracker's package is not installed, or it did not take the results.
    ProbeError
        The folder holds no finished training.
    """
    folder = Path(folder)
    results = hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()
    memory = folder / _TRACKED
    tracked = json.loads(memory.read_text()) if memory.exists() else {}
    if tracked.get(kind, {}).get("results") == results:
        return None
    with tempfile.TemporaryDirectory() as pictures:
        record = read_record(folder, Path(pictures))
        try:
            where = _TRACKERS[kind](record)
        except RequestError:
            raise
        except Exception as error:  # Each tracker raises types of its own for settings, networks and servers.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RequestError(
                f"{kind} did not take the results, which are whole in {folder}: {reason}; mend its settings and run "
                "the same command again"
            ) from error
    commit_file(memory, [json.dumps({**tracked, kind: {"results": results, "where": where}}, indent=2).encode()])
    return where


def check_installed(kind: Kind) -> None:
    """Raise `RequestError`, before anything is computed, where a tracker's package is missing."""
    _import(kind, {"tensorboard": "torch.utils.tensorboard"}.get(kind, kind))


def read_record(folder: Path, pictures: Path) -> Record:
    """Read a result folder, and draw its figures into a folder of their own."""
    write_report(folder, pictures / "report.html", figures=pictures)
    found, run = describe(folder), json.loads((folder / "run.json").read_text())
    performance = json.loads((folder / "performance.json").read_text())
    settings = {
        "label": run["label"],
        "model": run["model"],
        **{f"{split}_rows": run["request"][split]["n_samples"] for split in ("train", "test")},
        **run["request"]["options"],
    }
    return Record(
        name=f"{folder.name} {run['label']}",
        folder=folder,
        settings={
            name: value if isinstance(value, (int, float, str)) else json.dumps(value)
            for name, value in settings.items()
            if value is not None
        },
        scores=_scores(found),
        along_layers=_along_layers(performance),
        figures={path.stem: path for path in sorted(pictures.glob("*.png"))},
    )


def _scores(found: dict[str, Any]) -> dict[str, float]:
    best = found["best"] or {}
    scores = {f"best/{name}": best.get(name) for name in ("cv_score", "test_score", "layer", "position", "alpha")}
    scores |= {"best/nested_cv_score": found["nested_cv_score"], "best/p": found["p"]}
    for name, interval in found["intervals"].items():
        scores |= {f"best/{name}_{end}": interval and interval[end] for end in ("low", "high")}
    for name, baseline in found["baselines"].items():
        scores |= {f"baseline/{name}/{score}": value for score, value in baseline.items()}
    return {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}


def _along_layers(performance: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Scores of every split at every position; joined layers, which have names, by their place."""
    layers = [layer if isinstance(layer, int) else k for k, layer in enumerate(performance["layer_indices"])]
    return {
        _plain(f"{split}/position_{position}"): [
            (layer, score) for layer, score in zip(layers, row, strict=True) if score is not None
        ]
        for split, rows in performance["layer_performance"].items()
        for position, row in zip(performance["positions"], rows or [], strict=bool(rows))
    }


def _plain(name: str) -> str:
    """Without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _to_wandb(record: Record) -> str:
    wandb = _import("wandb", "wandb")
    run = wandb.init(project=_PROJECT, name=record.name, config=record.settings, dir=str(record.folder))
    run.define_metric("layer")
    for name, scores in record.along_layers.items():
        run.define_metric(name, step_metric="layer")
        for layer, score in scores:
            run.log({"layer": layer, name: score})
    run.log({name: wandb.Image(str(path)) for name, path in record.figures.items()})
    run.summary.update(record.scores)
    where = run.url or run.dir
    run.finish()
    return str(where)


def _to_mlflow(record: Record) -> str:
    mlflow = _import("mlflow", "mlflow")
    mlflow.set_experiment(_PROJECT)
    with mlflow.start_run(run_name=record.name) as run:
        mlflow.log_params(record.settings)
        mlflow.log_metrics(record.scores)
        for name, scores in record.along_layers.items():
            for layer, score in scores:
                mlflow.log_metric(name, score, step=layer)
        for path in record.figures.values():
            mlflow.log_artifact(str(path), "figures")
    return f"{mlflow.get_tracking_uri()}, run {run.info.run_id}"


def _to_tensorboard(record: Record) -> str:
    tensorboard = _import("tensorboard", "torch.utils.tensorboard")
    image = _import("tensorboard", "PIL.Image")
    where = record.folder / "tensorboard"
    with tensorboard.SummaryWriter(str(where)) as writer:
        rows = [f"| {name} | {value} |" for name, value in record.settings.items()]
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        for name, score in record.scores.items():
            writer.add_scalar(name, score)
        for name, scores in record.along_layers.items():
            for layer, score in scores:
                writer.add_scalar(name, score, layer)
        for name, path in record.figures.items():
            writer.add_image(name, np.asarray(image.open(path)), dataformats="HWC")
    return f"tensorboard --logdir {where}"


def _import(kind: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(f'--track {kind} needs a package: pip install "probesweep[{kind}]"') from error


_TRACKERS: dict[str, Callable[[Record], str]] = {
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
}
