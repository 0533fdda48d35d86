"""Logistic probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from sklearn.utils.multiclass import check_classification_targets

from gpu_probes.arguments import is_finite_number
from gpu_probes.errors import LabelError
from gpu_probes.estimators.base import ChosenAlpha, Classifier, OneAlpha, coefficients
from gpu_probes.search.alphas import AUTO


class LogisticProbe(OneAlpha, Classifier):
    """Linear probe of classes: scikit-learn's ``LogisticRegression(C=1/alpha)``, solved in float64.

    Minimises ``sum_i s_i logloss(y_i, x_i'w + b) + alpha/2 |w|^2`` with sample weights s: one sigmoid for two classes,
    a softmax with one vector per class for more.

    Parameters
    ----------
    alpha : float
        Penalty above 0, 1/C of scikit-learn.
    class_weight : dict of class to number above 0, or "balanced", optional
        Factor for the weights of each class's samples, 1 for classes not named; "balanced" gives all classes the
        same total weight and leaves the overall total unchanged.
    fit_intercept : bool
        Add an unpenalized intercept b; otherwise b is 0.
    standardize : bool
        Scale every feature to mean 0 and deviation 1 (weighted) before the fit, like ``StandardScaler``.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a GPU if there is one.

    Attributes
    ----------
    coef_ : ndarray [1, feature] or, for more than two classes, [class, feature]
        Coefficients for the raw features, before any scaling.
    intercept_ : ndarray [1] or [class]
        Added to ``X coef_'``; not 0 with `standardize`, which shifts the features.
    direction_ : ndarray [feature]
        `coef_` scaled to length 1, towards the second of two classes.
    classes_ : ndarray [class]
        Sorted.
    n_features_in_ : int
    feature_names_in_ : ndarray [feature]
        Column names, if X has names that are all strings.

    See Also
    --------
    gpu_probes.solvers.objective : the objective, and its relation to scikit-learn's.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        class_weight: Mapping[Any, float] | str | None = None,
        fit_intercept: bool = False,
        standardize: bool = False,
        device: str = "auto",
    ) -> None:
        super().__init__(alpha, fit_intercept=fit_intercept, standardize=standardize, device=device)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticProbe:
        """Fit the probe.

        Parameters
        ----------
        X : array-like [sample, feature]
        y : array-like [sample]
            Classes: numbers, booleans or strings.
        sample_weight : array-like [sample], optional
            Weight of each sample's loss, 0 or more.

        Raises
        ------
        ProbeError
            When there is only one class, all rows are equal, or a parameter or weight cannot be used.

        Warns
        -----
        NotConvergedWarning
            When the solver stopped before it reached its accuracy.
        """
        features, labels, weights = self._read(X, y, sample_weight)
        classes, numbers = _encode(labels, weights)
        weights = _with_class_weight(self.class_weight, classes, numbers, weights)
        (result,) = self._sweep(features, {"y": numbers}, weights)
        self.classes_, (self.coef_, self.intercept_) = classes, coefficients(result)
        return self


class LogisticProbeCV(ChosenAlpha, Classifier):
    """`LogisticProbe` whose alpha has the highest cross-validated ROC-AUC (mean of one-vs-rest for more than two).

    The score of an alpha is the mean of its scores on the folds, each from a fit on the others; on ties the first
    wins, and is fitted on all samples. Scores are those of `sweep` with the same folds. They are not weighted: a sample
    of weight 2 counts once, a repeated sample counts twice.

    Parameters
    ----------
    alphas : sequence of float, or "auto"
        Grid to choose from. ``auto``: the powers of ten from 1e-4 to 100 times the mean eigenvalue of X'X.
    n_folds, seed : int
        scikit-learn's shuffled ``StratifiedKFold``; fewer folds, with a warning, if some would lack a class.
    cv : int, splitter or iterable of (train, test), optional
        Split that replaces `n_folds` and `seed`; it must hold out every sample once and train on all others.
    class_weight : dict of class to number above 0, or "balanced", optional
        As for `LogisticProbe`; "balanced" counts the classes in all samples, also for fits on part of the folds.
    fit_intercept : bool
        Add an unpenalized intercept.
    standardize : bool
        Scale every feature to mean 0 and deviation 1 (weighted), fitted on the training rows of each fold.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a GPU if there is one.

    Attributes
    ----------
    coef_ : ndarray [1, feature] or, for more than two classes, [class, feature]
        Coefficients for the raw features, of the fit on all samples.
    intercept_ : ndarray [1] or [class]
    direction_ : ndarray [feature]
        `coef_` scaled to length 1, towards the second of two classes.
    classes_ : ndarray [class]
        Sorted.
    alpha_, cv_score_ : float
        The chosen alpha and its score, which is the highest of several and so biased slightly upwards.
    alphas_, alpha_cv_scores_ : ndarray [alpha]
        The grid and the score of each alpha, NaN where it is undefined.
    n_folds_, n_features_in_ : int
    feature_names_in_ : ndarray [feature]
        Column names, if X has names that are all strings.
    """

    def __init__(
        self,
        alphas: Sequence[float] | Float64[np.ndarray, " alpha"] | str = AUTO,
        *,
        n_folds: int = 5,
        seed: int = 42,
        cv: Any = None,
        class_weight: Mapping[Any, float] | str | None = None,
        fit_intercept: bool = False,
        standardize: bool = False,
        device: str = "auto",
    ) -> None:
        super().__init__(
            alphas,
            n_folds=n_folds,
            seed=seed,
            cv=cv,
            fit_intercept=fit_intercept,
            standardize=standardize,
            device=device,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> LogisticProbeCV:
        """Choose alpha, then fit on all samples.

        Parameters
        ----------
        X : array-like [sample, feature]
        y : array-like [sample]
            Classes: numbers, booleans or strings.
        sample_weight : array-like [sample], optional
            Weight of each sample's loss, 0 or more.
        groups : array-like [sample], optional
            Samples of a group are held out together (``StratifiedGroupKFold``, or as `cv` treats them).

        Raises
        ------
        ProbeError
            When there is only one class, no alpha has a score, or a parameter or weight cannot be used.

        Warns
        -----
        NotConvergedWarning
            When the solver stopped before it reached its accuracy.
        """
        features, labels, weights = self._read(X, y, sample_weight)
        classes, numbers = _encode(labels, weights)
        weights = _with_class_weight(self.class_weight, classes, numbers, weights)
        result = self._choose(features, numbers, weights, groups)
        self.classes_, (self.coef_, self.intercept_) = classes, coefficients(result)
        return self


def _encode(
    y: Shaped[np.ndarray, " sample"], weights: Float64[np.ndarray, " sample"] | None
) -> tuple[Shaped[np.ndarray, " class"], Int64[np.ndarray, " sample"]]:
    """Classes, and which each sample is of; raises `LabelError` where there are not two of them with weight."""
    check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    missing = classes[np.bincount(numbers, weights) == 0]
    if len(classes) < 2 or len(missing):
        what = f"class {missing[0]} of y has weight 0" if len(missing) else f"y has one class, {y[0]}"
        raise LabelError(f"{what}; a probe tells two or more classes apart", argument="y")
    return classes, numbers


def _with_class_weight(
    class_weight: Any,
    classes: Shaped[np.ndarray, " class"],
    numbers: Int64[np.ndarray, " sample"],
    weights: Float64[np.ndarray, " sample"] | None,
) -> Float64[np.ndarray, " sample"] | None:
    """Weights of the samples, times those of their classes; raises `LabelError` where these are none."""
    if class_weight is None:
        return weights
    each = np.ones(len(numbers)) if weights is None else weights
    if isinstance(class_weight, str) and class_weight == "balanced":
        total = np.bincount(numbers, each)
        return each * (total.sum() / (len(classes) * total))[numbers]
    if not isinstance(class_weight, Mapping):
        raise LabelError(
            f'class_weight={class_weight!r} is unknown; give None, "balanced", or a dict of class to number',
            argument="class_weight",
        )
    for name, value in class_weight.items():
        if name not in classes.tolist():
            raise LabelError(
                f"class_weight names class {name!r}, and y has {classes.tolist()}; name these", argument="class_weight"
            )
        if not is_finite_number(value) or value <= 0:
            raise LabelError(
                f"class_weight {value!r} of class {name!r} is not a weight; give a number above 0",
                argument="class_weight",
            )
    return each * np.array([class_weight.get(name, 1.0) for name in classes.tolist()])[numbers]
