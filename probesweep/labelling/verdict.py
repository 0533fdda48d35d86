"""What a verifier is, what it says of an answer, and which reference answers it can use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from probesweep.errors import RequestError


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one answer.

    Parameters
    ----------
    extracted : str or None
        The answer that it found in the text, in one form for equal answers; None if there is none.
    correct : float or None
        1 right, 0 wrong, between them a share; None if it cannot be judged.
    """

    extracted: str | None
    correct: float | None


@runtime_checkable
class Verifier(Protocol):
    """Judges answers. Safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """Its specification: another name judges in another way."""
        ...

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge what a model wrote.

        Parameters
        ----------
        text : str
            All of it.
        answer : any
            The reference answer: text, a number, or a list of answers of which each is right.
        row : mapping
            The question's row of the dataset.

        Raises
        ------
        VerifierError
            The user's function raised, or returned what is no verdict.
        """
        ...

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used, to follow the answer in a sentence; None if it can."""
        ...


def check_answers(verifier: Verifier, answers: Sequence[Any], where: str) -> None:
    """Refuse reference answers that a verifier cannot use, before a model is loaded for them.

    Parameters
    ----------
    verifier : Verifier
    answers : sequence
        One for each row.
    where : str
        What holds them, for messages: the file and its column.

    Raises
    ------
    RequestError
        Says how many there are, and why the first cannot be used.
    """
    reasons = {row: reason for row, answer in enumerate(answers) if (reason := verifier.why_unusable(answer))}
    if reasons:
        row, reason = next(iter(reasons.items()))
        raise RequestError(
            f"{where} has {len(reasons)} answers that the verifier {verifier.name} cannot use, the first in row {row}: "
            f"{shown(answers[row])} {reason}; drop or fix them, or choose another verifier",
            argument="answer_column",
        )


def acceptable(answer: Any) -> list[Any]:
    """The answers that are right: one, or those of a list."""
    return list(answer) if isinstance(answer, list | tuple) else [answer]


def why_no_answer(answer: Any) -> str | None:
    """Why a value is no answer at all, whoever judges by it."""
    answers = acceptable(answer)
    if not answers:
        return "is a list without answers"
    for each in answers:
        if each is None or each != each:
            return "is null" if each is answer else "has a null"
        if isinstance(each, str) and not each.strip():
            return "is empty" if each is answer else "has an empty text"
        if not isinstance(each, str | Real | Decimal):
            return f"is neither text nor a number nor a list of these, but {type(each).__name__}"
        if not isinstance(each, str) and not math.isfinite(each):
            return "is infinite" if each is answer else "has an infinite number"
    return None


def as_text(answer: str | float | Decimal) -> str:
    """An answer as people write it: a whole number without a point, as columns with a null have them."""
    if isinstance(answer, str | bool) or answer != answer // 1:
        return str(answer)
    return str(int(answer))


def shown(value: Any) -> str:
    """A value for messages, not too long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
