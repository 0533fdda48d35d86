"""Read questions and labels, and refuse what a probe could not be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from activation_store.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """The columns that are used, in dataset order.

    Parameters
    ----------
    question_column : str
        Where the questions come from.
    questions : list of str
    labels : dict of ndarray [sample]
        Numeric or boolean, finite.
    content_hash : str
        SHA-256 over questions and labels in order.
    """

    question_column: str
    questions: list[str]
    labels: dict[str, np.ndarray]
    content_hash: str


def read_dataset(
    path: Path, question_column: str, label_columns: Sequence[str], max_samples: int | None = None
) -> Dataset:
    """Read questions and labels from a parquet file.

    Raises
    ------
    InputError
        Missing file or column, no rows, null or empty-typed questions, null, non-numeric or non-finite labels.
    """
    table = _read_parquet(path, [question_column, *label_columns])
    if max_samples is not None:
        if max_samples < 1:
            raise InputError(f"--max_samples {max_samples}: must be at least 1")
        table = table.slice(0, max_samples)
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows")
    questions = _questions(table.column(question_column).to_pylist(), path, question_column)
    labels = {name: _labels(table.column(name), path, name) for name in label_columns}
    return Dataset(question_column, questions, labels, content_hash=_content_hash(questions, labels))


def _read_parquet(path: Path, columns: Sequence[str]) -> Any:
    if not path.is_file():
        raise InputError(f"dataset {path} does not exist; give a parquet file with --dataset_path")
    try:
        present = pq.read_schema(path).names
        missing = [name for name in columns if name not in present]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(present)}")
        return pq.read_table(path, columns=list(dict.fromkeys(columns)))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _questions(values: list[Any], path: Path, column: str) -> list[str]:
    wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if wrong:
        raise InputError(
            f"{path}: column {column!r} has {len(wrong)} values that are not text, the first in row {wrong[0]} "
            f"({values[wrong[0]]!r}); drop or mend them"
        )
    return values


def _labels(column: Any, path: Path, name: str) -> np.ndarray:
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    as_float = np.asarray(pd.to_numeric(column.to_pandas(), errors="coerce"), dtype=np.float64)
    # Numbers written as text are refused too: what "0,5" or "1e3 " means is not ours to guess.
    wrong = np.flatnonzero(~np.isfinite(as_float)) if numeric else np.arange(len(as_float))
    if len(wrong):
        raise InputError(
            f"{path}: label column {name!r} ({kind}) has {len(wrong)} null or non-numeric values, the first in "
            f"row {wrong[0]} ({column[int(wrong[0])].as_py()!r}); drop those rows or make them numbers"
        )
    return np.asarray(column.to_numpy())


def _content_hash(questions: list[str], labels: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        data = question.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    for name, values in labels.items():
        digest.update(f"{name}:{values.dtype.str}:".encode() + values.tobytes())
    return digest.hexdigest()
