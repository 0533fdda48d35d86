"""One probe's decision values as users see them, as scores rank them, and what they score."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from scipy import special

from gpu_probes.samples.labels import Task
from gpu_probes.scores import ranks
from gpu_probes.terms import ProbeKind, TaskType


def score_rows(
    task: Task,
    labels: Float64[np.ndarray, " sample"],
    decision: Float64[np.ndarray, "sample output"],
    coef: Float64[np.ndarray, "output feature"],
    norms: Float64[np.ndarray, " sample"],
) -> float:
    """The sweep's score of one probe's decision values; NaN where it is undefined, as there.

    Parameters
    ----------
    task : Task
    labels : ndarray [sample]
    decision : ndarray [sample, output]
    coef : ndarray [output, feature]
        What the decision values were computed with.
    norms : ndarray [sample]
        Of the rows.
    """
    targets = torch.from_numpy(task.targets(labels, "labels").copy())
    if not ranks.labels_rank(task.task_type, targets):
        return float("nan")
    values, weights = (torch.from_numpy(each)[None, None] for each in (decision, coef))
    largest = torch.tensor([norms.max()])
    scores, _ = ranks.score_decision(task.task_type, targets[None, None], values, weights, largest)
    return float(scores)


def is_flat(
    decision: Float64[np.ndarray, "sample output"],
    coef: Float64[np.ndarray, "output feature"],
    norms: Float64[np.ndarray, " sample"],
) -> bool:
    """Whether decision values differ by no more than rounding, so that no score is defined; as `score_rows`."""
    values, weights = (torch.from_numpy(each)[None, None] for each in (decision, coef))
    level = ranks.rounding_level(torch.tensor([norms.max()]), weights)
    return bool(ranks.is_flat(values, level))


def predictions_of(
    decision: Float64[np.ndarray, "*batch sample output"], task_type: TaskType, probe: ProbeKind
) -> Float64[np.ndarray, "*batch sample output"]:
    """What users see: numbers as they are, rates of a binomial probe, probabilities of classes."""
    return decision if task_type == "regression" and probe != "binomial" else probabilities_of(decision)


def probabilities_of(
    decision: Float64[np.ndarray, "*batch sample output"],
) -> Float64[np.ndarray, "*batch sample output"]:
    """The sigmoid of a single output, the softmax of several.

    Of each value by itself: torch's sigmoid of the last values of an array can differ in the last bit from that of the
    same values elsewhere.
    """
    return special.expit(decision) if decision.shape[-1] == 1 else special.softmax(decision, axis=-1)


def most_probable(decision: Float64[np.ndarray, "sample output"]) -> Int64[np.ndarray, " sample"]:
    """Place of the class with the highest decision value; of two classes the second where it is above 0."""
    return (decision[:, 0] > 0).astype(np.int64) if decision.shape[1] == 1 else decision.argmax(1)


def ranked(decision: Float64[np.ndarray, "sample output"]) -> Float64[np.ndarray, "sample output"]:
    """What scores rank: decision values, and each class's log odds where there are more than two."""
    return ranks.ranked(torch.tensor(decision)).numpy()


def one_column(values: Float64[np.ndarray, "sample output"]) -> Shaped[np.ndarray, "sample ..."]:
    """Values of a single output as [sample]; of several as they are."""
    return values[:, 0] if values.shape[1] == 1 else values
