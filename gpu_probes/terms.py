"""Shared terms: what is fitted, for which task, in which cell, and how it was found."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

TaskType = Literal["regression", "classification"]
ProbeKind = Literal["ridge", "logistic", "binomial", "lda", "mass_mean"]
# Whose CV scores a permutation test compares: those of least squares on class indicators or rates, or the probe's own.
PermutationStatistic = Literal["least_squares", "probe"]


class Solver(IntEnum):
    """How a fit was found."""

    NONE = 0
    CHOLESKY = 1
    CORRECTED = 2
    QR = 3
    NEWTON_CG = 4
    NEWTON_CHOLESKY = 5
    CLOSED_FORM = 6


class Cell(NamedTuple):
    """One (layer, position): the values on the axes, not their indices; names where several are joined to one."""

    layer: int | str
    position: int | str
