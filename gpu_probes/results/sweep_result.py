"""What a sweep found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from gpu_probes.display.notebook import CellPlots, summary_html
from gpu_probes.display.wording import AVERAGING, class_name, listed, metric_title
from gpu_probes.errors import Status
from gpu_probes.results.cell_arrays import CellArrays
from gpu_probes.results.encoding import null_if_nan
from gpu_probes.scores.decisions import predictions_of
from gpu_probes.scores.nested import NestedCV, choose_by_fold
from gpu_probes.scores.permutation import PermutationTest, compare_with_shuffles
from gpu_probes.terms import Cell, PermutationStatistic, ProbeKind, Solver, TaskType

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


@dataclass(frozen=True, kw_only=True)
class SweepResult(CellArrays):
    """Every cell of a sweep; undefined numbers are NaN here and null in the files.

    The arrays of `CellArrays` are ``[position, layer, ...]``, as in the files. Predictions follow from decision values:
    numbers for regression (of a binomial probe rates), the probability of the second class for two classes, and one
    probability per class (the last axis) otherwise. Labels of words are the places of their classes in `class_names`.
    `nested_decision` are the decision values on each fold of the cell that the others choose.
    `permutation_statistic` says whose scores the permutation test compares: ``probe`` for numbers that are no rates.
    """

    task_type: TaskType
    probe: ProbeKind
    metric: Literal["spearman", "roc_auc"]
    layers: tuple[int | str, ...]
    positions: tuple[int | str, ...]
    classes: tuple[float, ...] | None
    class_names: tuple[str, ...] | None = None
    alpha: float
    alpha_grid: tuple[float, ...] | None
    k_fold: bool
    n_folds: int
    seed: int
    fit_intercept: bool
    standardize: bool
    train_labels: Float64[np.ndarray, " train_sample"]
    test_labels: Float64[np.ndarray, " test_sample"] | None
    fold_of_sample: Int64[np.ndarray, " train_sample"] | None
    group_of_sample: Int64[np.ndarray, " train_sample"] | None
    nested_decision: Float64[np.ndarray, "train_sample output"]
    shuffle_scheme: str
    permutation_statistic: PermutationStatistic

    @property
    def names_of_classes(self) -> tuple[str, ...]:
        """How the classes are called, in their order: words, or numbers with all digits; empty for regression."""
        return self.class_names or tuple(map(class_name, self.classes or ()))

    @property
    def positive_class(self) -> str | None:
        """The one of two classes whose probability is predicted and scored; None if there are not two."""
        return self.names_of_classes[1] if len(self.names_of_classes) == 2 else None

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas that were fitted, in the order given."""
        return (self.alpha,) if self.alpha_grid is None else self.alpha_grid

    @property
    def train_predictions(self) -> Float64[np.ndarray, "position layer train_sample output"]:
        """Predictions for the training rows, by the probes fitted to them."""
        return predictions_of(self.train_decision, self.task_type, self.probe)

    @property
    def test_predictions(self) -> Float64[np.ndarray, "position layer test_sample output"] | None:
        """Predictions for the test rows; None without any."""
        return None if self.test_decision is None else predictions_of(self.test_decision, self.task_type, self.probe)

    @property
    def cv_predictions(self) -> Float64[np.ndarray, "position layer train_sample output"] | None:
        """Held-out predictions for the training rows, by the probe fitted without their fold; None without folds."""
        return None if self.cv_decision is None else predictions_of(self.cv_decision, self.task_type, self.probe)

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
            test_score=null_if_nan(self.test_score[p, i]),
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
        return compare_with_shuffles(self.observed_score, self.null_score, self.shuffle_scheme)

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
                for p, i in self.cell_indices()
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
        metric = metric_title(self.metric, len(self.classes or ()))
        return CellPlots(self.to_frame(), metric, None if best is None else (best.cell.layer, best.cell.position))

    def __repr__(self) -> str:
        """A short summary for the terminal."""
        cells = f"{len(self.positions)} positions x {len(self.layers)} layers"
        validation = f"{self.n_folds}-fold CV" if self.k_fold else "no CV"
        metric = f"{self.metric} ({AVERAGING})" if len(self.classes or ()) > 2 else self.metric
        lines = [f"SweepResult: {self.task_type}, {metric}, {cells}, {validation}"]
        if self.class_names is not None:
            lines.append(f"  classes: {listed(self.class_names)}")
        best = self.best
        if best is None:
            lines.append("  best: none chosen" + ("" if self.k_fold else " (needs k_fold=True)"))
        else:
            test = "" if best.test_score is None else f", test {best.test_score:.4f}"
            where = f"layer {best.cell.layer}, position {best.cell.position}, alpha {best.alpha:g}"
            lines.append(f"  best: {where}: cv {best.cv_score:.4f}{test}")
        for name, count in self.status_counts().items():
            if name != Status.OK.name:
                lines.append(f"  {count} cells {name}: {Status[name].value}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return summary_html(repr(self).splitlines(), self.to_frame())

    def cell_indices(self) -> list[tuple[int, int]]:
        """Indices of position and layer of every cell, in the order of the files."""
        return [(p, i) for p in range(len(self.positions)) for i in range(len(self.layers))]

    def status_counts(self) -> dict[str, int]:
        """Number of cells of each status that occurs."""
        flat = [status.name for status in self.status.ravel()]
        return {status.name: flat.count(status.name) for status in Status if status.name in flat}

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
