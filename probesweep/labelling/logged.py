"""What a log of an evaluation holds, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probesweep.errors import RequestError
from probesweep.labelling.columns import FORMATTED_PROMPT, OUTCOME_COLUMNS, Attempt

QUESTION, ANSWER = "question", "answer"
# What else a log holds has other names.
TAKEN = {QUESTION, ANSWER, FORMATTED_PROMPT, *OUTCOME_COLUMNS}


@dataclass(frozen=True, eq=False)
class Logged:
    """Questions and the attempts at them.

    Parameters
    ----------
    questions : sequence
        Texts, or conversations.
    answers : sequence
        Reference answers; None where there is none.
    attempts : sequence of sequence of Attempt
        For each question.
    prompts : sequence of str or None
        As the model got them.
    others : dict of sequence
        What else is known of each question.
    recognized : str
        What the file was taken for.
    """

    questions: Sequence[Any]
    answers: Sequence[Any]
    attempts: Sequence[Sequence[Attempt]]
    prompts: Sequence[str | None]
    others: Mapping[str, Sequence[Any]]
    recognized: str


def choose_metric(path: Path, names: Sequence[str], metric: str | None) -> str:
    """The score that counts.

    Raises
    ------
    RequestError
        There is none of that name, or of several none was named; lists them.
    """
    if metric is None and len(names) == 1:
        return names[0]
    if metric in names and metric is not None:
        return metric
    told = "choose one with metric=NAME" if metric is None else f"there is no {metric!r}"
    raise RequestError(f"{path} has several scores: {'; '.join(names)}; {told}", argument="metric")


def is_share(value: Any) -> bool:
    """Whether a value grades an answer: true or false, or a number from 0 to 1."""
    return isinstance(value, bool | int | float) and math.isfinite(value) and 0 <= value <= 1
