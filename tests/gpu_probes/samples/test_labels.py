from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from gpu_probes.errors import LabelError
from gpu_probes.samples.labels import read_labels, resolve_task


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 2],
        (0.0, 1.0, 2.0),
        np.array([0, 1, 2], dtype=np.float32),
        pd.Series([0, 1, 2], index=[9, 8, 7]),
        pd.Series([0, 1, 2], dtype="Int64"),
        pd.Series([0, 1, 2], dtype="float64[pyarrow]"),
        pd.Series([0, 1, 2], dtype=object),
    ],
    ids=lambda v: str(getattr(v, "dtype", type(v).__name__)),
)
def test_any_column_of_numbers_reads_the_same(values):
    read = read_labels(values, name="y", n_samples=3)
    assert read.dtype == np.float64
    assert read.tolist() == [0.0, 1.0, 2.0]


def test_booleans_are_zero_and_one():
    assert read_labels([True, False], name="y", n_samples=2).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, None, None], r"y has 2 null values of 3 \(first: .* in row 1\); drop those rows"),
        ([1.0, np.nan, 2.0], r"y has 1 null values of 3"),
        (pd.Series([1, None, 2], dtype="Int64"), r"y has 1 null values of 3"),
        (["a", "b", "c"], r"y has 3 text values of 3 \(first: 'a' in row 0\)"),
        ([1, "0.5", 2], r"y has \d text values of 3"),
        ([1.0, np.inf, 2.0], r"y has 1 infinite values of 3 \(first: .*inf.* in row 1\)"),
        ([1.0, 2.0], "y has 2 values for 3 samples; give one for each"),
        ([[1.0], [2.0], [3.0]], r"y has shape \(3, 1\); give one number for each sample"),
    ],
)
def test_unusable_labels_say_what_where_and_how_to_mend(values, message):
    with pytest.raises(LabelError, match=message):
        read_labels(values, name="y", n_samples=3)


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ([2**53, 2**53 + 1, 5], 1),
        ((0.5, 1, -(2**53) - 1), 2),
        (np.array([5, 2**53 + 1, 2**53]), 1),
        (np.array([2**64 - 1, 1, 2], dtype=np.uint64), 0),
        ([-1, 2**63 + 1, 2], 1),
        (pd.Series([1, 2, 2**53 + 1], index=[9, 8, 7], dtype="Int64"), 2),
        (pd.Series([1, 2**53 + 1, 2], dtype="int64[pyarrow]"), 1),
        ([1, Decimal(2**53 + 1), 2], 1),
    ],
    ids=lambda v: str(getattr(v, "dtype", type(v).__name__)),
)
def test_a_whole_number_that_no_float64_holds_is_no_label(values, row):
    """As a float64 it would be its neighbour: two classes would be one."""
    with pytest.raises(
        LabelError, match=rf"y has -?\d{{16,}} in row {row}, which float64 cannot represent, .*subtract an offset"
    ):
        read_labels(values, name="y", n_samples=3)


def test_large_numbers_that_float64_holds_are_labels():
    values = [2**53, 2**53 + 2, 2**64, 10**22]
    assert list(map(int, read_labels(values, name="y", n_samples=4))) == values
    assert read_labels([1e300, 0.1], name="y", n_samples=2).tolist() == [1e300, 0.1]
    with pytest.raises(LabelError, match="y has 1 infinite values of 2"):
        read_labels([10**400, 1], name="y", n_samples=2)


@pytest.mark.parametrize(
    ("labels", "task_type", "metric", "n_outputs"),
    [
        ([0.0, 1.0, 1.0], "classification", "roc_auc", 1),
        ([1.0, 2.0, 3.0], "classification", "roc_auc", 3),
        ([0.1, 0.5, 0.9], "regression", "spearman", 1),
    ],
)
def test_auto_follows_type_of_target(labels, task_type, metric, n_outputs):
    task = resolve_task("auto", np.array(labels))
    assert (task.task_type, task.metric, task.n_outputs) == (task_type, metric, n_outputs)


def test_an_explicit_task_wins():
    assert resolve_task("regression", np.array([0.0, 1.0])).task_type == "regression"


def test_continuous_labels_are_no_classes():
    with pytest.raises(
        LabelError, match=r"training labels are continuous, not classes \(row 1 is 0.5\); use task_type='regression'"
    ):
        resolve_task("classification", np.array([1.0, 0.5]))


def test_unknown_task_type():
    with pytest.raises(LabelError, match="task_type='rank' is unknown; use auto, regression or classification"):
        resolve_task("rank", np.array([1.0, 0.5]))


def test_binary_targets_mark_the_second_class_and_more_are_one_hot():
    assert resolve_task("auto", np.array([3.0, 7.0])).targets(np.array([7.0, 3.0]), "y").tolist() == [[1.0], [0.0]]
    three = resolve_task("auto", np.array([1.0, 2.0, 5.0])).targets(np.array([5.0, 1.0]), "y")
    assert three.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


def test_labels_that_training_never_saw():
    task = resolve_task("auto", np.array([0.0, 1.0]))
    with pytest.raises(
        LabelError, match=r"y has 1 labels that training never saw \(first: 2 in row 1; classes: \[0.0, 1.0\]"
    ):
        task.targets(np.array([0.0, 2.0]), "y")
