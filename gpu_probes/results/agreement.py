"""Whether the documents of a result folder agree: with each other, and with what can be worked out from them.

Folders of format 1 were written by versions that worked some statistics out in other ways: of them only axes, rows and
the scores of cells are compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from gpu_probes.errors import CellError, Status
from gpu_probes.features.combine import parse_join
from gpu_probes.forms import Flag, Penalty, Text, Whole, damaged, plain, read_form
from gpu_probes.results.encoding import null_if_nan
from gpu_probes.results.folder import RUN
from gpu_probes.results.forms import BEST, CELLS, PERFORMANCE, PROBES, Best, Documents
from gpu_probes.results.inference import (
    INFERENCE,
    BaselineScores,
    ClassScores,
    Evidence,
    NestedScore,
    Overlap,
    Permutation,
    RegressionScores,
)
from gpu_probes.samples.labels import Task
from gpu_probes.scores.calibration import PlattScaling, TemperatureScaling, fit_line
from gpu_probes.scores.ceiling import OF_CLASSES, OF_RATES
from gpu_probes.scores.intervals import LEVEL, Interval
from gpu_probes.scores.metrics import regression_scores
from gpu_probes.scores.ranks import score
from gpu_probes.terms import PermutationStatistic, Solver

# Sums of equal numbers in another order differ by less; a wrong number by more.
_ROUNDING = 1e-9
# Paired areas of few rows have intervals wider than the areas themselves.
_WIDEST = 4.0
_STATUSES = {status.name: status for status in Status}
_SOLVERS = {solver.name.lower() for solver in Solver}
_MEANS = ("random_direction", "random_labels")
Cells = Float64[np.ndarray, "position layer"]


def check_agreement(found: Documents) -> None:
    """Compare the documents of a folder.

    Raises
    ------
    ProbeError
        Where one says other than another, or than what follows from it.
    """
    checked = _Folder(found)
    checked.axes()
    checked.scores()
    checked.cells()
    checked.probes()
    checked.rows()
    if found.best is not None:
        checked.best(found.best)
    if found.run.format_version == 1:
        return
    checked.options()
    checked.statuses()
    if found.best is not None:
        checked.predictions(found.best)
    assert found.evidence is not None, "such folders have it"
    _Statements(checked, found.evidence).check()


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The options that a training is asked with."""

    task_type: Text
    probe: Text
    join: Text | None
    alpha: Penalty
    alphas: tuple[Penalty, ...] | Text | None
    fit_intercept: Flag
    standardize: Flag
    weight_column: Text | None
    k_fold: Flag
    n_folds: Whole
    seed: Whole
    groups: Text | None
    split_repeats: Flag
    drop_overlap: Flag
    permutations: Whole
    # Earlier versions had no other.
    permutation_statistic: PermutationStatistic = "probe"
    nested_cv: Flag
    positive_class: Text | None = None


class _File:
    """A file, and what is wrong in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def require(self, held: object, what: str, *where: object) -> None:
        """Raise an error unless something holds."""
        if not held:
            raise damaged(self.path, what, where)

    def same(self, value: object, expected: object, source: str, *where: object) -> None:
        """Raise an error unless a value is as another file has it."""
        self.require(_is(value, expected), f"it has {_short(value)} where {source} has {_short(expected)}", *where)

    def grid(self, values: Sequence[Sequence[float | None]], shape: tuple[int, int], *where: object) -> Cells:
        """Values of all cells, NaN where they are null."""
        fits = len(values) == shape[0] and all(len(row) == shape[1] for row in values)
        self.require(fits, f"it has no values for {shape[0]} positions x {shape[1]} layers", *where)
        return np.array([[np.nan if one is None else one for one in row] for row in values], dtype=np.float64)

    def same_grid(self, values: Cells, expected: Cells, source: str, *where: object) -> None:
        """Raise an error unless all cells are as another file has them."""
        other = np.argwhere(~np.isclose(values, expected, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True))
        if len(other):
            p, i = (int(k) for k in other[0])
            self.same(null_if_nan(values[p, i]), null_if_nan(expected[p, i]), source, *where, p, i)


class _Folder:
    """Checks of a folder's tables: axes, scores and rows."""

    def __init__(self, found: Documents) -> None:
        self.found, self.of = found, found.performance
        files = (RUN, PERFORMANCE, BEST, INFERENCE, CELLS, PROBES)
        self.run, self.performance, self.chosen, self.inference, self.table, self.saved = (
            _File(found.folder / name) for name in files
        )
        self.shape = (len(self.of.positions), len(self.of.layer_indices))
        self.n_classes = None if self.of.classes is None else len(self.of.classes)
        # What is ranked is not what is predicted.
        self.of_rates = found.probes.header.probe == "binomial"

    def axes(self) -> None:
        """Layers, positions, classes, and what is predicted."""
        of, file, header = self.of, self.performance, self.found.probes.header
        file.same(of.n_layers, len(of.layer_indices), "the list of layers", "n_layers")
        file.same(of.n_positions, len(of.positions), "the list of positions", "n_positions")
        for name, axis in (("layer_indices", of.layer_indices), ("positions", of.positions)):
            file.require(axis, "it is empty", name)
            file.require(len(set(axis)) == len(axis), "a name occurs twice", name)
        numbers = of.task_type == "regression"
        file.same(of.metric, "spearman" if numbers else "roc_auc", f"the score of {of.task_type}", "metric")
        file.same(of.classes is None, numbers, "the task", "classes")
        file.require(list(of.classes or ()) == sorted(set(of.classes or ())), "classes are not sorted", "classes")
        file.require(of.probe in (None, *_probes_of(of.task_type)), f"no probe of {of.task_type}", "probe")
        self.saved.same(header.layers, of.layer_indices, PERFORMANCE, "layers")
        self.saved.same(header.positions, of.positions, PERFORMANCE, "positions")
        n_names = None if of.class_names is None else len(set(of.class_names))
        file.require(n_names in (None, self.n_classes), "there are not as many names as classes", "class_names")
        last = of.names_of_classes[-1] if self.n_classes == 2 else None
        file.require(of.positive_class in (None, last), "it is not the last of two classes", "positive_class")
        file.require(of.averaging is None or (self.n_classes or 0) > 2, "there are not so many classes", "averaging")
        for name in ("task_type", "metric", "classes", "class_names"):
            self.saved.same(getattr(header, name), getattr(of, name), PERFORMANCE, name)
        self.saved.same(header.probe, of.probe or header.probe, PERFORMANCE, "probe")
        run = self.found.run
        self.run.require(run.label in run.request.labels, f"it is not among the labels {run.request.labels}", "label")
        if all(isinstance(position, int) for position in of.positions):
            tokens = run.position_tokens
            self.run.same(len(tokens), len(of.positions), f"the list of positions in {PERFORMANCE}", "position_tokens")

    def scores(self) -> None:
        """Scores and alphas of every cell."""
        of, file, split = self.of, self.performance, self.of.layer_performance
        self.train, self.test, self.cv = (
            np.full(self.shape, np.nan) if values is None else file.grid(values, self.shape, "layer_performance", name)
            for name, values in (("train", split.train), ("test", split.test), ("cv", split.cv))
        )
        for name, grid in (("train", self.train), ("test", self.test), ("cv", self.cv)):
            negative = of.metric == "roc_auc" and (grid < 0).any()
            file.require(not negative, "areas are not below 0", "layer_performance", name)
        file.same(split.cv is not None, of.k_fold, "k_fold", "layer_performance", "cv")
        file.same(of.n_folds is not None, of.k_fold, "k_fold", "n_folds")
        file.require(of.n_folds is None or of.n_folds >= 2, "there are fewer than two folds", "n_folds")
        file.require(of.alpha_grid is None or of.alpha_grid, "it is empty", "alpha_grid")
        keys = [of.key(p, i) for p, i in self._cells()]
        self._same_names(file, of.selected_alphas, keys, "selected_alphas")
        self.alpha = file.grid(
            [[of.selected_alphas[of.key(p, i)] for i in range(self.shape[1])] for p in range(self.shape[0])],
            self.shape,
            "selected_alphas",
        )
        for p, i in self._cells():
            where, alpha = ("selected_alphas", of.key(p, i)), of.selected_alphas[of.key(p, i)]
            file.require(alpha is None or alpha in of.alphas, "it is not one of the fitted alphas", *where)
            scored = not np.isnan([self.train[p, i], self.test[p, i], self.cv[p, i]]).all()
            file.require(alpha is not None or not scored, "it is null and the cell has a score", *where)
        file.same(of.alpha_cv_scores is not None, len(of.alphas) > 1, "the grid of alphas", "alpha_cv_scores")
        if of.alpha_cv_scores is not None:
            self._same_names(file, of.alpha_cv_scores, keys, "alpha_cv_scores")
            for p, i in self._cells():
                self._alpha_path(of.alpha_cv_scores[of.key(p, i)], p, i)

    def _alpha_path(self, path: Mapping[str, float | None], p: int, i: int) -> None:
        """The alpha with the highest CV score is the one selected, with the cell's CV score."""
        of, where = self.of, ("alpha_cv_scores", self.of.key(p, i))
        self._same_names(self.performance, path, [str(alpha) for alpha in of.alphas], *where)
        known = [value for value in path.values() if value is not None]
        best = max(known) if known else None
        self.performance.same(best, null_if_nan(self.cv[p, i]), "layer_performance.cv", *where)
        alpha = of.selected_alphas[of.key(p, i)]
        if best is not None:
            self.performance.same(path[str(alpha)], best, "the selected alpha", *where, str(alpha))

    def cells(self) -> None:
        """The table of cells has the same."""
        cells, of = self.found.cells, self.of
        named = [(layer, position) for position in of.positions for layer in of.layer_indices]
        for name, values in zip(("layer", "position"), zip(*named, strict=True), strict=True):
            self.table.require(cells[name].tolist() == list(values), f"it differs from {PERFORMANCE}", name)
        grids = {"train_score": self.train, "test_score": self.test, "cv_score": self.cv, "alpha": self.alpha}
        for name, grid in grids.items():
            self.table.same_grid(self._column(name), grid, PERFORMANCE, name)

    def probes(self) -> None:
        """Coefficients have the selected alphas and as many features."""
        header, coef = self.found.probes.header, self.found.probes.coef
        alpha = self.saved.grid(header.selected_alpha, self.shape, "selected_alpha")
        self.saved.same_grid(alpha, self.alpha, PERFORMANCE, "selected_alpha")
        self.performance.same(self.of.d_model, coef.shape[-1], PROBES, "d_model")
        n_outputs = self.n_classes if self.n_classes is not None and self.n_classes > 2 else 1
        self.saved.same(coef.shape[2], n_outputs, PERFORMANCE, "coef")
        n_rows = [len(row) for row in header.status]
        self.saved.require(n_rows == [self.shape[1]] * self.shape[0], "it is not of all cells", "status")

    def rows(self) -> None:
        """How many training and test rows there are."""
        request, evidence = self.found.run.request, self.found.evidence
        overlap = None if evidence is None else evidence.overlap
        dropped = 0
        if overlap is not None:
            self._overlap(overlap)
            dropped = len(overlap.rows or ()) if overlap.dropped else 0
        self.n_train, self.n_test = request.train.n_samples, folder_rows(self) - dropped
        self.run.require(self.n_train > 0, "there are no training rows", "request", "train", "n_samples")
        for name, used in (("train", request.train), ("test", request.test)):
            rows = None if used is None or used.rows is None else used.rows
            fits = rows is None or (used is not None and rows == sorted(set(rows)) and len(rows) == used.n_samples)
            self.run.require(fits, "they are not as many rows, ascending", "request", name, "rows")
        self.run.same(request.test is not None, self.of.layer_performance.test is not None, PERFORMANCE, "test")

    def _overlap(self, overlap: Overlap) -> None:
        n_test, file = folder_rows(self), self.inference
        known = overlap.n_shared is not None
        for name in ("rows", "dropped"):
            held = getattr(overlap, name) is not None
            file.require(held == known, "it does not match n_shared", "overlap", name)
        file.require((overlap.reason is None) == known, "it does not match n_shared", "overlap", "reason")
        rows = list(overlap.rows or ())
        file.require(not known or overlap.n_shared == len(rows), "it is not the number of rows", "overlap", "n_shared")
        fits = rows == sorted(set(rows)) and all(row < n_test for row in rows)
        file.require(fits, f"they are not rows of the {n_test} of the test store", "overlap", "rows")

    def best(self, best: Best) -> None:
        """The best probe is the first cell with the highest CV score, and has its scores."""
        of, file = self.of, self.chosen
        p, i = (int(k) for k in np.unravel_index(np.nanargmax(self.cv), self.shape))
        self.at = (p, i)
        expected = {
            "best_position_idx": p,
            "best_position": of.positions[p],
            "best_layer": i,
            "best_layer_number": of.layer_indices[i],
            "cv_score": null_if_nan(self.cv[p, i]),
            "test_score": null_if_nan(self.test[p, i]),
            "selected_alpha": null_if_nan(self.alpha[p, i]),
            "alpha_cv_scores": None if of.alpha_cv_scores is None else of.alpha_cv_scores[of.key(p, i)],
            "task_type": of.task_type,
            "metric": of.metric,
        }
        for name, value in expected.items():
            file.same(getattr(best, name), value, f"the best cell of {PERFORMANCE}", name)
        weights, coef = np.asarray(best.probe_weights, dtype=object), self.found.probes.coef[p, i]
        shape = coef.shape if len(coef) > 1 else coef.shape[1:]
        file.require(
            weights.shape == shape and np.array_equal(weights.astype(np.float64), coef.reshape(shape)),
            f"they are not those of the best cell in {PROBES}",
            "probe_weights",
        )
        file.same(best.test_actual is not None, of.layer_performance.test is not None, PERFORMANCE, "test_actual")
        file.same(len(best.train_actual), self.n_train, RUN, "train_actual")
        if best.test_actual is not None and (self.found.run.format_version > 1 or self._knows_dropped_rows()):
            file.same(len(best.test_actual), self.n_test, f"{RUN}, without dropped rows,", "test_actual")
        for name, actual in (("train", best.train_actual), ("cv", best.train_actual), ("test", best.test_actual)):
            self._columns(getattr(best, f"{name}_predictions"), actual, f"{name}_predictions")
            self._columns(getattr(best, f"{name}_ranked"), actual, f"{name}_ranked")
        for name in ("train", "cv"):
            held = getattr(best, f"{name}_predictions") is not None
            file.require(held, "it is null and the cell has a CV score", f"{name}_predictions")
        held = best.test_predictions is not None or best.test_score is None
        file.require(held, "it is null and the cell has a test score", "test_predictions")
        for name in ("train_actual", "test_actual"):
            foreign = set(getattr(best, name) or ()) - set(of.classes or ())
            file.require(of.classes is None or not foreign, f"{_short(foreign)} are not classes", name)

    def _knows_dropped_rows(self) -> bool:
        evidence = self.found.evidence
        return evidence is not None and evidence.overlap is not None

    def _columns(self, values: Sequence[Any] | None, actual: Sequence[float] | None, name: str) -> None:
        """As many rows as labels, and as many columns as classes."""
        if values is None:
            return
        self.chosen.require(
            actual is not None and len(values) == len(actual), "it does not have as many rows as labels", name
        )
        wide = self.n_classes if self.n_classes is not None and self.n_classes > 2 else None
        fits = all((len(row) if isinstance(row, tuple) else None) == wide for row in values)
        self.chosen.require(fits, "it does not have a number for each class", name)
        if (self.n_classes is not None or self.of_rates) and name.endswith("predictions"):
            table = np.asarray(values, dtype=np.float64)
            sums = table.sum(1) if wide else np.ones(len(table))
            fits = bool(((table >= 0) & (table <= 1)).all() and (np.abs(sums - 1) < 1e-6).all())
            self.chosen.require(fits, "they are not probabilities", name)

    def options(self) -> None:
        """What was asked for is what was done."""
        of, file, found = self.of, self.run, self.found
        where = ("request", "options")
        self.performance.require(of.probe is not None, "it is null", "probe")
        given = found.run.request.options
        known = {one.name: given[one.name] for one in fields(_Options) if one.name in given}
        asked = read_form(_Options, known, file.path, within=where)
        same = {"k_fold": of.k_fold, "seed": of.seed, "alpha": of.alpha, "standardize": of.standardize}
        for name, value in same.items():
            file.same(getattr(asked, name), value, PERFORMANCE, *where, name)
        centred = asked.fit_intercept or of.probe in ("lda", "mass_mean")
        file.same(centred, of.fit_intercept, PERFORMANCE, *where, "fit_intercept")
        if of.k_fold:
            file.same(asked.n_folds, of.n_folds, PERFORMANCE, *where, "n_folds")
        for name, value in (("task_type", of.task_type), ("probe", of.probe)):
            file.same(
                getattr(asked, name), value if getattr(asked, name) != "auto" else "auto", PERFORMANCE, *where, name
            )
        if asked.positive_class is not None:
            file.same(asked.positive_class, of.positive_class, PERFORMANCE, *where, "positive_class")
        if asked.alphas != "auto":
            file.same(asked.alphas, of.alpha_grid, PERFORMANCE, *where, "alphas")
        elif of.alpha_grid is None:
            file.same(asked.alphas, None, PERFORMANCE, *where, "alphas")
        self._join(asked.join, *where, "join")
        self.asked = asked

    def _join(self, join: str | None, *where: str) -> None:
        """What was joined has one layer, one position, or one of both."""
        if join is None:
            return
        try:
            parse_join(join)
        except CellError as error:
            raise damaged(self.run.path, str(error), where) from error
        one = (join != "layers", join != "mean")
        fits = all(length == 1 for length, joined in zip(self.shape, one, strict=True) if joined)
        self.run.require(fits, f"{PERFORMANCE} has other cells", *where)

    def statuses(self) -> None:
        """What is said of cells without a score."""
        import pandas as pd

        of, file, cells = self.of, self.performance, self.found.cells
        names = cells["status"].tolist()
        self.table.require(set(names) <= set(_STATUSES), "a status is unknown", "status")
        for row, (name, reason) in enumerate(zip(names, cells["reason"].tolist(), strict=True)):
            expected = None if name == Status.OK.name else _STATUSES[name].value
            self.table.same(None if pd.isna(reason) else reason, expected, "its status", "reason", row)
        grid = np.array(names, dtype=object).reshape(self.shape)
        self.saved.require(np.array_equal(grid, np.array(self.found.probes.header.status, dtype=object)),
                           f"it differs from {CELLS}", "status")  # fmt: skip
        file.same(
            of.status_counts, {name: names.count(name) for name in _STATUSES if name in names}, CELLS, "status_counts"
        )
        split = of.layer_performance
        wanted = [
            grid
            for grid, values in ((self.train, split.train), (self.test, split.test), (self.cv, split.cv))
            if values is not None
        ]
        missing = np.argwhere(np.isnan(np.stack(wanted)).any(0)).tolist()
        expected = {of.key(p, i): _STATUSES[str(grid[p, i])].value for p, i in missing}
        self._same_names(file, of.undefined, list(expected), "undefined")
        for name, reason in expected.items():
            file.same(of.undefined[name], reason, CELLS, "undefined", name)
        solvers = {name for name in cells["solver"].tolist() if isinstance(name, str)}
        self.table.require(solvers <= _SOLVERS, "a solver is unknown", "solver")

    def predictions(self, best: Best) -> None:
        """Predictions have the scores that they are said to have."""
        from scipy import special

        p, i = self.at
        for name in ("train", "test", "cv"):
            predictions, ranked = getattr(best, f"{name}_predictions"), getattr(best, f"{name}_ranked")
            of_split = self.of_rates or (self.n_classes is not None and name != "train")
            has_ranks = of_split and predictions is not None
            self.chosen.same(ranked is not None, has_ranks, f"{name}_predictions", f"{name}_ranked")
            if has_ranks:
                values, ranks = (np.asarray(one, dtype=np.float64) for one in (predictions, ranked))
                fits = np.abs(special.expit(ranks) - values).max(initial=0.0) < 1e-6
                self.chosen.require(fits, f"they do not match {name}_predictions", f"{name}_ranked")
        if best.test_actual is not None and best.test_score is not None:
            ranked = best.test_predictions if best.test_ranked is None else best.test_ranked
            self.chosen.same(
                best.test_score, self._score(best.test_actual, ranked), "its test predictions", "test_score"
            )
        if self.n_classes is None and not np.isnan(self.train[p, i]):
            ranked = best.train_predictions if best.train_ranked is None else best.train_ranked
            worked_out = self._score(best.train_actual, ranked)
            self.performance.same(null_if_nan(self.train[p, i]), worked_out, BEST, "layer_performance", "train", p, i)

    def _score(self, actual: Sequence[float], ranked: Any) -> float | None:
        values = np.asarray(ranked, dtype=np.float64)
        classes = None if self.of.classes is None else np.asarray(self.of.classes, dtype=np.float64)
        targets = Task(self.of.task_type, classes).targets(np.asarray(actual, dtype=np.float64), "labels")
        column = torch.from_numpy(values[:, None] if values.ndim == 1 else values)
        return null_if_nan(float(score(self.of.task_type, torch.from_numpy(targets.copy())[None], column[None])))

    def _column(self, name: str) -> Cells:
        return self.found.cells[name].to_numpy(np.float64).reshape(self.shape)

    def _cells(self) -> list[tuple[int, int]]:
        return [(p, i) for p in range(self.shape[0]) for i in range(self.shape[1])]

    def _same_names(self, file: _File, held: Mapping[str, object], names: Sequence[str], *where: object) -> None:
        other = [name for name in (*names, *held) if name not in held or name not in names]
        file.require(not other, "it is missing, or does not belong here", *where, *other[:1])


class _Statements:
    """Checks of what is said of the scores."""

    def __init__(self, folder: _Folder, evidence: Evidence) -> None:
        self.folder, self.evidence, self.file = folder, evidence, folder.inference
        self.best = folder.found.best

    def check(self) -> None:
        """Compare all parts."""
        evidence, file = self.evidence, self.file
        for name in ("nested_cv", "permutation", "intervals", "baselines", "learning_curve", "groups", "overlap"):
            file.require(getattr(evidence, name) is not None, "it is null", name)
        for name in ("scores", "platt", "calibration"):
            held = getattr(evidence, name) is not None
            file.require(held == (self.best is not None), "it belongs with the best probe", name)
        assert evidence.nested_cv is not None
        assert evidence.permutation is not None
        self._nested(evidence.nested_cv)
        self._permutation(evidence.permutation)
        self._intervals()
        for name in ("layer_0", *_MEANS) if self.best is not None else ():
            file.require(name in (evidence.baselines or {}), "it is missing", "baselines", name)
        for name, baseline in (evidence.baselines or {}).items():
            self._baseline(name, baseline)
        self._all_scores()
        self._calibrations()
        self._curve()
        self._groups()
        self._ceilings()
        overlap = evidence.overlap
        assert overlap is not None
        scored = self.best is not None and bool(overlap.n_shared)
        file.require((overlap.n_unscored is not None) == scored, "it belongs with n_shared", "overlap", "n_unscored")
        file.require(
            (overlap.n_unscored or 0) <= folder_rows(self.folder), "there are fewer rows", "overlap", "n_unscored"
        )
        for name in ("scores_of_shared", "scores_of_others"):
            found = getattr(overlap, name)
            if found is not None:
                file.require(scored, "it belongs with n_shared", "overlap", name)
                self._form_of_scores(found, "overlap", name)

    def _nested(self, nested: NestedScore) -> None:
        file, of = self.file, self.folder.of
        known = nested.score is not None
        file.require((nested.reason is None) == known, "it does not match the score", "nested_cv", "reason")
        for name in ("best_cv_score", "optimism", "folds", "predictions"):
            held = getattr(nested, name) is not None
            file.require(held == known, "it does not match the score", "nested_cv", name)
        self._column_of_cells("nested_cv_score")
        if nested.score is None or nested.folds is None or nested.best_cv_score is None:
            return
        asked = self.folder.asked
        file.require(
            asked.nested_cv and self.best is not None, "it was not asked for, or has no best probe", "nested_cv"
        )
        file.same(nested.best_cv_score, self.best and self.best.cv_score, BEST, "nested_cv", "best_cv_score")
        file.same(len(nested.folds), of.n_folds, PERFORMANCE, "nested_cv", "folds")
        for k, fold in enumerate(nested.folds):
            where = ("nested_cv", "folds", k)
            file.require(fold.layer in of.layer_indices, f"{PERFORMANCE} has no such layer", *where, "layer")
            file.require(fold.position in of.positions, f"{PERFORMANCE} has no such position", *where, "position")
            file.require(fold.alpha in of.alphas, "it is not one of the fitted alphas", *where, "alpha")
        mean = float(np.mean([fold.score for fold in nested.folds]))
        file.same(nested.score, mean, "the mean of its folds", "nested_cv", "score")
        file.same(nested.optimism, nested.best_cv_score - nested.score, "the difference", "nested_cv", "optimism")
        predictions = nested.predictions or ()
        file.same(len(predictions), self.folder.n_train, RUN, "nested_cv", "predictions")
        wide = self.folder.n_classes if (self.folder.n_classes or 0) > 2 else None
        fits = all((len(row) if isinstance(row, tuple) else None) == wide for row in predictions)
        file.require(fits, "it does not have a number for each class", "nested_cv", "predictions")
        if self.folder.n_classes is not None or self.folder.of_rates:
            table = np.asarray(predictions, dtype=np.float64)
            file.require(((table >= 0) & (table <= 1)).all(), "they are not probabilities", "nested_cv", "predictions")

    def _permutation(self, found: Permutation) -> None:
        file, folder = self.file, self.folder
        known = found.p_best is not None
        same = folder.n_classes is None and not folder.of_rates
        statistic = "probe" if same else folder.asked.permutation_statistic
        file.same(found.statistic, statistic, RUN, "permutation", "statistic")
        file.require((found.reason is None) == known, "it does not match p_best", "permutation", "reason")
        for name in ("p", "p_uncorrected", "n_permutations", "shuffled", "observed_max", "null_max"):
            held = getattr(found, name) is not None
            file.require(held == known, "it does not match p_best", "permutation", name)
        if found.p is None or found.p_uncorrected is None or found.null_max is None:
            for name in ("p", "p_uncorrected"):
                folder.table.require(folder.found.cells[name].isna().all(), f"{INFERENCE} has none", name)
            return
        null = np.array(found.null_max)
        file.same(found.n_permutations, len(null), "null_max", "permutation", "n_permutations")
        fits = 0 < len(null) <= folder.asked.permutations
        file.require(fits, "there are not as many as were asked for", "permutation", "n_permutations")
        file.require(self.best is not None, "there is no best probe", "permutation", "p_best")
        observed = self._observed(found)
        file.same(
            found.observed_max, float(np.nanmax(observed)), "the cell that it is of", "permutation", "observed_max"
        )
        reached = (null[None, None] >= observed[..., None] - 1e-12).sum(-1)
        expected = np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + len(null)))
        p, alone = (file.grid(grid, folder.shape, "permutation", name)
                    for name, grid in (("p", found.p), ("p_uncorrected", found.p_uncorrected)))  # fmt: skip
        file.same_grid(p, expected, "null_max, with what is observed in the cells,", "permutation", "p")
        file.same(found.p_best, float(np.nanmin(expected)), "the smallest p", "permutation", "p_best")
        counted = alone * (1 + len(null))
        fits = np.isnan(observed) == np.isnan(alone)
        fits &= np.isnan(alone) | (
            (alone <= p + _ROUNDING) & (counted >= 1 - 1e-6) & (np.abs(counted - np.round(counted)) < 1e-6)
        )
        if not fits.all():
            raise damaged(
                file.path,
                "it is not a p-value of this cell",
                ["permutation", "p_uncorrected", *map(int, np.argwhere(~fits)[0])],
            )
        for name, grid in (("p", p), ("p_uncorrected", alone)):
            folder.table.same_grid(self._of_cells(name), grid, INFERENCE, name)

    def _observed(self, found: Permutation) -> Cells:
        """What the permutations are compared with."""
        file, folder = self.file, self.folder
        apart, where = found.statistic != "probe", ("permutation", "observed")
        file.require((found.observed is not None) == apart, "it does not match the statistic", *where)
        if found.observed is None:
            return folder.cv
        observed = file.grid(found.observed, folder.shape, *where)
        lowest = -1.0 if folder.of_rates else 0.0
        fits = np.isnan(observed) | (~np.isnan(folder.cv) & (observed >= lowest - _ROUNDING))
        file.require(fits.all() and not np.isnan(observed).all(), "they are no scores of cells with a CV score", *where)
        return observed

    def _column_of_cells(self, name: str) -> None:
        values = self._of_cells(name)
        fits = np.isnan(values) | (np.abs(values) <= 1 + _ROUNDING)
        self.folder.table.require(fits.all(), "it is not a score", name)

    def _of_cells(self, name: str) -> Cells:
        return self.folder.found.cells[name].to_numpy(np.float64).reshape(self.folder.shape)

    def _intervals(self) -> None:
        found, file, folder = self.evidence.intervals, self.file, self.folder
        assert found is not None
        nested = self.evidence.nested_cv
        test_score = None if self.best is None else self.best.test_score
        scores = {"test_score": test_score, "nested_cv_score": None if nested is None else nested.score}
        for name, score_of in scores.items():
            interval = getattr(found, name)
            file.require(
                (interval is not None) == (score_of is not None), "it belongs with its score", "intervals", name
            )
            if interval is not None:
                self._interval(interval, score_of, "intervals", name)
        expected = []
        for p in range(folder.shape[0]):
            if test_score is None or np.isnan(folder.cv[p]).all():
                continue
            i = int(np.nanargmax(folder.cv[p]))
            if (p, i) != folder.at and not np.isnan(folder.test[p, i]):
                expected.append((folder.of.layer_indices[i], folder.of.positions[p], test_score - folder.test[p, i]))
        file.same(len(found.best_minus_cell), len(expected), "the list of positions", "intervals", "best_minus_cell")
        for k, (lead, (layer, position, difference)) in enumerate(zip(found.best_minus_cell, expected, strict=True)):
            where = ("intervals", "best_minus_cell", k)
            file.same(lead.layer, layer, PERFORMANCE, *where, "layer")
            file.same(lead.position, position, PERFORMANCE, *where, "position")
            self._interval(lead.test_score, float(difference), *where, "test_score", is_difference=True)

    def _interval(
        self, interval: Interval, estimate: float | None, *where: object, is_difference: bool = False
    ) -> None:
        """It is of a score, and its ends are where they can be."""
        file, ends = self.file, (interval.low, interval.high)
        if interval.estimate is not None:
            file.same(interval.estimate, estimate, "the score that it is of", *where, "estimate")
        file.same(interval.level, LEVEL, "every interval", *where, "level")
        without = interval.reason is not None
        file.require(
            all((end is None) == without for end in ends), "its ends and its reason do not fit together", *where
        )
        file.require(interval.estimate is not None or without, "it has ends and no estimate", *where, "estimate")
        if interval.low is None or interval.high is None:
            return
        lowest = 0.0 if self.folder.of.metric == "roc_auc" else -1.0
        bounds = (-_WIDEST, _WIDEST) if is_difference else (lowest - _ROUNDING, 1 + _ROUNDING)
        for name, end in (("low", interval.low), ("high", interval.high)):
            file.require(bounds[0] <= end <= bounds[1], "it is out of range", *where, name)
        file.require(interval.low <= interval.high, "its ends are swapped", *where)

    def _baseline(self, name: str, baseline: BaselineScores) -> None:
        file, where, of = self.file, ("baselines", name), self.folder.of
        for which in ("cv_score", "test_score"):
            value = getattr(baseline, which)
            file.require(value is None or of.metric == "spearman" or value >= 0, "areas are not below 0", *where, which)
        file.require(of.k_fold or baseline.cv_score is None, "there is no cross-validation", *where, "cv_score")
        if name == "layer_0":
            self._layer_zero(baseline)
        has_interval = baseline.test_score is not None and name not in _MEANS
        file.require(
            (baseline.test_interval is not None) == has_interval, "it belongs with its score", *where, "test_interval"
        )
        test_score = None if self.best is None else self.best.test_score
        has_difference = has_interval and test_score is not None
        file.require(
            (baseline.difference is not None) == has_difference, "it belongs with its score", *where, "difference"
        )
        if baseline.test_interval is not None:
            self._interval(baseline.test_interval, baseline.test_score, *where, "test_interval")
        if baseline.difference is not None and test_score is not None and baseline.test_score is not None:
            lead = test_score - baseline.test_score
            self._interval(baseline.difference, lead, *where, "difference", is_difference=True)

    def _layer_zero(self, baseline: BaselineScores) -> None:
        """The best cell of layer 0."""
        folder, expected = self.folder, (None, None)
        layers = folder.of.layer_indices
        if 0 in layers and not np.isnan(folder.cv[:, layers.index(0)]).all():
            i = layers.index(0)
            p = int(np.nanargmax(folder.cv[:, i]))
            expected = null_if_nan(folder.cv[p, i]), null_if_nan(folder.test[p, i])
        for which, value in zip(("cv_score", "test_score"), expected, strict=True):
            self.file.same(getattr(baseline, which), value, PERFORMANCE, "baselines", "layer_0", which)

    def _all_scores(self) -> None:
        """The best probe's scores are those of its predictions."""
        best, found, file = self.best, self.evidence.scores, self.file
        if best is None or found is None:
            return
        splits = {"train": best.train_actual, "cv": best.train_actual, "test": best.test_actual}
        held = [name for name in splits if getattr(best, f"{name}_predictions") is not None]
        file.require(set(found) == set(held), f"it is not of {', '.join(held)}", "scores")
        without = {"train": np.isnan(self.folder.train[self.folder.at]), "test": best.test_score is None}
        for name, scores in found.items():
            self._form_of_scores(scores, "scores", name)
            actual = splits[name]
            assert actual is not None
            if without.get(name):
                # Where the sweep has no score, nothing is worked out from predictions that differ by rounding alone.
                known = [key for key, value in vars(scores).items() if key != "undefined" and value is not None]
                file.require(not known, "the sweep has no score of this split", "scores", name, *known[:1])
                continue
            predictions, ranked = (getattr(best, f"{name}_{kind}") for kind in ("predictions", "ranked"))
            self._worked_out(scores, actual, predictions, "scores", name, ranked=ranked)
        main = "spearman" if self.folder.n_classes is None else "roc_auc"
        if "test" in found and best.test_score is not None:
            file.same(getattr(found["test"], main), best.test_score, BEST, "scores", "test", main)
        train = null_if_nan(self.folder.train[self.folder.at])
        if train is not None:
            file.same(getattr(found["train"], main), train, PERFORMANCE, "scores", "train", main)

    def _form_of_scores(self, scores: RegressionScores | ClassScores, *where: object) -> None:
        """Scores of the task, those that are null with a reason, bins in their places."""
        numbers = self.folder.n_classes is None
        self.file.require(isinstance(scores, RegressionScores) == numbers, "they are of another task", *where)
        values = {name: value for name, value in vars(scores).items() if name != "undefined"}
        if isinstance(scores, ClassScores):
            values = self._without_missing_parts(scores, values, *where)
        for name, value in values.items():
            known = (value is None) == (name in scores.undefined)
            self.file.require(known, "it is null without a reason, or has a reason and is not", *where, name)
        self.file.require(set(scores.undefined) <= set(values), "there is no such score", *where, "undefined")
        if isinstance(scores, RegressionScores):
            self.file.require(scores.r2 is None or scores.r2 <= 1, "it is above 1", *where, "r2")
            return
        bins = scores.reliability or ()
        for k, one in enumerate(bins):
            place, empty = (*where, "reliability", k), one.count == 0
            for name, edge in (("low", k / len(bins)), ("high", (k + 1) / len(bins))):
                self.file.same(getattr(one, name), edge, "its place", *place, name)
            for name in ("mean_predicted", "fraction_positive"):
                self.file.require((getattr(one, name) is None) == empty, "it does not match the count", *place, name)

    def _without_missing_parts(self, scores: ClassScores, values: dict[str, Any], *where: object) -> dict[str, Any]:
        """Scores by class belong to the classes; folders of earlier versions have none."""
        later = ("by_class", "confusion")
        if scores.by_class is None and scores.confusion is None and not set(later) & set(scores.undefined):
            return {name: value for name, value in values.items() if name not in later}
        names, file = self.folder.of.names_of_classes, self.file
        if scores.by_class is not None:
            held = tuple(one.name for one in scores.by_class)
            file.same(held, names, PERFORMANCE, *where, "by_class")
            for k, one in enumerate(scores.by_class):
                place = (*where, "by_class", k)
                for name in ("precision", "recall", "f1", "roc_auc"):
                    known = (getattr(one, name) is None) == (name in one.undefined)
                    file.require(known, "it is null without a reason, or has a reason and is not", *place, name)
        if scores.confusion is not None:
            square = [len(row) for row in scores.confusion] == [len(names)] * len(names)
            file.require(square, "it has no number for each pair of classes", *where, "confusion")
        return values

    def _counts_of_classes(self, scores: ClassScores, places: Int64[np.ndarray, " sample"], *where: object) -> None:
        """How many rows are of each class, and what the confusion matrix says of them."""
        if scores.by_class is None or scores.confusion is None:
            return
        file, table = self.file, np.array(scores.confusion)
        counts = np.bincount(places, minlength=len(table)).tolist()
        for k, one in enumerate(scores.by_class):
            place = (*where, "by_class", k)
            file.same(one.support, counts[k], "the list of labels", *place, "support")
            file.same(int(table[k].sum()), counts[k], "the list of labels", *where, "confusion", k)
            right, predicted = int(table[k, k]), int(table[:, k].sum())
            shares = {
                "precision": (right, predicted),
                "recall": (right, counts[k]),
                "f1": (2 * right, counts[k] + predicted),
            }
            for name, (part, whole) in shares.items():
                file.same(getattr(one, name), part / whole if whole else None, "confusion", *place, name)
        if scores.accuracy is not None:
            file.same(scores.accuracy, float(np.trace(table) / len(places)), "confusion", *where, "accuracy")

    def _worked_out(
        self,
        scores: RegressionScores | ClassScores,
        actual: Sequence[float],
        predictions: Any,
        *where: object,
        ranked: Any = None,
    ) -> None:
        """Scores that follow from predictions as the files have them."""
        labels, values = np.asarray(actual, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
        if isinstance(scores, RegressionScores):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                order = values if ranked is None else np.asarray(ranked, dtype=np.float64)
                expected = regression_scores(labels, values, order).values
            self._same_values(plain(scores), expected, *where)
            return
        n_rows = sum(one.count for one in scores.reliability or ())
        self.file.same(n_rows, len(labels), "the list of labels", *where, "reliability")
        places = np.searchsorted(np.asarray(self.folder.of.classes), labels)
        self._counts_of_classes(scores, places.astype(np.int64), *where)
        table = np.stack([1 - values, values], 1) if values.ndim == 1 else values
        self._same_values(plain(scores), _from_probabilities(places, table), *where)

    def _same_values(self, held: Mapping[str, Any], expected: Mapping[str, Any], *where: object) -> None:
        for name, value in expected.items():
            if isinstance(value, dict) and isinstance(held[name], dict):
                self._same_values(held[name], value, *where, name)
            else:
                self.file.same(held[name], value, "its predictions", *where, name)

    def _calibrations(self) -> None:
        from scipy import special

        best, file, folder = self.best, self.file, self.folder
        if best is None:
            return
        is_linear = folder.n_classes is None and not folder.of_rates
        for name, kind in (("calibration", is_linear), ("platt", folder.n_classes == 2 or folder.of_rates)):
            found = getattr(self.evidence, name)
            if found is None:
                continue
            known = found.slope is not None
            for other, held in (("intercept", found.intercept is not None), ("reason", found.reason is None)):
                file.require(held == known, "it does not match the slope", name, other)
            file.require(
                not known or (kind and found.slope > 0), "it is not for this task, or not above 0", name, "slope"
            )
            if not known:
                continue
            if name == "calibration":
                predicted, actual = (
                    np.asarray(values, dtype=np.float64) for values in (best.cv_predictions, best.train_actual)
                )
                file.require(np.ptp(predicted) > 0, f"all predictions in {BEST} are equal", name, "slope")
                fitted = fit_line(predicted, actual)
            else:
                actual = np.asarray(best.train_actual, dtype=np.float64)
                if folder.of.classes is not None:
                    actual = np.searchsorted(np.asarray(folder.of.classes), actual).astype(np.int64)
                scaling = PlattScaling.fit(actual, np.asarray(best.cv_ranked, dtype=np.float64))
                fitted = scaling.slope, scaling.intercept
            for which, value in zip(("slope", "intercept"), fitted, strict=True):
                fits = np.isclose(
                    getattr(found, which), value, rtol=1e-4, atol=1e-4 * (1 + np.abs(best.train_actual).max())
                )
                file.require(fits, f"it is not that of the held-out predictions in {BEST}", name, which)
        self._temperature(best)
        platt = self.evidence.platt
        if platt is None:
            return
        tested = platt.slope is not None and best.test_score is not None
        file.require((platt.test_scores is not None) == tested, "it belongs with the slope", "platt", "test_scores")
        if platt.test_scores is not None and platt.slope is not None and platt.intercept is not None:
            odds = platt.slope * np.asarray(best.test_ranked, dtype=np.float64) + platt.intercept
            self._form_of_scores(platt.test_scores, "platt", "test_scores")
            assert best.test_actual is not None
            where = ("platt", "test_scores")
            self._worked_out(platt.test_scores, best.test_actual, special.expit(odds), *where, ranked=odds)
            main = folder.of.metric
            file.same(getattr(platt.test_scores, main), best.test_score, BEST, *where, main)

    def _temperature(self, best: Best) -> None:
        """It is that of the held-out predictions of more than two classes; folders of earlier versions have none."""
        from scipy import special

        found, file = self.evidence.temperature, self.file
        if found is None:
            return
        known, value = found.temperature is not None, found.temperature or 0.0
        file.require((found.reason is None) == known, "it does not match the temperature", "temperature", "reason")
        file.require((self.folder.n_classes or 0) > 2, "there are not so many classes", "temperature")
        tested = known and best.test_score is not None
        file.require(
            (found.test_scores is not None) == tested, "it belongs with the temperature", "temperature", "test_scores"
        )
        if not known:
            return
        places = np.searchsorted(np.asarray(self.folder.of.classes), np.asarray(best.train_actual)).astype(np.int64)
        # Decision values but for a number for each row, which no softmax shows.
        fitted = TemperatureScaling.fit(places, special.log_expit(np.asarray(best.cv_ranked, dtype=np.float64)))
        fits = not isinstance(fitted, str) and math.isclose(fitted.temperature, value, rel_tol=1e-4)
        file.require(fits, f"it is not that of the held-out predictions in {BEST}", "temperature", "temperature")
        if found.test_scores is None or best.test_actual is None:
            return
        self._form_of_scores(found.test_scores, "temperature", "test_scores")
        scaled = special.softmax(special.log_expit(np.asarray(best.test_ranked, dtype=np.float64)) / value, axis=1)
        self._worked_out(found.test_scores, best.test_actual, scaled, "temperature", "test_scores")

    def _curve(self) -> None:
        points, file, folder = self.evidence.learning_curve or (), self.file, self.folder
        file.require(bool(points) == (self.best is not None), "it belongs with the best probe", "learning_curve")
        pairs = [(point.share, point.n_rows) for point in points]
        file.require(pairs == sorted(pairs), "shares and rows do not grow", "learning_curve")
        for k, point in enumerate(points):
            where = ("learning_curve", k)
            scored = point.cv_score is not None or point.test_score is not None
            file.require(
                point.alpha in (None, *folder.of.alphas), "it is not one of the fitted alphas", *where, "alpha"
            )
            file.require(not scored or point.alpha is not None, "it is null and there are scores", *where, "alpha")
        if points:
            file.same(points[-1].share, 1.0, "the last share", "learning_curve", len(points) - 1, "share")
            file.same(points[-1].n_rows, folder.n_train, RUN, "learning_curve", len(points) - 1, "n_rows")

    def _groups(self) -> None:
        found, file, asked, n_train = self.evidence.groups, self.file, self.folder.asked, self.folder.n_train
        assert found is not None
        file.same(found.column, asked.groups is not None, RUN, "groups", "column")
        exact, repeated = found.n_repeated_prompts, found.n_repeated_but_for_case_and_whitespace
        where = ("groups", "n_repeated_but_for_case_and_whitespace")
        file.require((exact is None) == (repeated is None), "it does not match the exact ones", *where)
        file.require((exact or 0) <= (repeated or 0), "there are more exact ones", *where)
        file.require(repeated is None or not asked.split_repeats, "repeats were not held together", *where)
        most = n_train - (repeated or 0)
        fits = 0 < found.n_groups <= most if found.column else found.n_groups == most
        file.require(fits, f"it does not fit {n_train} rows", "groups", "n_groups")
        overlap = self.evidence.overlap
        if overlap is not None and overlap.dropped is not None:
            file.same(overlap.dropped, asked.drop_overlap, RUN, "overlap", "dropped")

    def _ceilings(self) -> None:
        """They are of the scores of the task, of the rows that there are; folders of earlier versions have none."""
        found, file, folder = self.evidence.ceiling, self.file, self.folder
        if found is None:
            return
        of_test = folder.found.run.request.test is not None
        file.same(set(found), {"train", "test"} if of_test else {"train"}, RUN, "ceiling")
        for name, one in found.items():
            where, known = ("ceiling", name), one.reason is None
            file.require((one.fewest_samples is not None) == known, "it does not match the reason", *where)
            fewest, most = one.fewest_samples or 0, one.most_samples or 0
            file.require(fewest <= most, "there are more", *where, "fewest_samples")
            names = OF_RATES if folder.n_classes is None else OF_CLASSES
            file.same(set(one.scores), set(names) if known else set(), "the task", *where, "scores")
            expected = folder.n_classes is not None and known
            file.same(one.threshold is not None, expected, "the task", *where, "threshold")
            for metric, interval in one.scores.items():
                self._interval(interval, interval.estimate, *where, "scores", metric)
                fits = interval.estimate is None or 0 <= interval.estimate <= 1 + _ROUNDING
                file.require(fits, "it is out of range", *where, "scores", metric, "estimate")
            if one.threshold is not None or not known:
                continue
            pearson, r2 = (one.scores[metric].estimate for metric in ("pearson", "r2"))
            expected = None if pearson is None else pearson**2
            file.same(r2, expected, "the square of pearson's", *where, "scores", "r2", "estimate")


def folder_rows(folder: _Folder) -> int:
    """All test rows, those that were dropped among them."""
    test = folder.found.run.request.test
    return 0 if test is None else test.n_samples


def _probes_of(task_type: str) -> tuple[str, ...]:
    return ("ridge", "binomial", "mass_mean") if task_type == "regression" else ("logistic", "lda", "mass_mean")


def _from_probabilities(places: Any, table: Any) -> dict[str, float]:
    """Scores that are sums over probabilities."""
    one_hot = np.eye(table.shape[1])[places]
    squares = np.square(table - one_hot)
    found = {"brier": float(squares[:, 1].mean() if table.shape[1] == 2 else squares.sum(1).mean())}
    likely = table[np.arange(len(places)), places]
    # Beyond, scikit-learn cuts them off.
    if likely.min(initial=1.0) > 1e-12:
        found["log_loss"] = float(-np.log(likely).mean())
    return found


def _is(value: object, expected: object) -> bool:
    """Equal; floats but for rounding, and what holds them likewise."""
    if isinstance(value, float) and isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    if isinstance(value, Mapping) and isinstance(expected, Mapping):
        return set(value) == set(expected) and all(_is(value[name], expected[name]) for name in value)
    if isinstance(value, tuple) and isinstance(expected, tuple):
        return len(value) == len(expected) and all(map(_is, value, expected))
    return type(value) is type(expected) and value == expected


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
