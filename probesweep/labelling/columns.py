"""What labelling adds to a dataset: attempts, and the columns that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from probesweep.errors import RequestError

# How `finish_reason` says that an attempt was cut off.
LENGTH = "length"
# What becomes of attempts that were cut off: they are wrong, or not judged.
TRUNCATED = ("wrong", "drop")
ATTEMPT = pa.struct(
    [
        ("text", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.float64()),
        ("finish_reason", pa.string()),
        ("n_tokens", pa.int64()),
    ]
)
# In this order. `formatted_prompt` comes from whoever made the prompts.
OUTCOME_COLUMNS = (
    "success_rate",
    "n_samples",
    "n_correct",
    "n_truncated",
    "attempts",
    "majority_answer",
    "majority_is_correct",
)
FORMATTED_PROMPT = "formatted_prompt"


@dataclass(frozen=True)
class Attempt:
    """One answer to a question.

    Parameters
    ----------
    text : str or None
        As the model wrote it; None where it is not known, as for labels that others made.
    extracted : str or None
        The answer that was found in it.
    correct : float or None
        1 right, 0 wrong, between them a share; None if it cannot be judged.
    finish_reason : str or None
        ``stop``, ``length`` (cut off) or what else the engine says.
    n_tokens : int or None
        Of the answer.
    """

    text: str | None
    extracted: str | None
    correct: float | None
    finish_reason: str | None
    n_tokens: int | None


@dataclass(frozen=True)
class Outcome:
    """What the attempts at one question come to; fields as the columns of the same names."""

    success_rate: float | None
    n_samples: int
    n_correct: float
    n_truncated: int | None
    majority_answer: str | None
    majority_is_correct: bool | None


def check_truncated(truncated: str) -> None:
    """Raise `RequestError` for a rule that there is not."""
    if truncated not in TRUNCATED:
        raise RequestError(f"truncated={truncated!r} must be one of {', '.join(TRUNCATED)}", argument="truncated")


def outcome_columns(attempts: Sequence[Sequence[Attempt]], truncated: str | None = "wrong") -> dict[str, Any]:
    """Columns that follow from the attempts at each question, in the order of `OUTCOME_COLUMNS`.

    ``n_samples`` counts the attempts that were judged, ``n_correct`` is the sum of their verdicts (whole numbers where
    all are), and ``success_rate`` is ``n_correct / n_samples``, null where none was judged. ``n_truncated`` counts
    those that were cut off; null where that is not known of all. ``majority_answer`` is the answer that most judged
    attempts gave (of several the one that came first), and ``majority_is_correct`` whether it is right.

    Parameters
    ----------
    attempts : sequence of sequence of Attempt
        For each question.
    truncated : str or None
        What an attempt that was cut off counts as: ``wrong``, or ``drop``, not judged. Either way it has given no
        answer: what it had said up to there is no vote of the majority. None leaves verdicts as they are.

    Returns
    -------
    dict of pyarrow.Array

    Raises
    ------
    RequestError
        There is no such rule.
    """
    if truncated is not None:
        check_truncated(truncated)
    counted = [[_as_counted(attempt, truncated) for attempt in of_one] for of_one in attempts]
    outcomes = [_outcome(of_one) for of_one in counted]
    return {
        "success_rate": pa.array([one.success_rate for one in outcomes], pa.float64()),
        "n_samples": pa.array([one.n_samples for one in outcomes], pa.int64()),
        "n_correct": count_array([one.n_correct for one in outcomes]),
        "n_truncated": pa.array([one.n_truncated for one in outcomes], pa.int64()),
        "attempts": pa.array([[vars(attempt) for attempt in of_one] for of_one in counted], pa.list_(ATTEMPT)),
        "majority_answer": pa.array([one.majority_answer for one in outcomes], pa.string()),
        "majority_is_correct": pa.array([one.majority_is_correct for one in outcomes], pa.bool_()),
    }


def count_array(counts: Sequence[float | None]) -> Any:
    """Counts as whole numbers if all are, else as they are: shares may be added up in them."""
    whole = all(count is None or float(count).is_integer() for count in counts)
    kind = pa.int64() if whole else pa.float64()
    return pa.array([None if count is None else int(count) if whole else count for count in counts], kind)


def _as_counted(attempt: Attempt, truncated: str | None) -> Attempt:
    if truncated is None or attempt.finish_reason != LENGTH:
        return attempt
    return replace(attempt, extracted=None, correct=0.0 if truncated == "wrong" else None)


def _outcome(attempts: Sequence[Attempt]) -> Outcome:
    verdicts = [attempt.correct for attempt in attempts if attempt.correct is not None]
    reasons = [attempt.finish_reason for attempt in attempts]
    answer, is_correct = _majority(attempts)
    return Outcome(
        success_rate=sum(verdicts) / len(verdicts) if verdicts else None,
        n_samples=len(verdicts),
        n_correct=sum(verdicts),
        n_truncated=None if None in reasons else reasons.count(LENGTH),
        majority_answer=answer,
        majority_is_correct=is_correct,
    )


def _majority(attempts: Sequence[Attempt]) -> tuple[str | None, bool | None]:
    """The most frequent answer, and whether it is right."""
    votes: dict[str, list[float]] = {}
    for attempt in attempts:
        if attempt.extracted is not None and attempt.correct is not None:
            votes.setdefault(attempt.extracted, []).append(attempt.correct)
    if not votes:
        return None, None
    # Of equals, max takes the first. A verifier that reads more than the answer may judge equal answers differently.
    answer = max(votes, key=lambda one: len(votes[one]))
    return answer, 2 * sum(votes[answer]) > len(votes[answer])
