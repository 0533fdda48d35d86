"""What a probe has to beat: the same fit on a single number for each sample."""

from __future__ import annotations

import numpy as np
from jaxtyping import Real

from gpu_probes.cells import ArrayCellSource
from gpu_probes.results import SweepResult
from gpu_probes.sweep import sweep


def score_number(
    result: SweepResult, train_values: Real[np.ndarray, " train_sample"], test_values: Real[np.ndarray, " test_sample"]
) -> dict[str, float | None]:
    """Score one number per sample, such as the prompt's length, in the units of a finished sweep.

    The number is standardised with the training rows' mean and deviation, so that a fit without an intercept can give
    it either sign; the labels, the folds and the metric are those of `result`.

    Parameters
    ----------
    result : SweepResult
        The sweep to compare with.
    train_values, test_values : ndarray [sample]
        The number for each training and test sample.

    Returns
    -------
    dict
        ``train_score``, ``test_score``, ``cv_score``; None where undefined.
    """
    centre, scale = train_values.mean(), train_values.std() or 1.0
    source, held_out = (
        ArrayCellSource(((values - centre) / scale)[:, None, None, None], layers=(0,), positions=(-1,))
        for values in (train_values, test_values)
    )
    fitted = sweep(
        source,
        result.train_labels,
        held_out,
        result.test_labels,
        task_type=result.task_type,
        alpha=1.0,
        k_fold=result.k_fold,
        n_folds=result.n_folds,
        seed=result.seed,
        device="cpu",
    )
    scores = {"train_score": fitted.train_score, "test_score": fitted.test_score, "cv_score": fitted.cv_score}
    return {name: None if np.isnan(value[0, 0]) else float(value[0, 0]) for name, value in scores.items()}
