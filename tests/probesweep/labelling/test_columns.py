"""What follows from attempts, against counts by hand."""

import pyarrow as pa
import pytest

from probesweep.errors import RequestError
from probesweep.labelling.columns import ATTEMPT, OUTCOME_COLUMNS, Attempt, outcome_columns


def attempt(extracted=None, correct=None, finish_reason="stop") -> Attempt:
    return Attempt(f"It is {extracted}.", extracted, correct, finish_reason, 4)


def values(attempts, truncated="wrong") -> dict[str, list]:
    return {name: column.to_pylist() for name, column in outcome_columns(attempts, truncated).items()}


def test_rates_counts_and_the_majority():
    found = values(
        [
            [attempt("7", 1.0), attempt("8", 0.0), attempt("7", 1.0), attempt("9", None)],
            [attempt("8", 0.0), attempt("7", 1.0)],
            [attempt("7", None)],
            [],
        ]
    )
    assert tuple(found) == OUTCOME_COLUMNS
    assert found["success_rate"] == [2 / 3, 0.5, None, None]
    assert found["n_samples"] == [3, 2, 0, 0]
    assert found["n_correct"] == [2, 1, 0, 0]
    assert found["n_truncated"] == [0, 0, 0, 0]
    assert found["majority_answer"] == ["7", "8", None, None]
    assert found["majority_is_correct"] == [True, False, None, None]


@pytest.mark.parametrize(("truncated", "n_samples", "n_correct"), [("wrong", 3, 1), ("drop", 2, 1), (None, 3, 2)])
def test_what_was_cut_off_is_counted_and_gives_no_answer(truncated, n_samples, n_correct):
    attempts = [attempt("7", 1.0), attempt("8", 0.0), attempt("8", 1.0, "length")]
    found = values([attempts], truncated)
    assert (found["n_samples"], found["n_correct"], found["n_truncated"]) == ([n_samples], [n_correct], [1])
    assert found["majority_answer"] == ["8" if truncated is None else "7"]
    cut = found["attempts"][0][2]
    assert cut["text"] == "It is 8."
    assert cut["correct"] == {"wrong": 0.0, "drop": None, None: 1.0}[truncated]


def test_counts_are_whole_numbers_unless_there_are_shares():
    assert outcome_columns([[attempt("7", 1.0)]])["n_correct"].type == pa.int64()
    shares = outcome_columns([[attempt("7", 1.0), attempt("8", 0.25)]])
    assert shares["n_correct"].type == pa.float64()
    assert shares["n_correct"].to_pylist() == [1.25]
    assert shares["success_rate"].to_pylist() == [0.625]


def test_what_is_not_known_is_null():
    found = outcome_columns([[Attempt(None, None, 1.0, None, None)]])
    assert found["attempts"].type == pa.list_(ATTEMPT)
    assert found["n_truncated"].to_pylist() == found["majority_answer"].to_pylist() == [None]
    assert found["success_rate"].to_pylist() == [1.0]


def test_a_rule_that_there_is_not():
    with pytest.raises(RequestError, match="truncated='keep' must be one of wrong, drop"):
        outcome_columns([[attempt("7", 1.0, "length")]], "keep")
