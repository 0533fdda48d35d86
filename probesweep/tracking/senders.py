"""One function for each tracker."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any, Protocol

import numpy as np

from probesweep.errors import RequestError
from probesweep.tracking.record import Record

_PROJECT = "probesweep"


class Tracker(Protocol):
    """Sends a record."""

    def __call__(self, record: Record) -> str:
        """Send it; returns where to find it."""
        ...


def _to_wandb(record: Record) -> str:
    wandb = import_tracker("wandb", "wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=os.environ.get("WANDB_NAME", record.name),
        dir=os.environ.get("WANDB_DIR", str(record.folder)),
        config=record.settings,
        # Not the run that a notebook may have open.
        reinit="create_new",
        # A finished training has no load to measure and no console to copy.
        settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )
    with run:
        for split in {name.split("/")[0] for scores in record.by_layer.values() for name in scores}:
            # The last layer's score is not a summary.
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
    mlflow = import_tracker("mlflow", "mlflow")
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
    tensorboard = import_tracker("tensorboard", "torch.utils.tensorboard")
    image = import_tracker("tensorboard", "PIL.Image")
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


def import_tracker(kind: str, module: str) -> Any:
    """Import a tracker's library, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f'the tracker {kind} needs a package: pip install "probesweep[{kind}]"', argument="kind"
        ) from error


TRACKERS: dict[str, Tracker] = {
    "wandb": _to_wandb,
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
}
WAYS_OUT = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline to keep them here",
    "mlflow": (
        "set MLFLOW_TRACKING_URI to a server, or to a folder (file:FOLDER, with MLFLOW_ALLOW_FILE_STORE=true as MLflow "
        "wants it)"
    ),
    "tensorboard": "fix that",
}
