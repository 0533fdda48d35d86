"""What a probe has to beat: other predictors of the same labels, with the same folds and resampling units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import numpy as np
from jaxtyping import Float64, Real

from gpu_probes.features.cells import ArrayCellSource, CellSource
from gpu_probes.features.combine import JoinedCells
from gpu_probes.results.sweep_result import SweepResult
from gpu_probes.samples.folds import FoldPlan
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.labels import Task
from gpu_probes.samples.shuffles import draw_shuffles
from gpu_probes.scores.decisions import score_rows
from gpu_probes.search.devices import return_freed_memory
from gpu_probes.search.options import SweepKeywords, SweepOptions
from gpu_probes.search.sweep import plan_sweep
from gpu_probes.terms import Cell

N_RANDOM = 10
TFIDF_ALPHAS = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Baseline:
    """Scores of a predictor, NaN where undefined, and why; its decision values, if it is a single predictor.

    `name` is its key in the files, `title` what users read.
    """

    name: str
    title: str
    cv_score: float
    test_score: float
    test_decision: Float64[np.ndarray, "test_sample output"] | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """A finished sweep, what it was fitted on, and its options."""

    result: SweepResult
    train: CellSource
    test: CellSource | None
    options: SweepOptions

    def sweep_column(
        self,
        train_values: Float64[np.ndarray, "train_sample column"],
        test_values: Float64[np.ndarray, "test_sample column"] | None,
    ) -> SweepResult:
        """Fit each column alone, with an intercept and a scale, and almost no penalty."""
        train, test = (
            None if values is None else ArrayCellSource(values[:, :, None, None])
            for values in (train_values, test_values)
        )
        assert train is not None
        probe = "binomial" if self.result.probe == "binomial" else "auto"
        return self.sweep_on(train, test, probe=probe, alpha=1e-3, alphas=None, fit_intercept=True, standardize=True)

    def sweep_on(self, train: CellSource, test: CellSource | None, **changes: Unpack[SweepKeywords]) -> SweepResult:
        """Fit the same labels with the same folds on other cells."""
        tested = None if self.result.test_labels is None else {"labels": self.result.test_labels}
        return self._sweep(train, {"labels": self.result.train_labels}, test, tested, changes)["labels"]

    def sweep_shuffled(
        self,
        cell: Cell,
        train_labels: dict[str, Real[np.ndarray, " train_sample"]],
        test_labels: dict[str, Real[np.ndarray, " test_sample"]] | None,
    ) -> dict[str, SweepResult]:
        """Fit other labels on one cell."""
        train, test = self.on_cell(cell)
        return self._sweep(train, train_labels, test, test_labels, {})

    def on_cell(self, cell: Cell) -> tuple[CellSource, CellSource | None]:
        """One cell of both sources."""
        return JoinedCells(self.train, [cell]), None if self.test is None else JoinedCells(self.test, [cell])

    def _sweep(
        self,
        train: CellSource,
        train_labels: dict[str, Any],
        test: CellSource | None,
        test_labels: dict[str, Any] | None,
        changes: SweepKeywords,
    ) -> dict[str, SweepResult]:
        # The budget is that of the sweep before, whose threads have left freed memory behind.
        return_freed_memory()
        return plan_sweep(train, train_labels, test, test_labels, **self._options(changes)).run()

    def _options(self, changes: SweepKeywords) -> SweepKeywords:
        """The same task, folds and weights; only what a comparison needs."""
        grid = self.result.alphas if self.result.alpha_grid is not None else None
        task_type = self.result.task_type
        kept = replace(self.options, task_type=task_type, alphas=grid, nested_cv=False, permutations=0, progress=None)
        # The labels of a result are the places of their classes already, in the order that was asked for.
        kept = replace(kept, positive_class=None)
        if kept.machines.many:
            # A few cells are not worth a cluster, and the GPUs of one need not be here.
            device = "cpu" if kept.device == "cpu" else "auto"
            kept = replace(kept, workers=None, ray=None, device=device)
        return cast(SweepKeywords, vars(replace(kept, **changes)))


def number_baseline(
    comparison: Comparison,
    name: str,
    train_values: Real[np.ndarray, " train_sample"],
    test_values: Real[np.ndarray, " test_sample"] | None,
) -> Baseline:
    """One number for each sample, such as the length of its prompt."""
    tested = None if test_values is None else np.asarray(test_values, dtype=np.float64)[:, None]
    fitted = comparison.sweep_column(np.asarray(train_values, dtype=np.float64)[:, None], tested)
    status = fitted.reason(0, 0)
    cv_score, test_score = (float(grid[0, 0]) for grid in (fitted.cv_score, fitted.test_score))
    decision = None if fitted.test_decision is None or np.isnan(test_score) else fitted.test_decision[0, 0]
    note = status or "a fit on this number alone"
    return Baseline(name, name.replace("_", " "), cv_score, test_score, decision, note)


def layer_zero_baseline(comparison: Comparison) -> Baseline:
    """The embeddings: the best cell of layer 0."""
    result, names = comparison.result, ("layer_0", "layer 0 (embeddings)")
    if 0 not in result.layers:
        return Baseline(*names, np.nan, np.nan, None, "layer 0 is not among the layers")
    i = result.layers.index(0)
    if np.isnan(result.cv_score[:, i]).all():
        return Baseline(*names, np.nan, np.nan, None, result.status[0, i].value)
    p = int(np.nanargmax(result.cv_score[:, i]))
    decision = None if result.test_decision is None else result.test_decision[p, i]
    note = f"its best position, {result.positions[p]}"
    return Baseline(*names, float(result.cv_score[p, i]), float(result.test_score[p, i]), decision, note)


def random_direction_baseline(comparison: Comparison, cell: Cell, seed: int) -> Baseline:
    """Projections of the best cell onto random directions, with sign and scale fitted."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((comparison.train.n_features, N_RANDOM))
    tested = None if comparison.test is None else _project(comparison.test, cell, directions)
    fitted = comparison.sweep_column(_project(comparison.train, cell, directions), tested)
    return Baseline(
        "random_direction",
        "random direction",
        float(fitted.cv_score.mean()),
        float(fitted.test_score.mean()),
        None,
        f"mean over {N_RANDOM} directions in the best cell",
    )


def random_labels_baseline(comparison: Comparison, cell: Cell, seed: int) -> Baseline:
    """The best cell fitted to permuted labels and scored against them (Hewitt & Liang 2019: selectivity)."""
    result, options = comparison.result, comparison.options
    names, rng = ("random_labels", "random labels"), np.random.default_rng(seed)
    grouping = group_samples(len(result.train_labels), options.groups, options.prompts)
    folds = FoldPlan.without_folds(len(result.train_labels))
    drawn = draw_shuffles(result.train_labels, grouping, folds, n_shuffles=N_RANDOM, seed=seed)
    if isinstance(drawn, str):
        return Baseline(*names, np.nan, np.nan, None, drawn)
    train = {str(k): result.train_labels[order] for k, (order,) in enumerate(drawn.batches(1))}
    held_out = result.test_labels
    test = None if held_out is None else {str(k): rng.permutation(held_out) for k in range(N_RANDOM)}
    fitted = comparison.sweep_shuffled(cell, train, test).values()
    cv, tested = (float(np.mean([getattr(one, score)[0, 0] for one in fitted])) for score in ("cv_score", "test_score"))
    return Baseline(*names, cv, tested, None, f"mean over {N_RANDOM} shuffles, in the best cell")


def tfidf_baseline(comparison: Comparison, train_texts: Sequence[str], test_texts: Sequence[str] | None) -> Baseline:
    """Words of the prompts: TF-IDF and ridge or logistic regression, alpha by cross-validation on the same folds."""
    result = comparison.result
    numbers = "binomial regression" if result.probe == "binomial" else "ridge"
    model = numbers if result.task_type == "regression" else "logistic regression"
    names, note = ("tfidf", f"TF-IDF, {model}"), f"alpha of {', '.join(f'{alpha:g}' for alpha in TFIDF_ALPHAS)} by CV"
    texts = np.array(train_texts, dtype=object)
    cv = np.full(len(TFIDF_ALPHAS), np.nan)
    if result.fold_of_sample is not None:
        folds = [_fold_scores(comparison, texts, result.fold_of_sample == k) for k in range(result.n_folds)]
        cv = np.mean(folds, axis=0)
        if np.isnan(cv).all():
            return Baseline(*names, np.nan, np.nan, None, "its score is undefined in some fold")
        chosen = int(np.nanargmax(cv))
    else:
        chosen, note = TFIDF_ALPHAS.index(1.0), "alpha 1"
    if test_texts is None or result.test_labels is None:
        return Baseline(*names, float(cv[chosen]), np.nan, None, note)
    everything = np.ones(len(texts), dtype=bool)
    try:
        fit = _fit_texts(comparison, texts, everything, np.array(test_texts, dtype=object))[chosen]
    except ValueError as error:
        return Baseline(*names, np.nan, np.nan, None, f"the prompts have no words to count ({error})")
    test_score = _score(result, result.test_labels, fit)
    return Baseline(*names, float(cv[chosen]), test_score, fit.decision, note)


def _project(
    source: CellSource, cell: Cell, directions: Float64[np.ndarray, "feature direction"]
) -> Float64[np.ndarray, "sample direction"]:
    # Non-finite rows get a status, not a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([block.astype(np.float64) @ directions for _, block in source.cell_blocks(*cell)])


def _fold_scores(comparison: Comparison, texts: np.ndarray, held_out: np.ndarray) -> list[float]:
    """Score on a fold of every alpha; NaN where the texts have no words."""
    labels = comparison.result.train_labels[held_out]
    try:
        fits = _fit_texts(comparison, texts, ~held_out, texts[held_out])
    except ValueError:
        return [np.nan] * len(TFIDF_ALPHAS)
    return [_score(comparison.result, labels, fit) for fit in fits]


@dataclass(frozen=True)
class _TextFit:
    """Decision values of texts, and what they were computed with: coefficients, and the lengths of the texts' rows."""

    decision: Float64[np.ndarray, "sample output"]
    coef: Float64[np.ndarray, "output word"]
    norms: Float64[np.ndarray, " sample"]


def _fit_texts(comparison: Comparison, texts: np.ndarray, train: np.ndarray, others: np.ndarray) -> list[_TextFit]:
    """Decide on other texts at every alpha; words are counted on the training texts alone."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    result, weights = comparison.result, comparison.options.sample_weight
    used = None if weights is None else np.asarray(weights, dtype=np.float64)[train]
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    counts, labels = vectorizer.fit_transform(texts[train]), result.train_labels[train]
    held_out: Any = vectorizer.transform(others)
    norms = np.asarray(sparse.linalg.norm(held_out, axis=1), dtype=np.float64)
    if result.probe == "binomial":
        # A rate counts for both classes.
        shares = np.concatenate([labels, 1 - labels]) * (1.0 if used is None else np.tile(used, 2))
        both, sides = sparse.vstack([counts, counts]), np.repeat([1, 0], len(labels))
        fits = [LogisticRegression(C=1 / alpha, max_iter=1000).fit(both, sides, shares) for alpha in TFIDF_ALPHAS]
        return [_TextFit(fit.decision_function(held_out)[:, None], fit.coef_, norms) for fit in fits]
    if result.task_type == "regression":
        fits = [Ridge(alpha).fit(counts, labels, used) for alpha in TFIDF_ALPHAS]
        return [_TextFit(np.asarray(fit.predict(held_out))[:, None], np.atleast_2d(fit.coef_), norms) for fit in fits]
    classes = len(result.classes or ())
    if len(np.unique(labels)) < classes:
        nothing = _TextFit(np.full((len(others), 1), np.nan), np.zeros((1, counts.shape[1])), norms)
        return [nothing] * len(TFIDF_ALPHAS)
    fits = [LogisticRegression(C=1 / alpha, max_iter=1000).fit(counts, labels, used) for alpha in TFIDF_ALPHAS]
    return [_TextFit(fit.decision_function(held_out).reshape(len(others), -1), fit.coef_, norms) for fit in fits]


def _score(result: SweepResult, labels: Float64[np.ndarray, " sample"], fit: _TextFit) -> float:
    """The sweep's metric."""
    task = Task(result.task_type, None if result.classes is None else np.array(result.classes))
    return score_rows(task, labels, fit.decision, fit.coef, fit.norms)
