"""Scores, many columns at once: Spearman and ROC-AUC with midranks, NaN where undefined."""

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.errors import LabelError
from gpu_probes.terms import TaskType


def midranks(values: Float64[Tensor, "*batch sample"]) -> Float64[Tensor, "*batch sample"]:
    """Rank from 1; equal values share the mean of their ranks (scipy's ``rankdata``)."""
    order = _argsort(values)
    return torch.empty_like(values).scatter_(-1, order, _ranks_in_order(values.gather(-1, order)).expand_as(order))


def _ranks_in_order(ordered: Float64[Tensor, "*batch sample"]) -> Float64[Tensor, "*#batch sample"]:
    """Midranks of ascending values: one row for all where no value comes twice."""
    place = torch.arange(ordered.shape[-1], dtype=ordered.dtype, device=ordered.device)
    differs = ordered[..., 1:] != ordered[..., :-1]
    # A GPU takes the general way sooner than it says whether the short one is open.
    if differs.device.type == "cpu" and bool(differs.all()):
        return (place + 1).expand(*[1] * (ordered.dim() - 1), -1)
    edge = torch.ones_like(ordered[..., :1], dtype=torch.bool)
    first = torch.where(torch.cat([edge, differs], -1), place, 0).cummax(-1).values
    is_last = torch.cat([differs, edge], -1)
    last = torch.where(is_last, place, ordered.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return (first + last) / 2 + 1


def _argsort(values: Float64[Tensor, "*batch sample"]) -> Int64[Tensor, "*batch sample"]:
    """Order of the values along the last axis; on a CPU NumPy's, which sorts many times faster than torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), axis=-1))
    return values.argsort(dim=-1)


def spearman(
    targets: Float64[Tensor, "*#column sample"], predictions: Float64[Tensor, "*column sample"]
) -> Float64[Tensor, "*column"]:
    """Pearson correlation of midranks; NaN where either side is constant."""
    return correlate_ranks(unit_ranks(targets), predictions)


def unit_ranks(targets: Float64[Tensor, "*column sample"]) -> Float64[Tensor, "*column sample"]:
    """Midranks with mean 0 and norm 1; NaN where all values are equal."""
    ranks = midranks(targets) - (1 + targets.shape[-1]) / 2
    return ranks / torch.linalg.vector_norm(ranks, dim=-1, keepdim=True)


def unit_ranks_of_places(places: Int64[Tensor, "column sample"], n_places: int) -> Float64[Tensor, "column sample"]:
    """`unit_ranks` of values given by their places among all distinct ones: on a CPU counted, which takes no sort."""
    if places.device.type != "cpu":
        return unit_ranks(places.double())
    # Twice the midranks less their mean.
    ranks = np.empty(places.shape)
    for column, row in enumerate(places.numpy()):
        upto = np.zeros(n_places + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=n_places), out=upto[1:])
        ranks[column] = (upto[:-1] + upto[1:] - len(row)).take(row)
    unit = torch.from_numpy(ranks)
    return unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True)


def correlate_ranks(
    targets: Float64[Tensor, "*#column sample"], predictions: Float64[Tensor, "*column sample"]
) -> Float64[Tensor, "*column"]:
    """Pearson correlation of `unit_ranks` of targets with the midranks of predictions."""
    # The targets are put into the order of the predictions rather than ranks into that of the samples: a pass less.
    order = _argsort(predictions)
    ranks = _ranks_in_order(predictions.gather(-1, order)) - (1 + order.shape[-1]) / 2
    product = torch.linalg.vecdot(targets.expand_as(order).gather(-1, order), ranks)
    return product / torch.linalg.vector_norm(ranks, dim=-1)


def roc_auc(
    targets: Float64[Tensor, "*#column sample output"], ranked: Float64[Tensor, "*column sample output"]
) -> Float64[Tensor, "*column"]:
    """Area under the ROC curve, the Mann-Whitney way; the mean of one-vs-rest areas for several outputs.

    `ranked` is what each output orders samples by. NaN where an output has no positives or no negatives. The targets
    are those of `labels_rank`: 0 or 1.
    """
    positives = targets.sum(-2)
    negatives = targets.shape[-2] - positives
    by_output = ranked.mT
    # As in `correlate_ranks`; sums of midranks are exact in any order.
    order = _argsort(by_output)
    ranks = _ranks_in_order(by_output.gather(-1, order))
    rank_sum = torch.linalg.vecdot(targets.mT.expand_as(order).gather(-1, order), ranks)
    area = (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
    return area.mean(-1)


def rounding_level(
    largest_norm: Float64[Tensor, " cell"], coef: Float64[Tensor, "cell column output feature"]
) -> Float64[Tensor, "cell column output"]:
    """How far apart two dot products x'w may come out for the same x: eps times features times the largest |x||w|."""
    unit = torch.finfo(coef.dtype).eps * coef.shape[-1]
    return unit * largest_norm[:, None, None] * coef.norm(dim=-1)


def is_flat(
    decision: Float64[Tensor, "cell column sample output"], level: Float64[Tensor, "cell column output"]
) -> Bool[Tensor, "cell column"]:
    """Whether some output's decision values spread no wider than rounding (or are NaN): noise is never ranked."""
    spread = decision.amax(2) - decision.amin(2)
    return ~(spread > level).all(-1)


def labels_rank(task_type: TaskType, targets: Float64[Tensor, "sample output"]) -> bool:
    """Whether the metric is defined for these labels: two values, or every class, present.

    Raises
    ------
    LabelError
        When a target of a class is neither 0 nor 1: sums of ranks would be weighted by it.
    """
    if targets.shape[0] == 0:
        return False
    if task_type == "classification" and not bool(((targets == 0) | (targets == 1)).all()):
        raise LabelError("targets of classes are 1 for rows of the class and 0 for others; give those, not class names")
    lowest, highest = targets.amin(0), targets.amax(0)
    if task_type == "regression":
        return bool((highest > lowest).all())
    return bool(((lowest == 0) & (highest == 1)).all())


def ranked(decision: Float64[Tensor, "*batch output"]) -> Float64[Tensor, "*batch output"]:
    """What to rank samples by: decision values; of several classes each one's log odds against all others.

    They order samples as probabilities do, which round to 1 and tie.
    """
    if decision.shape[-1] == 1:
        return decision
    top = decision.max(-1, keepdim=True)
    odds = torch.exp(decision - top.values)
    # Against the others, of which the most probable class is one; that class itself would cancel.
    log_odds = decision - top.values - torch.log(odds.sum(-1, keepdim=True) - odds)
    others = torch.logsumexp(decision.scatter(-1, top.indices, -torch.inf), -1, keepdim=True)
    return log_odds.scatter(-1, top.indices, top.values - others)


def score(
    task_type: TaskType,
    targets: Float64[Tensor, "*#column sample output"],
    ranked: Float64[Tensor, "*column sample output"],
) -> Float64[Tensor, "*column"]:
    """The task's metric for each column, NaN where it is undefined; `ranked` as by the function `ranked`."""
    if task_type == "regression":
        return spearman(targets[..., 0], ranked[..., 0])
    return roc_auc(targets, ranked)


def score_decision(
    task_type: TaskType,
    targets: Float64[Tensor, "*#column sample output"],
    decision: Float64[Tensor, "cell column sample output"],
    coef: Float64[Tensor, "cell column output feature"],
    largest_norm: Float64[Tensor, " cell"],
) -> tuple[Float64[Tensor, "cell column"], Bool[Tensor, "cell column"]]:
    """The task's metric of decision values, and which columns are flat: these have no score.

    Parameters
    ----------
    task_type : regression or classification
    targets : Tensor [..., sample, output]
    decision : Tensor [cell, column, sample, output]
    coef : Tensor [cell, column, output, feature]
        What the decision values were computed with.
    largest_norm : Tensor [cell]
        Of the longest row.
    """
    flat = is_flat(decision, rounding_level(largest_norm, coef))
    return torch.where(flat, torch.nan, score(task_type, targets, ranked(decision))), flat
