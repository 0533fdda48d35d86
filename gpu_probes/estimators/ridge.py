"""Ridge probes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Tags

from gpu_probes.estimators.base import ChosenAlpha, OneAlpha, Regressor, coefficients


class RidgeProbe(OneAlpha, Regressor):
    """Linear probe of numbers: scikit-learn's ``Ridge``, solved in float64.

    Minimises ``sum_i s_i (y_i - x_i'w - b)^2 + alpha |w|^2`` for each output, with sample weights s; all outputs share
    one factorisation.

    Parameters
    ----------
    alpha : float
        Penalty, 0 or more.
    fit_intercept : bool
        Add an unpenalized intercept b; otherwise b is 0.
    standardize : bool
        Scale every feature to mean 0 and deviation 1 (weighted) before the fit, like ``StandardScaler``.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a GPU if there is one.

    Attributes
    ----------
    coef_ : ndarray [feature] or [output, feature]
        Coefficients for the raw features, before any scaling.
    intercept_ : float or ndarray [output]
        Added to ``X coef_'``; not 0 with `standardize`, which shifts the features.
    direction_ : ndarray [feature]
        `coef_` of the only output, scaled to length 1.
    n_features_in_ : int
    feature_names_in_ : ndarray [feature]
        Column names, if X has names that are all strings.

    See Also
    --------
    gpu_probes.solvers.objective : the objective, and its relation to scikit-learn's.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeProbe:
        """Fit one probe for each output.

        Parameters
        ----------
        X : array-like [sample, feature]
        y : array-like [sample] or [sample, output]
            Numbers.
        sample_weight : array-like [sample], optional
            Weight of each sample's loss, 0 or more.

        Raises
        ------
        ProbeError
            When there is no unique solution (all rows or all labels of an output equal, or singular at alpha 0), or a
            parameter or weight cannot be used.

        Warns
        -----
        NotConvergedWarning
            When the solution misses the solvers' accuracy.
        """
        features, numbers, weights = self._read(X, y, sample_weight, y_numeric=True, multi_output=True)
        columns = {"y": numbers}
        if numbers.ndim == 2:
            columns = {f"column {k} of y": column for k, column in enumerate(numbers.T)}
        results = self._sweep(features, columns, weights)
        coef, intercept = (np.concatenate(values) for values in zip(*map(coefficients, results), strict=True))
        self.coef_, self.intercept_ = (coef, intercept) if numbers.ndim == 2 else (coef[0], float(intercept[0]))
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class RidgeProbeCV(ChosenAlpha, Regressor):
    """`RidgeProbe` whose alpha has the highest cross-validated Spearman correlation.

    The score of an alpha is the mean of its scores on the folds, each from a fit on the others; on ties the first
    wins, and is fitted on all samples. Scores are those of `sweep` with the same folds. They are not weighted: a sample
    of weight 2 counts once, a repeated sample counts twice.

    Parameters
    ----------
    alphas : sequence of float, or "auto"
        Grid to choose from. ``auto``: the powers of ten from 1e-4 to 100 times the mean eigenvalue of X'X.
    n_folds, seed : int
        scikit-learn's shuffled ``KFold``, or ``StratifiedKFold`` if `y` has few enough different integers;
        fewer folds, with a warning, if some would contain a single value.
    cv : int, splitter or iterable of (train, test), optional
        Split that replaces `n_folds` and `seed`; it must hold out every sample once and train on all others.
    fit_intercept : bool
        Add an unpenalized intercept.
    standardize : bool
        Scale every feature to mean 0 and deviation 1 (weighted), fitted on the training rows of each fold.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a GPU if there is one.

    Attributes
    ----------
    coef_ : ndarray [feature]
        Coefficients for the raw features, of the fit on all samples.
    intercept_ : float
    direction_ : ndarray [feature]
        `coef_` scaled to length 1.
    alpha_, cv_score_ : float
        The chosen alpha and its score, which is the highest of several and so biased slightly upwards.
    alphas_, alpha_cv_scores_ : ndarray [alpha]
        The grid and the score of each alpha, NaN where it is undefined.
    n_folds_, n_features_in_ : int
    feature_names_in_ : ndarray [feature]
        Column names, if X has names that are all strings.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> RidgeProbeCV:
        """Choose alpha, then fit on all samples.

        Parameters
        ----------
        X : array-like [sample, feature]
        y : array-like [sample]
            Numbers.
        sample_weight : array-like [sample], optional
            Weight of each sample's loss, 0 or more.
        groups : array-like [sample], optional
            Samples of a group are held out together (``GroupKFold``, or as `cv` treats them).

        Raises
        ------
        ProbeError
            When there is no unique solution, no alpha has a score, or a parameter or weight cannot be used.

        Warns
        -----
        NotConvergedWarning
            When a solution misses the solvers' accuracy.
        """
        features, numbers, weights = self._read(X, y, sample_weight, y_numeric=True)
        coef, intercept = coefficients(self._choose(features, numbers, weights, groups))
        self.coef_, self.intercept_ = coef[0], float(intercept[0])
        return self
