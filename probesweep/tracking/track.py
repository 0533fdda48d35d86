"""Finished trainings in experiment trackers: settings, scores, figures and files, but no prompts."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from gpu_probes.report import write_report
from gpu_probes.report.summary import describe_results
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import Run, hash_run
from gpu_probes.results.forms import Performance
from probesweep.done import recall, remember
from probesweep.errors import RequestError
from probesweep.outputs import writing

Kind = Literal["wandb", "mlflow", "tensorboard"]
_PROJECT = "probesweep"
_TRACKED = "tracked.json"


@dataclass(frozen=True)
class Record:
    """What a tracker is given; what is undefined is left out.

    Attributes
    ----------
    name : str
        Of the label and the folder.
    folder : Path
        Of the results.
    settings : dict
        What was asked for and of which model, in one level.
    scores : dict of float
        By name.
    by_layer : dict of dict of float
        Layer, ascending -> name of split and position -> score.
    figures : dict of Path
        PNG files by name.
    files : tuple of Path
        All files of the training, and its page without prompts.
    """

    name: str
    folder: Path
    settings: dict[str, str | int | float | bool]
    scores: dict[str, float]
    by_layer: dict[int, dict[str, float]]
    figures: dict[str, Path]
    files: tuple[Path, ...]


class Tracker(Protocol):
    """Sends a record."""

    def __call__(self, record: Record) -> str:
        """Send it; says where it is to be found."""
        ...


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
        There is no such tracker, its package is not installed, or it did not take the results.
    ProbeError
        There is no finished training, or its files are not as they were written.
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
            where = _TRACKERS[kind](record)
        except Exception as error:  # Each tracker raises types of its own for settings, networks and servers.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RequestError(
                f"{kind} did not take the results, which are whole in {folder}: {reason}; {_WAYS_OUT[kind]}, and run "
                "the same command again"
            ) from error
    remember(folder / _TRACKED, {**tracked, kind: {"results": results, "where": where}})
    return where


def check_installed(kind: Kind) -> None:
    """Raise `RequestError`, before anything is computed, where there is no such tracker, or its package is missing."""
    if kind not in _TRACKERS:
        raise RequestError(f"no tracker {kind!r}; there are {', '.join(_TRACKERS)}")
    for module in {"tensorboard": ("torch.utils.tensorboard", "PIL.Image")}.get(kind, (kind,)):
        _import(kind, module)


def read_record(folder: Path, pictures: Path) -> Record:
    """Read a result folder, and draw its page and figures into a folder of their own."""
    page = write_report(folder, pictures / "report.html", figures=pictures)
    results = Results.load(folder)
    run = results.run
    return Record(
        name=f"{folder.name} {run.label}",
        folder=folder,
        settings=_settings(run),
        scores=_scores(describe_results(results)),
        by_layer=_by_layer(results.performance),
        figures={path.stem: path for path in sorted(pictures.glob("*.png"))},
        files=(*(folder / name for name in results.files), page),
    )


def _settings(run: Run) -> dict[str, str | int | float | bool]:
    settings: dict[str, Any] = {name: getattr(run, name) for name in ("label", "model", "weights", "position_tokens")}
    for split, used in {"train": run.request.train, "test": run.request.test}.items():
        settings |= {f"{split}_{name}": value for name, value in asdict(used).items()}
    settings |= run.request.options
    return {
        name: value if isinstance(value, (int, float, str)) else json.dumps(value)
        for name, value in settings.items()
        if value is not None
    }


def _scores(found: dict[str, Any]) -> dict[str, float]:
    best = found["best"] or {}
    scores = {f"best/{name}": best.get(name) for name in ("cv_score", "test_score", "layer", "position", "alpha")}
    scores |= {"best/nested_cv_score": found["nested_cv_score"], "best/p": found["p"]}
    if found["nested_cv_score"] is not None:
        scores["best/optimism"] = best["cv_score"] - found["nested_cv_score"]
    for name, interval in found["intervals"].items():
        scores |= {f"best/{name}_{end}": interval and interval[end] for end in ("low", "high")}
    for name, baseline in found["baselines"].items():
        scores |= {f"baseline/{name}/{score}": value for score, value in baseline.items()}
    return {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}


def _by_layer(performance: Performance) -> dict[int, dict[str, float]]:
    """Scores of every split at every position; joined layers, which have names, by their place."""
    layers = [layer if isinstance(layer, int) else k for k, layer in enumerate(performance.layer_indices)]
    scores: dict[int, dict[str, float]] = {layer: {} for layer in layers}
    for split, rows in vars(performance.layer_performance).items():
        for position, row in zip(performance.positions, rows or (), strict=bool(rows)):
            for layer, score in zip(layers, row, strict=True):
                if score is not None:
                    scores[layer][_plain(f"{split}/position_{position}")] = score
    return scores


def _plain(name: str) -> str:
    """Without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _to_wandb(record: Record) -> str:
    wandb = _import("wandb", "wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=os.environ.get("WANDB_NAME", record.name),
        dir=os.environ.get("WANDB_DIR", str(record.folder)),
        config=record.settings,
        # Not the run that a notebook may have open.
        reinit="create_new",
        # A training that is over has no load to measure and no console to copy.
        settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )
    with run:
        for split in {name.split("/")[0] for scores in record.by_layer.values() for name in scores}:
            # The last layer's score sums nothing up.
            run.define_metric(f"{split}/*", step_metric="layer", summary="none")
        for layer, scores in record.by_layer.items():
            run.log({"layer": layer, **scores}, step=layer)
        run.log({f"figures/{name}": wandb.Image(str(path)) for name, path in record.figures.items()})
        run.summary.update(record.scores)
        artifact = wandb.Artifact(re.sub(r"[^\w\-.]", "-", record.name), type="probes")
        for path in record.files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        where = run.url or run.dir
    return str(where)


def _to_mlflow(record: Record) -> str:
    mlflow = _import("mlflow", "mlflow")
    if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
        mlflow.set_experiment(_PROJECT)
    with mlflow.start_run(run_name=record.name) as run:
        mlflow.log_params(record.settings)
        mlflow.log_metrics(record.scores)
        for layer, scores in record.by_layer.items():
            mlflow.log_metrics(scores, step=layer)
        for path in record.figures.values():
            mlflow.log_artifact(str(path), "figures")
        for path in record.files:
            mlflow.log_artifact(str(path))
    return f"{mlflow.get_tracking_uri()}, run {run.info.run_id}"


def _to_tensorboard(record: Record) -> str:
    tensorboard = _import("tensorboard", "torch.utils.tensorboard")
    image = _import("tensorboard", "PIL.Image")
    where = record.folder / "tensorboard"
    # TensorBoard would draw an earlier training's scores into the same lines.
    for events in where.glob("events.out.tfevents.*"):
        events.unlink()
    with tensorboard.SummaryWriter(str(where)) as writer:
        rows = [f"| {name} | {value} |" for name, value in record.settings.items()]
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        for name, score in record.scores.items():
            writer.add_scalar(name, score)
        for layer, scores in record.by_layer.items():
            for name, score in scores.items():
                writer.add_scalar(name, score, layer)
        for name, path in record.figures.items():
            writer.add_image(name, np.asarray(image.open(path)), dataformats="HWC")
    return f"tensorboard --logdir {where}"


def _import(kind: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(f'--track {kind} needs a package: pip install "probesweep[{kind}]"') from error


_TRACKERS: dict[str, Tracker] = {
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
}
_WAYS_OUT = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline to keep them here",
    "mlflow": (
        "set MLFLOW_TRACKING_URI to a server, or to a folder (file:FOLDER, with MLFLOW_ALLOW_FILE_STORE=true as MLflow "
        "wants it)"
    ),
    "tensorboard": "mend that",
}
