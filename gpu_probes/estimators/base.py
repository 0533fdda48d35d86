"""scikit-learn estimators over the sweep's solvers: each fit is a sweep of one cell, whose features are X."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from gpu_probes.errors import FoldError, ProbeError, ProbeWarning, Status
from gpu_probes.features.cells import ArrayCellSource
from gpu_probes.results.sweep_result import SweepResult
from gpu_probes.samples.folds import plan_folds
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.labels import check_same_numbers, read_weights, resolve_task
from gpu_probes.scores.decisions import probabilities_of
from gpu_probes.scores.ranks import labels_rank
from gpu_probes.search.alphas import AUTO
from gpu_probes.search.options import SweepOptions
from gpu_probes.search.sweep import plan_sweep
from gpu_probes.terms import TaskType

# Kept as they come: the rows are widened to float64 on the device. Anything else becomes float64 first.
_DTYPES = (np.float64, np.float32, np.float16)


class _Probe(BaseEstimator):
    """What all of them share: a sweep of one cell, and what is read off its result."""

    _task_type: TaskType
    _probe_kind: str = "auto"
    fit_intercept: bool
    standardize: bool
    device: str
    coef_: Float64[np.ndarray, "*output feature"]
    intercept_: Float64[np.ndarray, " output"] | float

    @property
    def direction_(self) -> Float64[np.ndarray, " feature"]:
        """Unit vector of the coefficients of the only output ``[feature]``.

        Raises
        ------
        AttributeError
            Before `fit`, or when there are several outputs.
        """
        coef = np.atleast_2d(self.coef_)
        if len(coef) > 1:
            raise AttributeError(f"direction_ is for one output and there are {len(coef)}; take a row of coef_")
        return coef[0] / np.linalg.norm(coef[0])

    def _read(
        self, X: Any, y: Any, sample_weight: Any, **checks: bool
    ) -> tuple[
        Float[np.ndarray, "sample feature"], Shaped[np.ndarray, "sample ..."], Float64[np.ndarray, " sample"] | None
    ]:
        """Validate the parameters, and the input of a fit scikit-learn's way."""
        self._options().check()
        given: Any = validate_data(self, _as_numpy(X), _as_numpy(y), dtype=_DTYPES, ensure_min_samples=2, **checks)
        # What scikit-learn made float64 is no longer told from its neighbours.
        check_same_numbers(_as_numpy(y), given[1], "y")
        return *given, read_weights(_as_numpy(sample_weight), len(given[0]))

    def _options(self) -> SweepOptions:
        """The parameters as a sweep takes them."""
        return SweepOptions(
            task_type=self._task_type,
            probe=self._probe_kind,
            fit_intercept=self.fit_intercept,
            standardize=self.standardize,
            device=self.device,
            nested_cv=False,
        )

    def _sweep(
        self,
        X: Float[np.ndarray, "sample feature"],
        labels: Mapping[str, Shaped[np.ndarray, " sample"]],
        weights: Float64[np.ndarray, " sample"] | None,
        **options: Any,
    ) -> list[SweepResult]:
        """Fit one probe for each label; raises `ProbeError` where there is no solution."""
        given = replace(self._options(), sample_weight=weights, **options)
        results = plan_sweep(ArrayCellSource(X[:, None, None]), labels, **vars(given)).run()
        for name, result in results.items():
            scored = not result.k_fold or bool(np.isfinite(result.cv_score).all())
            if not (scored and np.isfinite(result.coef).all()):
                raise ProbeError(f"there is no probe for {name}: {_why_none(result, X)}")
        self._remember_centre(X, weights, list(results.values()))
        return list(results.values())

    def _remember_centre(
        self,
        X: Float[np.ndarray, "sample feature"],
        weights: Float64[np.ndarray, " sample"] | None,
        results: Sequence[SweepResult],
    ) -> None:
        """Decisions are counted from the mean of the training rows: from 0 digits are lost that far features lack."""
        self._centre, self._decision_there = np.zeros(X.shape[1]), np.concatenate([r.intercept[0, 0] for r in results])
        if self.fit_intercept or self.standardize:
            self._centre = np.average(X.astype(np.float64), axis=0, weights=weights)
            offsets = [result.train_decision[0, 0] - (X - self._centre) @ result.coef[0, 0].T for result in results]
            self._decision_there = np.average(np.concatenate(offsets, axis=1), axis=0, weights=weights)

    def _decide(self, X: Any) -> Float64[np.ndarray, "sample ..."]:
        # Not any attribute: a fit that failed leaves those of the input.
        check_is_fitted(self, "coef_")
        rows: Any = validate_data(self, _as_numpy(X), dtype=_DTYPES, reset=False)
        there = self._decision_there if self.coef_.ndim == 2 else self._decision_there[0]
        return (rows - self._centre) @ self.coef_.T + there


class Regressor(RegressorMixin, _Probe):
    """Numbers."""

    _task_type = "regression"

    def predict(self, X: Any) -> Float64[np.ndarray, "sample ..."]:
        """Return ``X coef_' + intercept_``.

        Parameters
        ----------
        X : array-like [sample, feature]

        Returns
        -------
        ndarray [sample] or [sample, output]
            As the `y` of `fit`.
        """
        return self._decide(X)


class Classifier(ClassifierMixin, _Probe):
    """Classes of any type that scikit-learn takes."""

    _task_type = "classification"
    classes_: Shaped[np.ndarray, " class"]

    def decision_function(self, X: Any) -> Float64[np.ndarray, "sample ..."]:
        """Return ``X coef_' + intercept_``, of which probabilities are the sigmoid or softmax.

        Parameters
        ----------
        X : array-like [sample, feature]

        Returns
        -------
        ndarray [sample] or, for more than two classes, [sample, class]
        """
        decision = self._decide(X)
        return decision[:, 0] if decision.shape[1] == 1 else decision

    def predict(self, X: Any) -> Shaped[np.ndarray, " sample"]:
        """Return the most probable class of each sample.

        Parameters
        ----------
        X : array-like [sample, feature]

        Returns
        -------
        ndarray [sample]
        """
        decision = self.decision_function(X)
        return self.classes_[(decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(1)]

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "sample class"]:
        """Return the probability of each class, in the order of `classes_`.

        Parameters
        ----------
        X : array-like [sample, feature]

        Returns
        -------
        ndarray [sample, class]
        """
        probability = probabilities_of(self._decide(X))
        return np.hstack([1 - probability, probability]) if probability.shape[1] == 1 else probability


class OneAlpha(_Probe):
    """Parameters of the probes with one alpha."""

    def __init__(
        self, alpha: float = 1.0, *, fit_intercept: bool = False, standardize: bool = False, device: str = "auto"
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.device = device

    def _options(self) -> SweepOptions:
        return replace(super()._options(), alpha=self.alpha)


class ChosenAlpha(_Probe):
    """Parameters of the probes that choose their alpha, and the choice."""

    alphas_: Float64[np.ndarray, " alpha"]
    alpha_: float
    alpha_cv_scores_: Float64[np.ndarray, " alpha"]
    cv_score_: float
    n_folds_: int

    def __init__(
        self,
        alphas: Sequence[float] | Float64[np.ndarray, " alpha"] | str = AUTO,
        *,
        n_folds: int = 5,
        seed: int = 42,
        cv: Any = None,
        fit_intercept: bool = False,
        standardize: bool = False,
        device: str = "auto",
    ) -> None:
        self.alphas = alphas
        self.n_folds = n_folds
        self.seed = seed
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.device = device

    def _options(self) -> SweepOptions:
        split = {} if self.cv is not None else {"n_folds": self.n_folds, "seed": self.seed}
        return replace(super()._options(), alphas=self.alphas, k_fold=True, **split)

    def _choose(
        self,
        X: Float[np.ndarray, "sample feature"],
        y: Shaped[np.ndarray, " sample"],
        weights: Float64[np.ndarray, " sample"] | None,
        groups: Any,
    ) -> SweepResult:
        """Cross-validate, and keep the scores and the choice."""
        numbers = y.astype(np.float64)
        if self.cv is None:
            folds = self._plan_folds(numbers, groups)
        else:
            splitter: Any = check_cv(self.cv, y, classifier=is_classifier(self))
            folds = _fold_of_sample(splitter.split(X, y, groups), len(y))
        (result,) = self._sweep(X, {"y": y}, weights, folds=folds)
        self.alphas_ = np.array(result.alphas)
        self.alpha_ = float(result.selected_alpha[0, 0])
        self.alpha_cv_scores_ = result.alpha_cv_score[0, 0]
        self.cv_score_ = float(result.cv_score[0, 0])
        self.n_folds_ = result.n_folds
        return result

    def _plan_folds(self, labels: Float64[np.ndarray, " sample"], groups: Any) -> Int64[np.ndarray, " sample"]:
        """As many folds as asked for, or the most that all have a score."""
        grouping = group_samples(len(labels), groups)
        group = None if grouping.is_trivial else grouping.group
        task = resolve_task(self._task_type, labels)
        targets = torch.from_numpy(task.targets(labels, "y").copy())
        numbers = task.classes is None
        for n_folds in [self.n_folds, *range(self.n_folds - 1, 1, -1)]:
            plan = plan_folds(labels, n_folds=n_folds, seed=self.seed, groups=group, numbers=numbers)
            folds = plan.fold_of_sample
            if all(labels_rank(self._task_type, targets[folds == fold]) for fold in range(n_folds)):
                if n_folds < self.n_folds:
                    why = f"some of {self.n_folds} folds would lack a class or hold a single value of y"
                    warnings.warn(f"{why}; using {n_folds}", ProbeWarning, stacklevel=4)
                return folds
        raise FoldError("y cannot be split into two folds that each hold every class, or two values; give more samples")


def coefficients(
    result: SweepResult,
) -> tuple[Float64[np.ndarray, "output feature"], Float64[np.ndarray, " output"]]:
    """Of the only cell."""
    return result.coef[0, 0], result.intercept[0, 0]


def _why_none(result: SweepResult, X: Float[np.ndarray, "sample feature"]) -> str | None:
    """Why there is no probe; every value of X is finite."""
    if result.status[0, 0] is not Status.NON_FINITE:
        return result.reason(0, 0)
    largest = float(np.abs(X).max())
    return f"the largest feature is {largest:.3g}, and squares of such numbers overflow; divide X by {largest:.0e}"


def _as_numpy(values: Any) -> Any:
    """A tensor as an array, from wherever it lies; bfloat16, which NumPy lacks, as float32. All else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _fold_of_sample(
    splits: Iterable[tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " test"]]], n_samples: int
) -> Int64[np.ndarray, " sample"]:
    """Turn splits into fold numbers; raises `FoldError` where they are not a partition."""
    every = np.arange(n_samples)
    folds = np.full(n_samples, -1, dtype=np.int64)
    for fold, (train, held_out) in enumerate(splits):
        both = np.sort(np.concatenate([every[train], every[held_out]]))
        if not np.array_equal(both, every) or (folds[held_out] >= 0).any():
            raise FoldError(
                f"cv split {fold} leaves samples out or holds some out twice; give a cv such as KFold or GroupKFold",
                argument="cv",
            )
        folds[held_out] = fold
    if (folds < 0).any():
        raise FoldError(
            f"cv never holds out sample {int(folds.argmin())}; give a cv such as KFold or GroupKFold", argument="cv"
        )
    return folds
