"""What is read from a dataset, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from activation_store import InputError
from activation_store.dataset import read_dataset


def write(tmp_path, **columns):
    path = tmp_path / "d.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_reads_columns_in_order(tmp_path):
    path = write(tmp_path, question=["a", "b", "c"], y=[0.1, 1.0, 0.3], kind=[1, 2, 3], right=[True, False, True])
    dataset = read_dataset(path, "question", ["y", "kind", "right"], max_samples=2)
    assert dataset.questions == ["a", "b"]
    assert [values.dtype for values in dataset.labels.values()] == [np.float64, np.int64, np.bool_]
    assert dataset.labels["y"].tolist() == [0.1, 1.0]


def test_content_hash_sees_order_text_and_labels(tmp_path):
    def content_hash(questions, labels):
        return read_dataset(write(tmp_path, question=questions, y=labels), "question", ["y"]).content_hash

    same = content_hash(["a", "b"], [0.0, 1.0])
    assert same == content_hash(["a", "b"], [0.0, 1.0])
    others = [(["b", "a"], [0.0, 1.0]), (["a", "c"], [0.0, 1.0]), (["a", "b"], [1.0, 0.0]), (["ab", ""], [0.0, 1.0])]
    assert same not in [content_hash(*other) for other in others]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["a"], "z": [1.0]}, "has no column 'y'; it has question, z"),
        ({"y": [1.0]}, "has no column 'question'; it has y"),
        ({"question": ["a", "b", "c"], "y": [1.0, None, None]}, r"'y' \(double\) has 2 null .* in row 1 \(None\)"),
        ({"question": ["a", "b"], "y": [1.0, np.inf]}, r"has 1 null or non-numeric values, the first in row 1 \(inf\)"),
        (
            {"question": ["a", "b"], "y": ["0.5", "x"]},
            r"has 2 null or non-numeric values, the first in row 0 \('0.5'\)",
        ),
        ({"question": ["a", None], "y": [1.0, 2.0]}, "'question' has 1 values that are not text, the first in row 1"),
        ({"question": [1, 2], "y": [1.0, 2.0]}, "'question' has 2 values that are not text, the first in row 0"),
        ({"question": pd.Series([], dtype=str), "y": pd.Series([], dtype=float)}, "has no rows"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, columns, message):
    path = write(tmp_path, **columns)
    with pytest.raises(InputError, match=message):
        read_dataset(path, "question", ["y"])


def test_what_is_not_parquet_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_dataset(tmp_path / "none.parquet", "question", ["y"])
    (tmp_path / "text.parquet").write_text("question,y\na,1\n")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_dataset(tmp_path / "text.parquet", "question", ["y"])
