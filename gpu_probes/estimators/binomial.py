"""Binomial probes."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from gpu_probes.estimators.base import ChosenAlpha, OneAlpha, Regressor, coefficients
from gpu_probes.samples.labels import check_rates
from gpu_probes.scores.decisions import probabilities_of


class _Binomial(Regressor):
    """Rates: one output, whose sigmoid is predicted."""

    _probe_kind = "binomial"

    def _read_rates(self, X: Any, y: Any, sample_weight: Any) -> Any:
        features, rates, weights = self._read(X, y, sample_weight, y_numeric=True)
        check_rates(rates.astype(np.float64), "y")
        return features, rates, weights

    def decision_function(self, X: Any) -> Float64[np.ndarray, " sample"]:
        """Return ``X coef_ + intercept_``, the log odds of the rates.

        Parameters
        ----------
        X : array-like [sample, feature]
        """
        return self._decide(X)

    def predict(self, X: Any) -> Float64[np.ndarray, " sample"]:
        """Return the rates, between 0 and 1.

        Parameters
        ----------
        X : array-like [sample, feature]
        """
        return probabilities_of(self.decision_function(X)[:, None])[:, 0]


class BinomialProbe(OneAlpha, _Binomial):
    """Linear probe of success rates: logistic regression on labels between 0 and 1, solved in float64.

    Minimises ``sum_i s_i (y_i logloss(1, z_i) + (1 - y_i) logloss(0, z_i)) + alpha/2 |w|^2`` with ``z_i = x_i'w + b``.
    That is scikit-learn's ``LogisticRegression(C=1/alpha)`` on every row twice: of class 1 with weight ``s_i y_i``, of
    class 0 with weight ``s_i (1 - y_i)``. With the number of attempts as weights it is the likelihood of the counts.

    Parameters
    ----------
    alpha : float
        Penalty above 0, 1/C of scikit-learn.
    fit_intercept : bool
        Add an unpenalized intercept b; otherwise b is 0.
    standardize : bool
        Scale every feature to mean 0 and deviation 1 (weighted) before the fit, like ``StandardScaler``.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a GPU if there is one.

    Attributes
    ----------
    coef_ : ndarray [feature]
        Coefficients for the raw features, before any scaling.
    intercept_ : float
        Added to ``X coef_``; not 0 with `standardize`, which shifts the features.
    direction_ : ndarray [feature]
        `coef_` scaled to length 1, towards higher rates.
    n_features_in_ : int
    feature_names_in_ : ndarray [feature]
        Column names, if X has names that are all strings.

    See Also
    --------
    gpu_probes.solvers.objective : the objective, and its relation to scikit-learn's.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BinomialProbe:
        """Fit the probe.

        Parameters
        ----------
        X : array-like [sample, feature]
        y : array-like [sample]
            Rates between 0 and 1.
        sample_weight : array-like [sample], optional
            Weight of each sample's loss, 0 or more, such as its number of attempts.

        Raises
        ------
        ProbeError
            When a rate is outside 0 to 1, there is no solution (all rows or all rates equal), or a parameter or weight
            cannot be used.

        Warns
        -----
        NotConvergedWarning
            When the solution misses the solvers' accuracy.
        """
        features, rates, weights = self._read_rates(X, y, sample_weight)
        (result,) = self._sweep(features, {"y": rates}, weights)
        coef, intercept = coefficients(result)
        self.coef_, self.intercept_ = coef[0], float(intercept[0])
        return self


class BinomialProbeCV(ChosenAlpha, _Binomial):
    """`BinomialProbe` whose alpha has the highest cross-validated Spearman correlation.

    The score of an alpha is the mean of its scores on the folds, each from a fit on the others; on ties the first
    wins, and is fitted on all samples. Scores are those of `sweep` with the same folds, and are not weighted.

    Parameters
    ----------
    alphas : sequence or array of float, or "auto"
        Penalties above 0; ``auto``: powers of ten, scaled to the features.
    n_folds, seed : int
        scikit-learn's shuffled ``KFold``, or ``GroupKFold`` with groups; fewer folds where some would hold a single
        rate.
    cv : cross-validation generator or iterable of splits, optional
        Instead of them; every sample is held out once.
    fit_intercept, standardize, device
        As for `BinomialProbe`.

    Attributes
    ----------
    coef_, intercept_, direction_, n_features_in_, feature_names_in_
        As for `BinomialProbe`.
    alphas_ : ndarray [alpha]
        Those that were fitted.
    alpha_ : float
        The chosen one.
    alpha_cv_scores_ : ndarray [alpha]
    cv_score_ : float
        Of the chosen alpha: the highest of several, so biased upwards.
    n_folds_ : int
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> BinomialProbeCV:
        """Choose alpha by cross-validation and fit the probe.

        Parameters
        ----------
        X, y, sample_weight
            As for `BinomialProbe`.
        groups : array-like [sample], optional
            Samples of a group are held out together.

        Raises
        ------
        ProbeError
            As `BinomialProbe`; also when `y` or the groups cannot be split into folds.
        """
        features, rates, weights = self._read_rates(X, y, sample_weight)
        result = self._choose(features, rates, weights, groups)
        coef, intercept = coefficients(result)
        self.coef_, self.intercept_ = coef[0], float(intercept[0])
        return self
