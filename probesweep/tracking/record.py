"""What a tracker gets from a training."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_probes.report import write_report
from gpu_probes.report.summary import describe_results
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import Run
from gpu_probes.results.forms import Performance


@dataclass(frozen=True)
class Record:
    """What a tracker gets; undefined values are left out.

    Attributes
    ----------
    name : str
        Made of the folder and the label.
    folder : Path
        Result folder.
    settings : dict
        The request and the model, flattened.
    scores : dict of float
        Scores by name.
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


def read_record(folder: Path, pictures: Path) -> Record:
    """Read a result folder, and draw its page and figures into a separate folder."""
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
        # Rows one by one would fill a page.
        settings |= {f"{split}_{name}": value for name, value in asdict(used).items() if name != "rows"} if used else {}
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
    """Scores of every split at every position; joined layers, which have names, by index."""
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
