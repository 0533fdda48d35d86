"""Labels: read, checked, and turned into a task and its targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from gpu_probes.display.wording import class_name
from gpu_probes.errors import LabelError
from gpu_probes.samples.classes import is_boolean, names_of, names_of_numbers, places_of, with_positive
from gpu_probes.terms import ProbeKind, TaskType

if TYPE_CHECKING:
    import pandas as pd

# Beyond it float64 cannot represent every whole number.
_LAST_WHOLE = 2**53


@dataclass(frozen=True)
class Task:
    """What is predicted: numbers, or one of `classes` (sorted); `names` if these are words, whose places they are."""

    task_type: TaskType
    classes: Float64[np.ndarray, " class"] | None
    names: tuple[str, ...] | None = None

    @property
    def names_of_classes(self) -> tuple[str, ...]:
        """How the classes are called, in their order: words, or numbers with all digits; empty for numbers."""
        return self.names or tuple(map(class_name, () if self.classes is None else self.classes))

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
    if probe == "binomial" and task.classes is None:
        return "binomial"
    if probe == "mass_mean":
        return "mass_mean"
    if probe == "lda" and task.classes is not None:
        return "lda"
    usable = "ridge, mass_mean, binomial" if task.classes is None else "logistic, lda, mass_mean"
    raise LabelError(
        f"probe={probe!r} cannot be used for {task.task_type}; use auto, {usable}, or another task_type=...",
        argument="probe",
    )


def check_rates(labels: Float64[np.ndarray, " sample"], name: str) -> None:
    """Raise `LabelError` unless a binomial probe can be fitted to labels."""
    bad = np.flatnonzero(~((labels >= 0) & (labels <= 1)))
    if bad.size:
        raise LabelError(
            f"{name} has {bad.size} values outside 0 to 1 (first: {labels[bad[0]]:g} in row {bad[0]}), and "
            "probe='binomial' is for rates; divide by the number of attempts, or use probe='ridge'",
            argument="probe",
        )


def read_training_labels(
    values: Any, *, name: str, n_samples: int, task_type: str, positive_class: str | None = None
) -> tuple[Float64[np.ndarray, " sample"], Task]:
    """Read the labels that say what the task is.

    Parameters
    ----------
    values : any one-dimensional array-like or pandas Series of numbers, booleans or words
    name : what to call it in messages, such as ``train_labels``
    n_samples : how many there should be
    task_type : auto, regression or classification
    positive_class : the one of two classes that comes last and is scored; by default the last one in their order

    Returns
    -------
    ndarray [sample]
        Numbers; of words, and of two numbers whose order `positive_class` turns round, the places of their classes.
    Task

    Raises
    ------
    LabelError
        As `read_labels` and `resolve_task`, or when `positive_class` is not one of two classes.
    """
    column = _as_column(values, name, n_samples)
    names, numbers = names_of(column, name), None
    if names is None:
        numbers = read_labels(values, name=name, n_samples=n_samples)
        task = resolve_task(task_type, numbers)
        if task.classes is None:
            if positive_class is not None:
                raise LabelError(
                    f"positive_class={positive_class!r} is for two classes, and {name} are numbers; leave it out, or "
                    "use task_type='classification'",
                    argument="positive_class",
                )
            return numbers, task
        names = names_of_numbers(column, task.classes)
        if positive_class is None or with_positive(names, positive_class, name) == names:
            return numbers, replace(task, names=names if is_boolean(column) else None)
    elif task_type == "regression":
        raise LabelError(
            f"{name} are words (row 0 is {column.iloc[0]!r}), which are no numbers to predict; use "
            "task_type='classification', or choose another column",
            argument="task_type",
        )
    check_task_type(task_type)
    if positive_class is not None:
        names = with_positive(names, positive_class, name)
    classes = np.arange(len(names), dtype=np.float64)
    return places_of(column, numbers, names, name, known=True), Task("classification", classes, names)


def read_labels(
    values: Any, *, name: str, n_samples: int, names: Sequence[str] | None = None, known: bool = True
) -> Float64[np.ndarray, " sample"]:
    """Read a column of numbers as float64, or of classes as their places in `names`.

    Parameters
    ----------
    values : any one-dimensional array-like or pandas Series of numbers or booleans; with `names` also of words
    name : what to call it in messages, such as ``test_labels``
    n_samples : how many there should be
    names : the names of the classes, if they are words
    known : whether a name that is not among them is an error; otherwise its place is behind the last class

    Raises
    ------
    LabelError
        When a value is null, not a number, not finite or a whole number that float64 would round, is none of `names`,
        or their count is wrong.
    """
    if names is not None:
        column = _as_column(values, name, n_samples)
        numbers = None
        if names_of(column, name) is None:
            numbers = _read_numbers(values, name, n_samples)
        return places_of(column, numbers, names, name, known=known)
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

    column = _as_column(values, name, n_samples)
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


def _as_column(values: Any, name: str, n_samples: int) -> pd.Series:
    import pandas as pd

    if isinstance(values, pd.api.extensions.ExtensionArray | pd.Index):
        values = pd.Series(values)
    column = values if isinstance(values, pd.Series) else pd.Series(_as_array(values, name))
    if len(column) != n_samples:
        raise LabelError(f"{name} has {len(column)} values for {n_samples} samples; give one for each")
    return column


def _as_array(values: Any, name: str) -> Shaped[np.ndarray, " sample"]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise LabelError(f"{name} has shape {array.shape}; give one number for each sample")
    # In a list with a string, NumPy would turn numbers and NaN into strings.
    return np.asarray(values, dtype=object) if array.dtype.kind in "US" else array


def _reject(bad: Bool[np.ndarray, " sample"], name: str, what: str, column: pd.Series) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        raise LabelError(
            f"{name} has {rows.size} {what} values of {len(column)} (first: {column.iloc[int(rows[0])]!r} in row "
            f"{rows[0]}); drop those rows or choose another column of numbers"
        )
