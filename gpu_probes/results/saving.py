"""The files of a sweep's results: what each holds, and writing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float64

from gpu_probes.display.wording import AVERAGING
from gpu_probes.results.encoding import Json, encode_json, null_if_nan, nulls_if_nan
from gpu_probes.results.files import commit_file
from gpu_probes.results.forms import ALL_PREDICTIONS, BEST, CELLS, PERFORMANCE, PROBES
from gpu_probes.results.sweep_result import BestProbe, SweepResult
from gpu_probes.scores.decisions import one_column, predictions_of, ranked


def save_sweep(result: SweepResult, folder: Path) -> list[str]:
    """Write what a sweep found into a folder, each file completely or not at all.

    performance.json, all_predictions.json, cells.parquet, probes.safetensors, and best_probe_predictions.json if there
    is a best cell; otherwise one left by an earlier run is removed.

    Returns
    -------
    list of str
        Names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = result.best
    contents: dict[str, Iterable[bytes]] = {
        ALL_PREDICTIONS: encode_json(_all_predictions(result)),
        CELLS: [result.to_frame().to_parquet(None, index=False) or b""],
        PROBES: [probes_bytes(result)],
        PERFORMANCE: encode_json(_performance(result), indent=2),
    }
    if best is None:
        (folder / BEST).unlink(missing_ok=True)
    else:
        contents[BEST] = encode_json(_best_probe(result, best), indent=2)
    for name, content in contents.items():
        commit_file(folder / name, content)
    return list(contents)


def _performance(result: SweepResult) -> dict[str, Json]:
    content: dict[str, Json] = {
        "layer_performance": {
            "train": nulls_if_nan(result.train_score),
            "test": None if result.test_labels is None else nulls_if_nan(result.test_score),
            "cv": nulls_if_nan(result.cv_score) if result.k_fold else None,
        },
        "layer_indices": list(result.layers),
        "positions": list(result.positions),
        "n_layers": len(result.layers),
        "n_positions": len(result.positions),
        "d_model": result.n_features,
        "task_type": result.task_type,
        "metric": result.metric,
        "k_fold": result.k_fold,
        "n_folds": result.n_folds if result.k_fold else None,
        "alpha": result.alpha,
        "fit_intercept": result.fit_intercept,
        "standardize": result.standardize,
        "alpha_grid": None if result.alpha_grid is None else list(result.alpha_grid),
        "selected_alphas": {
            _key(result, p, i): null_if_nan(result.selected_alpha[p, i]) for p, i in result.cell_indices()
        },
    }
    if len(result.alphas) > 1:
        content["alpha_cv_scores"] = {_key(result, p, i): _by_alpha(result, p, i) for p, i in result.cell_indices()}
    return content | {
        "undefined": _undefined(result),
        "status_counts": result.status_counts(),
        "classes": None if result.classes is None else list(result.classes),
        **_of_classes(result),
        "seed": result.seed,
        "probe": result.probe,
    }


def _of_classes(result: SweepResult) -> dict[str, Json]:
    """What is said of classes, as far as there is something to say."""
    names = None if result.class_names is None else list(result.class_names)
    averaging = AVERAGING if len(result.classes or ()) > 2 else None
    content = {"class_names": names, "positive_class": result.positive_class, "averaging": averaging}
    return {name: value for name, value in content.items() if value is not None}


def _best_probe(result: SweepResult, best: BestProbe) -> dict[str, Json]:
    p, i = best.position_index, best.layer_index
    coef = result.coef[p, i]
    return {
        "best_position": best.cell.position,
        "best_position_idx": p,
        "best_layer": i,
        "best_layer_number": best.cell.layer,
        "cv_score": best.cv_score,
        "test_score": best.test_score,
        "selected_alpha": best.alpha,
        "alpha_cv_scores": _by_alpha(result, p, i) if len(result.alphas) > 1 else None,
        "train_actual": result.train_labels,
        "test_actual": result.test_labels,
        **_predictions(result, p, i),
        **_ranked(result, p, i),
        "probe_weights": coef[0] if len(coef) == 1 else coef,
        "task_type": result.task_type,
        "metric": result.metric,
    }


def _all_predictions(result: SweepResult) -> dict[str, Json]:
    return {
        "positions": list(result.positions),
        "predictions": {_key(result, p, i): partial(_predictions, result, p, i) for p, i in result.cell_indices()},
        "train_labels": result.train_labels,
        "test_labels": result.test_labels,
    }


def _predictions(result: SweepResult, position_index: int, layer_index: int) -> dict[str, Json]:
    """One cell's, as in the files; null where there is no probe to predict with."""
    splits = {"train": result.train_decision, "test": result.test_decision, "cv": result.cv_decision}
    show = partial(predictions_of, task_type=result.task_type, probe=result.probe)
    return {
        f"{split}_predictions": _at(decision, position_index, layer_index, show) for split, decision in splits.items()
    }


def _ranked(result: SweepResult, position_index: int, layer_index: int) -> dict[str, Json]:
    """What is ranked where it isn't the predictions: rates and probabilities round to 1 and tie."""
    if result.classes is None and result.probe != "binomial":
        return {}
    splits = {"test": result.test_decision, "cv": result.cv_decision}
    if result.classes is None:
        splits = {"train": result.train_decision, **splits}
    return {f"{split}_ranked": _at(decision, position_index, layer_index, ranked) for split, decision in splits.items()}


def _at(
    decision: Float64[np.ndarray, "position layer sample output"] | None,
    position_index: int,
    layer_index: int,
    shown: Callable[[Float64[np.ndarray, "sample output"]], Float64[np.ndarray, "sample output"]],
) -> Json:
    """A cell's decision values as they are shown: [sample], or [sample, class]; None where there are none."""
    if decision is None or np.isnan(values := decision[position_index, layer_index]).any():
        return None
    return one_column(shown(values))


def _key(result: SweepResult, position_index: int, layer_index: int) -> str:
    """Name of a cell in the files: the position's value, the layer's place on the axis."""
    return f"pos_{result.positions[position_index]}_layer_{layer_index}"


def _by_alpha(result: SweepResult, position_index: int, layer_index: int) -> dict[str, float | None]:
    scores = result.alpha_cv_score[position_index, layer_index]
    return {str(alpha): null_if_nan(value) for alpha, value in zip(result.alphas, scores, strict=True)}


def _undefined(result: SweepResult) -> dict[str, str]:
    wanted = [result.train_score]
    wanted += [result.test_score] if result.test_labels is not None else []
    wanted += [result.cv_score] if result.k_fold else []
    missing = np.any(np.isnan(np.stack(wanted)), axis=0)
    return {_key(result, p, i): result.status[p, i].value for p, i in result.cell_indices() if missing[p, i]}


def probes_bytes(result: SweepResult) -> bytes:
    """Content of probes.safetensors: coefficients in raw features; cells without a probe are NaN."""
    tensors = {"coef": np.ascontiguousarray(result.coef), "intercept": np.ascontiguousarray(result.intercept)}
    metadata: dict[str, Json] = {
        "format_version": 1,
        "axes": ["position", "layer", "output", "feature"],
        "positions": result.positions,
        "layers": result.layers,
        "task_type": result.task_type,
        "probe": result.probe,
        "metric": result.metric,
        "classes": result.classes,
        **({} if result.class_names is None else {"class_names": result.class_names}),
        "selected_alpha": nulls_if_nan(result.selected_alpha),
        "status": [[status.name for status in row] for row in result.status.tolist()],
    }
    return _in_order(safetensors.numpy.save(tensors, {key: json.dumps(value) for key, value in metadata.items()}))


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata by name: it holds them in an order that differs from run to run."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
