"""Whether two devices found the same, as far as the certificates of their fits tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shared.measure import Limit, Spread, Table
from gpu_probes import Cell, SweepResult

# A decision value is a sum of products; three features are some hundred times the others, and there are 1,536.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """One cell, fitted twice.

    Parameters
    ----------
    cell : Cell
    predictions : float
        Norm of the difference of the predictions for the training rows, as a share of the labels' norm; infinite where
        the two chose different alphas.
    allowed : float
        What the certificates of the two fits allow.
    scores : float
        Largest difference of a score: CV, training, test.
    """

    cell: Cell
    predictions: float
    allowed: float
    scores: float


def differences(found: SweepResult, expected: SweepResult, cells: Sequence[Cell]) -> list[Difference]:
    """Compare some cells of two ridge sweeps without an intercept.

    A certificate c says that the objective is at most c |y|^2 / 2 above its minimum. It is quadratic, so it exceeds the
    minimum by at least |X(w - w*)|^2 / 2: the predictions of a fit are within sqrt(c) |y| of the exact ones.
    """
    return [_difference(found, expected, cell) for cell in cells]


def _difference(found: SweepResult, expected: SweepResult, cell: Cell) -> Difference:
    both = (found, expected)
    at = [(result.positions.index(cell.position), result.layers.index(cell.layer)) for result in both]
    alphas = [float(result.selected_alpha[place]) for result, place in zip(both, at, strict=True)]
    certificates = [
        float(result.certificate[place][-1, result.alphas.index(alpha)])
        for result, place, alpha in zip(both, at, alphas, strict=True)
    ]
    decision = [result.train_decision[place] for result, place in zip(both, at, strict=True)]
    off = float(np.linalg.norm(decision[0] - decision[1]) / np.linalg.norm(found.train_labels))
    scores = [
        np.array([result.cv_score[place], result.train_score[place], result.test_score[place]])
        for result, place in zip(both, at, strict=True)
    ]
    return Difference(
        cell=cell,
        predictions=off if alphas[0] == alphas[1] else np.inf,
        allowed=float(np.sqrt(certificates).sum()) + _ROUNDING,
        scores=float(np.abs(scores[0] - scores[1]).max()),
    )


def agreement_table(found: Sequence[Difference]) -> Table:
    rows = [
        {
            "cell": f"layer {one.cell.layer}, position {one.cell.position}",
            "predictions": f"{one.predictions:.0e}",
            "certificates allow": f"{one.allowed:.0e}",
            "scores": f"{one.scores:.0e}",
        }
        for one in found
    ]
    return Table(
        "difference from the same cells fitted on the CPU; of predictions as a share of the labels' norm", rows
    )


def agreement_limits(found: Sequence[Difference]) -> list[Limit]:
    """Scores depend on the order of predictions: a pair of 7,500 rows that changes places moves one by 2e-7."""
    share = max(one.predictions / one.allowed for one in found)
    return [
        Limit("difference from the CPU: predictions / what the certificates allow", 1.0, Spread.of([share])),
        Limit("difference from the CPU: scores", 1e-6, Spread.of([max(one.scores for one in found)])),
    ]
