"""Nested cross-validation: what "the best cell and alpha by CV" scores on samples that played no part in the choice.

For each fold, the cell and alpha with the highest CV score over the other folds are chosen, fitted on those folds, and
scored on the one held out (Varma & Simon 2006). The mean of these scores is unbiased, unlike the best cell's own CV
score, which is the largest of many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from gpu_probes.samples.folds import FoldPlan
from gpu_probes.terms import Cell


@dataclass(frozen=True)
class Choice:
    """What the other folds choose for one fold, and how that does on it."""

    cell: Cell
    alpha: float
    inner_score: float
    outer_score: float


@dataclass(frozen=True)
class NestedCV:
    """The nested CV score of the choice of cell and alpha.

    Attributes
    ----------
    choices : one for each fold
    decision : ndarray [train_sample, output]
        Decision value of each sample, by the probe that was chosen and fitted without its fold.
    """

    choices: tuple[Choice, ...]
    decision: Float64[np.ndarray, "train_sample output"]

    @property
    def score(self) -> float:
        """Mean of the scores on the folds left out."""
        return float(np.mean([choice.outer_score for choice in self.choices]))

    def __repr__(self) -> str:
        """The score, and what was chosen for each fold."""
        lines = [f"NestedCV: score {self.score:.4f} over {len(self.choices)} folds"]
        lines += [
            f"  fold {fold}: layer {one.cell.layer}, position {one.cell.position}, alpha {one.alpha:g}: "
            f"{one.outer_score:.4f}"
            for fold, one in enumerate(self.choices)
        ]
        return "\n".join(lines)


@dataclass
class NestedDecision:
    """Decision values of the cell that the other folds choose for each fold; cells come a few at a time.

    Attributes
    ----------
    fold_of_sample : ndarray [train_sample]
    best : ndarray [fold]
        Highest inner score so far.
    decision : ndarray [train_sample, output]
        NaN where no cell has a score.
    """

    fold_of_sample: Int64[np.ndarray, " train_sample"]
    best: Float64[np.ndarray, " fold"]
    decision: Float64[np.ndarray, "train_sample output"]

    @classmethod
    def nothing(cls, folds: FoldPlan, n_outputs: int) -> NestedDecision:
        """Before the first cell."""
        decision = np.full((len(folds.fold_of_sample), n_outputs), np.nan)
        return cls(folds.fold_of_sample, np.full(folds.n_folds, -np.inf), decision)

    def update(
        self,
        inner_score: Float64[np.ndarray, "cell fold"],
        decision: Float64[np.ndarray, "cell train_sample output"],
    ) -> None:
        """Look at the next cells; of equals the first stays."""
        scores = np.where(np.isnan(inner_score), -np.inf, inner_score)
        for fold in range(scores.shape[1]):
            cell = int(scores[:, fold].argmax())
            if scores[cell, fold] > self.best[fold]:
                self.best[fold], held_out = scores[cell, fold], self.fold_of_sample == fold
                self.decision[held_out] = decision[cell, held_out]


def choose_by_fold(
    layers: tuple[int | str, ...],
    positions: tuple[int | str, ...],
    inner_score: Float64[np.ndarray, "position layer fold"],
    inner_alpha: Float64[np.ndarray, "position layer fold"],
    outer_score: Float64[np.ndarray, "position layer fold"],
    decision: Float64[np.ndarray, "train_sample output"],
) -> NestedCV | str:
    """Choose a cell for each fold: the highest score over the other folds, the first by position, then layer, on ties.

    `inner_alpha` and `inner_score` are each cell's own choice among the alphas, from which `outer_score` follows;
    `decision` is that of the cells chosen (`NestedDecision`).

    Returns
    -------
    NestedCV, or the reason why there is none
    """
    n_folds = inner_score.shape[-1]
    if not n_folds:
        return "nested cross-validation was not done, or it lacks a third fold or weight outside two of them"
    choices = []
    for fold in range(n_folds):
        if np.isnan(inner_score[..., fold]).all():
            return f"no cell has a CV score without fold {fold}"
        p, i = np.unravel_index(np.nanargmax(inner_score[..., fold]), inner_score.shape[:2])
        if np.isnan(outer_score[p, i, fold]):
            return f"the score of the cell that is chosen without fold {fold} is undefined on it"
        values = (float(grid[p, i, fold]) for grid in (inner_alpha, inner_score, outer_score))
        choices.append(Choice(Cell(layers[i], positions[p]), *values))
    return NestedCV(tuple(choices), decision)
