"""What a sweep found: frozen results, and the files they are saved as."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors.numpy
from jaxtyping import Float64, Int8, Int64, Shaped

from gpu_probes.display.notebook import CellPlots, card
from gpu_probes.errors import Status
from gpu_probes.results.encoding import Json, encode_json
from gpu_probes.results.files import write_whole
from gpu_probes.scores.decisions import one_column, predictions_of, ranked
from gpu_probes.scores.nested import NestedCV, choose_by_fold
from gpu_probes.scores.permutation import PermutationTest, compare_with_shuffles
from gpu_probes.terms import Cell, ProbeKind, Solver, TaskType

if TYPE_CHECKING:
    import pandas as pd
    import xarray


@dataclass(frozen=True)
class BestProbe:
    """The cell with the highest CV score."""

    cell: Cell
    position_index: int
    layer_index: int
    cv_score: float
    test_score: float | None
    alpha: float


@dataclass(frozen=True)
class SweepResult:
    """Every cell of a sweep; undefined numbers are NaN here and null in the files.

    Arrays of scores are ``[position, layer]``, as in the files. `coef` holds one vector per output: one for
    regression and two classes, otherwise one per class. Decision values are what scores rank. Predictions follow from
    them: numbers for regression, the probability of the second class for two classes, and one probability per class
    (the last axis) otherwise.

    `certificate` bounds by how much each fit (one without each fold, the last on everything) exceeds the minimum of
    its objective, relative to the objective at zero; `solver` says how the fit was found (a `Solver`).

    For nested cross-validation, `inner_score` is the CV score of each cell over the other folds, at the alpha that
    they choose (`inner_alpha`); `outer_score` is the score on the fold itself of that alpha's fit on the others, and
    `nested_decision` the decision values on each fold of the cell that the others choose.
    `null_score` is the CV score, each at its best alpha, of shuffled labels.
    """

    task_type: TaskType
    probe: ProbeKind
    metric: Literal["spearman", "roc_auc"]
    layers: tuple[int | str, ...]
    positions: tuple[int | str, ...]
    classes: tuple[float, ...] | None
    alpha: float
    alpha_grid: tuple[float, ...] | None
    k_fold: bool
    n_folds: int
    seed: int
    fit_intercept: bool
    standardize: bool
    status: Shaped[np.ndarray, "position layer"]
    coef: Float64[np.ndarray, "position layer output feature"]
    intercept: Float64[np.ndarray, "position layer output"]
    certificate: Float64[np.ndarray, "position layer fit alpha"]
    solver: Int8[np.ndarray, "position layer fit alpha"]
    selected_alpha: Float64[np.ndarray, "position layer"]
    train_score: Float64[np.ndarray, "position layer"]
    test_score: Float64[np.ndarray, "position layer"]
    cv_score: Float64[np.ndarray, "position layer"]
    alpha_cv_score: Float64[np.ndarray, "position layer alpha"]
    train_decision: Float64[np.ndarray, "position layer train_sample output"]
    test_decision: Float64[np.ndarray, "position layer test_sample output"] | None
    cv_decision: Float64[np.ndarray, "position layer train_sample output"] | None
    train_labels: Float64[np.ndarray, " train_sample"]
    test_labels: Float64[np.ndarray, " test_sample"] | None
    fold_of_sample: Int64[np.ndarray, " train_sample"] | None
    group_of_sample: Int64[np.ndarray, " train_sample"] | None
    inner_score: Float64[np.ndarray, "position layer fold"]
    inner_alpha: Float64[np.ndarray, "position layer fold"]
    outer_score: Float64[np.ndarray, "position layer fold"]
    nested_decision: Float64[np.ndarray, "train_sample output"]
    null_score: Float64[np.ndarray, "position layer shuffle"]
    shuffle_scheme: str

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas that were fitted, in the order given."""
        return (self.alpha,) if self.alpha_grid is None else self.alpha_grid

    @property
    def train_predictions(self) -> Float64[np.ndarray, "position layer train_sample output"]:
        """Predictions for the training rows, by the probes fitted to them."""
        return predictions_of(self.train_decision, self.task_type)

    @property
    def test_predictions(self) -> Float64[np.ndarray, "position layer test_sample output"] | None:
        """Predictions for the test rows; None without any."""
        return None if self.test_decision is None else predictions_of(self.test_decision, self.task_type)

    @property
    def cv_predictions(self) -> Float64[np.ndarray, "position layer train_sample output"] | None:
        """Held-out predictions for the training rows, by the probe fitted without their fold; None without folds."""
        return None if self.cv_decision is None else predictions_of(self.cv_decision, self.task_type)

    @property
    def n_features(self) -> int:
        """Length of a coefficient vector."""
        return int(self.coef.shape[-1])

    @property
    def best(self) -> BestProbe | None:
        """The cell with the highest CV score, the first by position, then layer, on ties; None without folds."""
        if np.isnan(self.cv_score).all():
            return None
        p, i = (int(k) for k in np.unravel_index(np.nanargmax(self.cv_score), self.cv_score.shape))
        return BestProbe(
            cell=Cell(layer=self.layers[i], position=self.positions[p]),
            position_index=p,
            layer_index=i,
            cv_score=float(self.cv_score[p, i]),
            test_score=_null(self.test_score[p, i]),
            alpha=float(self.selected_alpha[p, i]),
        )

    @cached_property
    def nested_cv(self) -> NestedCV | str:
        """The nested CV score of the choice of cell and alpha, or the reason why there is none."""
        if self.fold_of_sample is None:
            return "there are no folds (k_fold)"
        by_fold = (self.inner_score, self.inner_alpha, self.outer_score)
        return choose_by_fold(self.layers, self.positions, *by_fold, self.nested_decision)

    @cached_property
    def permutation(self) -> PermutationTest | str:
        """The permutation test, or the reason why there is none."""
        if not self.null_score.shape[-1]:
            return self.shuffle_scheme
        return compare_with_shuffles(self.cv_score, self.null_score, self.shuffle_scheme)

    def reason(self, position_index: int, layer_index: int) -> str | None:
        """Why a cell has no score or needs a second look, or None."""
        status = self.status[position_index, layer_index]
        return None if status is Status.OK else status.value

    def to_frame(self) -> pd.DataFrame:
        """A tidy table with a row per cell, in the order of the axes (position, then layer)."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "layer": self.layers[i],
                    "position": self.positions[p],
                    "train_score": self.train_score[p, i],
                    "test_score": self.test_score[p, i],
                    "cv_score": self.cv_score[p, i],
                    "alpha": self.selected_alpha[p, i],
                    "status": self.status[p, i].name,
                    "reason": self.reason(p, i),
                    **self._how_found(p, i),
                    **self._how_sure(p, i),
                }
                for p, i in self._indices()
            ]
        )

    def to_xarray(self) -> xarray.Dataset:
        """Scores, probes and predictions with labelled axes; the reason of a cell is empty where there is none."""
        import xarray

        cell = ("position", "layer")
        reasons = [[self.reason(p, i) or "" for i in range(len(self.layers))] for p in range(len(self.positions))]
        arrays: dict[str, Any] = {
            **{name: (cell, getattr(self, name)) for name in ("train_score", "test_score", "cv_score")},
            "selected_alpha": (cell, self.selected_alpha),
            "alpha_cv_score": ((*cell, "alpha"), self.alpha_cv_score),
            "reason": (cell, reasons),
            "coef": ((*cell, "output", "feature"), self.coef),
            "intercept": ((*cell, "output"), self.intercept),
            "train_predictions": ((*cell, "train_sample", "output"), self.train_predictions),
            "test_predictions": ((*cell, "test_sample", "output"), self.test_predictions),
            "cv_predictions": ((*cell, "train_sample", "output"), self.cv_predictions),
            "train_labels": ("train_sample", self.train_labels),
            "test_labels": ("test_sample", self.test_labels),
        }
        known = {name: array for name, array in arrays.items() if array[1] is not None}
        axes = {"position": list(self.positions), "layer": list(self.layers), "alpha": list(self.alphas)}
        return xarray.Dataset(known, axes, {"task_type": self.task_type, "probe": self.probe, "metric": self.metric})

    @property
    def plot(self) -> CellPlots:
        """Figures: ``result.plot.heatmap()``, ``result.plot.layers()``."""
        best = self.best
        return CellPlots(self.to_frame(), self.metric, None if best is None else (best.cell.layer, best.cell.position))

    def save(self, output_dir: str | os.PathLike[str]) -> list[str]:
        """Write the result files into a folder, each completely or not at all.

        performance.json, all_predictions.json, cells.parquet, probes.safetensors, and best_probe_predictions.json
        if there is a best cell; otherwise one left by an earlier run is removed.

        Returns
        -------
        list of str
            Names of the files.
        """
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        best_file = folder / "best_probe_predictions.json"
        best = self.best
        contents: dict[str, Iterable[bytes]] = {
            "all_predictions.json": encode_json(self._all_predictions()),
            "cells.parquet": [self.to_frame().to_parquet(None, index=False) or b""],
            "probes.safetensors": [self._probes()],
            "performance.json": encode_json(self._performance(), indent=2),
        }
        if best is None:
            best_file.unlink(missing_ok=True)
        else:
            contents[best_file.name] = encode_json(self._best_probe(best), indent=2)
        for name, content in contents.items():
            write_whole(folder / name, content)
        return list(contents)

    def __repr__(self) -> str:
        """A short summary for the terminal."""
        cells = f"{len(self.positions)} positions x {len(self.layers)} layers"
        validation = f"{self.n_folds}-fold CV" if self.k_fold else "no CV"
        lines = [f"SweepResult: {self.task_type}, {self.metric}, {cells}, {validation}"]
        best = self.best
        if best is None:
            lines.append("  best: none chosen" + ("" if self.k_fold else " (needs k_fold=True)"))
        else:
            test = "" if best.test_score is None else f", test {best.test_score:.4f}"
            where = f"layer {best.cell.layer}, position {best.cell.position}, alpha {best.alpha:g}"
            lines.append(f"  best: {where}: cv {best.cv_score:.4f}{test}")
        for name, count in self._status_counts().items():
            if name != Status.OK.name:
                lines.append(f"  {count} cells {name}: {Status[name].value}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return card(repr(self).splitlines(), self.to_frame())

    def _indices(self) -> list[tuple[int, int]]:
        return [(p, i) for p in range(len(self.positions)) for i in range(len(self.layers))]

    def _how_found(self, position_index: int, layer_index: int) -> dict[str, float | str | None]:
        """The largest certificate and the most elaborate solver of the fits at the selected alpha."""
        alpha = self.selected_alpha[position_index, layer_index]
        if np.isnan(alpha):
            return {"certificate": np.nan, "solver": None}
        at = (position_index, layer_index, slice(None), self.alphas.index(alpha))
        return {"certificate": self.certificate[at].max(), "solver": Solver(self.solver[at].max()).name.lower()}

    def _how_sure(self, position_index: int, layer_index: int) -> dict[str, float]:
        """CV score with the alpha chosen without each fold, and p-values; NaN where they were not asked for."""
        outer, test = self.outer_score[position_index, layer_index], self.permutation
        known = isinstance(test, PermutationTest)
        return {
            "nested_cv_score": float(outer.mean()) if len(outer) else np.nan,
            "p": float(test.p[position_index, layer_index]) if known else np.nan,
            "p_uncorrected": float(test.p_uncorrected[position_index, layer_index]) if known else np.nan,
        }

    def _key(self, position_index: int, layer_index: int) -> str:
        """Name of a cell in the files: the position's value, the layer's place on the axis."""
        return f"pos_{self.positions[position_index]}_layer_{layer_index}"

    def _status_counts(self) -> dict[str, int]:
        flat = [status.name for status in self.status.ravel()]
        return {status.name: flat.count(status.name) for status in Status if status.name in flat}

    def _undefined(self) -> dict[str, str]:
        wanted = [self.train_score]
        wanted += [self.test_score] if self.test_labels is not None else []
        wanted += [self.cv_score] if self.k_fold else []
        missing = np.any(np.isnan(np.stack(wanted)), axis=0)
        return {self._key(p, i): self.status[p, i].value for p, i in self._indices() if missing[p, i]}

    def _performance(self) -> dict[str, Json]:
        content: dict[str, Json] = {
            "layer_performance": {
                "train": _nulls(self.train_score),
                "test": None if self.test_labels is None else _nulls(self.test_score),
                "cv": _nulls(self.cv_score) if self.k_fold else None,
            },
            "layer_indices": list(self.layers),
            "positions": list(self.positions),
            "n_layers": len(self.layers),
            "n_positions": len(self.positions),
            "d_model": self.n_features,
            "task_type": self.task_type,
            "metric": self.metric,
            "k_fold": self.k_fold,
            "n_folds": self.n_folds if self.k_fold else None,
            "alpha": self.alpha,
            "fit_intercept": self.fit_intercept,
            "standardize": self.standardize,
            "alpha_grid": None if self.alpha_grid is None else list(self.alpha_grid),
            "selected_alphas": {self._key(p, i): _null(self.selected_alpha[p, i]) for p, i in self._indices()},
        }
        if len(self.alphas) > 1:
            content["alpha_cv_scores"] = {self._key(p, i): self._path(p, i) for p, i in self._indices()}
        return content | {
            "undefined": self._undefined(),
            "status_counts": self._status_counts(),
            "classes": None if self.classes is None else list(self.classes),
            "seed": self.seed,
            "probe": self.probe,
        }

    def _path(self, position_index: int, layer_index: int) -> dict[str, float | None]:
        scores = self.alpha_cv_score[position_index, layer_index]
        return {str(alpha): _null(value) for alpha, value in zip(self.alphas, scores, strict=True)}

    def _best_probe(self, best: BestProbe) -> dict[str, Json]:
        p, i = best.position_index, best.layer_index
        coef = self.coef[p, i]
        return {
            "best_position": best.cell.position,
            "best_position_idx": p,
            "best_layer": i,
            "best_layer_number": best.cell.layer,
            "cv_score": best.cv_score,
            "test_score": best.test_score,
            "selected_alpha": best.alpha,
            "alpha_cv_scores": self._path(p, i) if len(self.alphas) > 1 else None,
            "train_actual": self.train_labels,
            "test_actual": self.test_labels,
            **self._predictions(p, i),
            **({} if self.classes is None else self._ranked(p, i)),
            "probe_weights": coef[0] if len(coef) == 1 else coef,
            "task_type": self.task_type,
            "metric": self.metric,
        }

    def _all_predictions(self) -> dict[str, Json]:
        return {
            "positions": list(self.positions),
            "predictions": {self._key(p, i): partial(self._predictions, p, i) for p, i in self._indices()},
            "train_labels": self.train_labels,
            "test_labels": self.test_labels,
        }

    def _predictions(self, position_index: int, layer_index: int) -> dict[str, Json]:
        """One cell's, as in the files; null where there is no probe to predict with."""
        splits = {"train": self.train_decision, "test": self.test_decision, "cv": self.cv_decision}
        return {
            f"{split}_predictions": _at(decision, position_index, layer_index, self._to_predictions)
            for split, decision in splits.items()
        }

    def _ranked(self, position_index: int, layer_index: int) -> dict[str, Json]:
        """What the scores of classes rank: probabilities round to 1 and tie."""
        splits = {"test": self.test_decision, "cv": self.cv_decision}
        return {
            f"{split}_ranked": _at(decision, position_index, layer_index, ranked) for split, decision in splits.items()
        }

    def _to_predictions(self, decision: Float64[np.ndarray, "sample output"]) -> Float64[np.ndarray, "sample output"]:
        return predictions_of(decision, self.task_type)

    def _probes(self) -> bytes:
        """Coefficients in raw features; cells without a probe are NaN."""
        tensors = {"coef": np.ascontiguousarray(self.coef), "intercept": np.ascontiguousarray(self.intercept)}
        metadata: dict[str, Json] = {
            "format_version": 1,
            "axes": ["position", "layer", "output", "feature"],
            "positions": self.positions,
            "layers": self.layers,
            "task_type": self.task_type,
            "probe": self.probe,
            "metric": self.metric,
            "classes": self.classes,
            "selected_alpha": _nulls(self.selected_alpha),
            "status": [[status.name for status in row] for row in self.status.tolist()],
        }
        return _in_order(safetensors.numpy.save(tensors, {key: json.dumps(value) for key, value in metadata.items()}))


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _nulls(grid: Float64[np.ndarray, "position layer"]) -> list[list[float | None]]:
    return [[_null(value) for value in row] for row in grid]


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


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata by name: it holds them in an order that differs from run to run."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
