"""Which labels are taken for shares of attempts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpu_probes.samples.attempts import AttemptColumns, Attempts

RATES = np.array([0.0, 0.25, 0.5, 1.0])
EIGHT, RIGHT = [8, 8, 8, 8], [0, 2, 4, 8]
CLASSES = (0.0, 1.0)


def read(labels: Any, n_samples: Any, n_correct: Any = None, classes: Any = None) -> Attempts | str | None:
    return AttemptColumns(n_samples, n_correct).read(np.asarray(labels, dtype=float), classes)


def test_rates_are_those_of_the_counts():
    for found in (read(RATES, EIGHT, RIGHT), read(RATES, EIGHT), read(np.round(RATES + 1e-8, 8), EIGHT)):
        assert isinstance(found, Attempts)
        assert (found.n_samples.tolist(), found.n_correct.tolist(), found.threshold) == (EIGHT, RIGHT, None)


def test_two_classes_are_a_threshold_where_the_rates_say_so():
    found = read([0, 0, 1, 1], EIGHT, RIGHT, CLASSES)
    assert isinstance(found, Attempts)
    assert found.threshold == 0.375
    turned = read([1, 1, 0, 0], EIGHT, RIGHT, CLASSES)
    assert isinstance(turned, Attempts)
    assert turned.threshold == 0.375
    assert read([0, 1, 0, 1], EIGHT, RIGHT, CLASSES) is None
    assert read([0, 1, 2, 2], EIGHT, RIGHT, (0.0, 1.0, 2.0)) is None


@pytest.mark.parametrize(
    ("labels", "n_samples", "n_correct", "classes", "expected"),
    [
        # Something else.
        (RATES + 3, EIGHT, None, None, None),
        (1 - RATES, EIGHT, RIGHT, None, None),
        # Numbers that are 0 or 1 are not said to be shares, nor are such classes without n_correct.
        ([0, 1, 1, 0], EIGHT, None, None, None),
        ([0, 1, 1, 0], EIGHT, None, CLASSES, None),
        # Not whole.
        ([0.1, 0.5, 0.2, 1], EIGHT, None, None, "the label times n_samples is 0.8 in row 0"),
        ([0.5, 0.3125, 0.5, 1], EIGHT, [4, 2.5, 4, 8], None, "n_correct is 2.5 in row 1"),
        (RATES, [8, 8, 8.5, 8], None, None, "n_samples is 8.5 in row 2"),
        (RATES, [8, None, 8, 8], None, None, "n_samples is nan in row 1"),
        (RATES, ["8", "many", "8", "8"], None, None, "n_samples is nan in row 1"),
    ],
)
def test_what_is_no_share_of_attempts(labels, n_samples, n_correct, classes, expected):
    found = read(labels, n_samples, n_correct, classes)
    assert found == expected if expected is None else expected in str(found)


def test_pandas_columns_with_nulls_are_read():
    assert "in row 1" in str(read(RATES, pd.array([8, None, 8, 8], dtype="Int64")))


def test_single_attempts_are_known_to_be_such():
    found = read([0, 1, 1, 0], [1, 1, 1, 1], None, CLASSES)
    assert isinstance(found, Attempts)
    assert found.n_samples.tolist() == [1, 1, 1, 1]


def test_some_rows():
    part = AttemptColumns(EIGHT, RIGHT).of_rows(np.array([True, False, True, True]))
    found = part.read(RATES[[0, 2, 3]], None)
    assert isinstance(found, Attempts)
    assert found.n_correct.tolist() == [0, 4, 8]
