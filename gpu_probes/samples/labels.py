"""Labels: read, checked, and turned into a task and its targets."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from gpu_probes.errors import LabelError
from gpu_probes.terms import ProbeKind, TaskType

if TYPE_CHECKING:
    import pandas as pd

# Beyond it float64 cannot represent every whole number.
_LAST_WHOLE = 2**53


@dataclass(frozen=True)
class Task:
    """What is predicted: numbers, or one of `classes` (sorted)."""

    task_type: TaskType
    classes: Float64[np.ndarray, " class"] | None

    @property
    def metric(self) -> Literal["spearman", "roc_auc"]:
        """Name of the score."""
        return "spearman" if self.classes is None else "roc_auc"

    @property
    def n_outputs(self) -> int:
        """Coefficient vectors of a probe: one, or one per class when there are more than two."""
        return 1 if self.classes is None or len(self.classes) <= 2 else len(self.classes)

    def targets(self, labels: Float64[np.ndarray, " sample"], name: str) -> Float64[np.ndarray, "sample output"]:
        """Numbers as they are, 1.0 for the second of two classes, or one-hot rows.

        Raises
        ------
        LabelError
            When a label is not among the classes.
        """
        if self.classes is None:
            return labels[:, None]
        foreign = np.flatnonzero(~np.isin(labels, self.classes))
        # Where there is one class only, nothing is fitted that could be tested.
        if foreign.size and len(self.classes) > 1:
            raise LabelError(
                f"{name} has {foreign.size} labels that training never saw (first: {labels[foreign[0]]:g} in row "
                f"{foreign[0]}; classes: {self.classes.tolist()}); drop those rows or use task_type='regression'"
            )
        one_hot = (labels[:, None] == self.classes).astype(np.float64)
        return one_hot if self.n_outputs > 1 else one_hot[:, -1:]


def label_kind(labels: Float64[np.ndarray, " sample"]) -> str:
    """scikit-learn's `type_of_target`, without its warning about many classes."""
    from sklearn.utils.multiclass import type_of_target

    # It casts to integers, which fails for huge numbers.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        return str(type_of_target(labels))


def check_task_type(task_type: str) -> None:
    """Raise `LabelError` if a string is not a task."""
    if task_type not in ("auto", *get_args(TaskType)):
        raise LabelError(
            f"task_type={task_type!r} is unknown; use auto, regression or classification", argument="task_type"
        )


def check_probe_name(probe: str) -> None:
    """Raise `LabelError` if a string is not a probe."""
    if probe not in ("auto", *get_args(ProbeKind)):
        raise LabelError(f"probe={probe!r} is unknown; use auto, {', '.join(get_args(ProbeKind))}", argument="probe")


def resolve_task(task_type: str, labels: Float64[np.ndarray, " sample"]) -> Task:
    """Choose the task from the training labels: classification if `type_of_target` says binary or multiclass.

    Raises
    ------
    LabelError
        When `task_type` is not auto, regression or classification, or the labels are not classes.
    """
    check_task_type(task_type)
    kind = label_kind(labels)
    if task_type == "regression" or (task_type == "auto" and kind not in ("binary", "multiclass")):
        return Task("regression", None)
    if kind not in ("binary", "multiclass"):
        first = int(np.flatnonzero(labels != np.floor(labels))[0])
        raise LabelError(
            f"training labels are {kind}, not classes (row {first} is {labels[first]:g}); use task_type='regression'",
            argument="task_type",
        )
    return Task("classification", np.unique(labels))


def resolve_probe(probe: str, task: Task) -> ProbeKind:
    """Choose the probe: ``auto`` is ridge for regression and logistic for classes.

    Raises
    ------
    LabelError
        When there is no such probe for the task.
    """
    natural: ProbeKind = "ridge" if task.classes is None else "logistic"
    if probe in ("auto", natural):
        return natural
    if probe == "mass_mean":
        return "mass_mean"
    if probe == "lda" and task.classes is not None:
        return "lda"
    usable = "ridge, mass_mean" if task.classes is None else "logistic, lda, mass_mean"
    raise LabelError(
        f"probe={probe!r} cannot be used for {task.task_type}; use auto, {usable}, or another task_type=...",
        argument="probe",
    )


def read_labels(values: Any, *, name: str, n_samples: int) -> Float64[np.ndarray, " sample"]:
    """Read a column of numbers as float64.

    Parameters
    ----------
    values : any one-dimensional array-like or pandas Series of numbers or booleans
    name : what to call it in messages, such as ``train_labels``
    n_samples : how many there should be

    Raises
    ------
    LabelError
        When a value is null, not a number, not finite or a whole number that float64 would round, or their count is
        wrong.
    """
    numbers = _read_numbers(values, name, n_samples)
    check_same_numbers(values, numbers, name)
    return numbers


def read_weights(values: Any, n_samples: int) -> Float64[np.ndarray, " sample"] | None:
    """Sample weights as an array; None where every sample counts once.

    Raises
    ------
    LabelError
        When a weight is null, negative or not finite, all are zero, or their count is wrong.
    """
    if values is None:
        return None
    weights = _read_numbers(values, "sample_weight", n_samples)
    if (weights < 0).any() or not weights.any():
        raise LabelError(
            f"sample_weight ranges from {weights.min():g} to {weights.max():g}; use 0 or more, not all zero"
        )
    return weights


def check_same_numbers(values: Any, numbers: Shaped[np.ndarray, "sample ..."], name: str) -> None:
    """Refuse whole numbers that were rounded when converted to float64.

    Parameters
    ----------
    values : array-like
        As they were given.
    numbers : ndarray of the same shape
        The values after conversion.
    name : str
        What to call them.

    Raises
    ------
    LabelError
        Names the first of them.
    """
    if numbers.dtype.kind != "f" or not (np.abs(numbers) >= _LAST_WHOLE).any():
        return
    given = np.asarray(values, dtype=object)
    for at in np.argwhere(np.abs(numbers) >= _LAST_WHOLE):
        value = given[tuple(at)]
        # All floats of that size are whole.
        if int(value) != int(numbers[tuple(at)]):
            raise LabelError(
                f"{name} has {value} in row {at[0]}, which float64 cannot represent, so probes cannot tell it from "
                "its neighbours; subtract an offset from all labels, or use small class numbers"
            )


def _read_numbers(values: Any, name: str, n_samples: int) -> Float64[np.ndarray, " sample"]:
    import pandas as pd

    column = values if isinstance(values, pd.Series) else _as_series(values, name)
    if len(column) != n_samples:
        raise LabelError(f"{name} has {len(column)} values for {n_samples} samples; give one for each")
    _reject(column.isna().to_numpy(), name, "null", column)
    if not (pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype)):
        _reject(np.array([not isinstance(value, Real | Decimal) for value in column], dtype=bool), name, "text", column)
    try:
        numbers = column.to_numpy(dtype=np.float64)
    except OverflowError:
        # Python's integers have no limit.
        numbers = np.array([_nearest(value) for value in column])
    _reject(~np.isfinite(numbers), name, "infinite", column)
    return numbers


def _nearest(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _as_series(values: Any, name: str) -> pd.Series:
    import pandas as pd

    array = np.asarray(values)
    if array.ndim != 1:
        raise LabelError(f"{name} has shape {array.shape}; give one number for each sample")
    return pd.Series(array)


def _reject(bad: Bool[np.ndarray, " sample"], name: str, what: str, column: pd.Series) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        raise LabelError(
            f"{name} has {rows.size} {what} values of {len(column)} (first: {column.iloc[int(rows[0])]!r} in row "
            f"{rows[0]}); drop those rows or choose another column of numbers"
        )
