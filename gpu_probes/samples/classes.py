"""Classes that are words: which there are, in which order, and which of them each label names.

Inside, a label is the place of its class, as a number: 0 for the first name, 1 for the second. So rows of other data
are always matched by name, never by the place that a name has there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64

from gpu_probes.display.wording import class_name
from gpu_probes.errors import LabelError

if TYPE_CHECKING:
    import pandas as pd

_BOOLEANS = ("false", "true")


def names_of(column: pd.Series, name: str) -> tuple[str, ...] | None:
    """The classes of a column of words, in order; None for a column of anything else.

    An ordered categorical has its own order, restricted to classes that occur; others are sorted by code points, as
    scikit-learn sorts.

    Raises
    ------
    LabelError
        When a value is null, words and numbers are mixed, or numbers are stored as text.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column.dtype):
        return None
    # NumPy's strings would be shown as such.
    values = [str(value) if isinstance(value, str) else value for value in column.tolist()]
    words = np.array([isinstance(value, str) for value in values], dtype=bool)
    if not words.any():
        return None
    missing = column.isna().to_numpy()
    _reject(missing, values, name, "null values", "drop those rows, or give them a class")
    text = values[int(words.argmax())]
    _reject(~words, values, name, "values that are no text", f"other rows are words, such as {text!r}; use only words")
    spelled = np.array([_spells_number(value) for value in values], dtype=bool)
    _reject(
        spelled,
        values,
        name,
        "numbers stored as text",
        "convert them (astype(float)) or, if they name classes, use words",
    )
    present = set(values)
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
        return tuple(one for one in column.cat.categories if one in present)
    return tuple(sorted(present))


def names_of_numbers(column: pd.Series, classes: Float64[np.ndarray, " class"]) -> tuple[str, ...]:
    """How classes that are numbers are called: all digits, or false and true in a column of booleans."""
    if is_boolean(column):
        return tuple(_BOOLEANS[int(value)] for value in classes)
    return tuple(map(class_name, classes))


def is_boolean(column: pd.Series) -> bool:
    """Whether all values are true or false."""
    import pandas as pd

    return pd.api.types.is_bool_dtype(column.dtype) or (
        column.dtype == object and len(column) > 0 and all(isinstance(value, bool | np.bool_) for value in column)
    )


def with_positive(names: Sequence[str], positive: str, name: str) -> tuple[str, ...]:
    """Two classes with the positive one last, which is where it is scored.

    Raises
    ------
    LabelError
        When there are not two, or none has that name.
    """
    if len(names) != 2:
        raise LabelError(
            f"positive_class={positive!r} is for two classes, and {name} has {len(names)} ({_listed(names)}); leave it "
            "out",
            argument="positive_class",
        )
    if positive not in names:
        raise LabelError(
            f"positive_class={positive!r} is not a class of {name}; give one of {_listed(names)}",
            argument="positive_class",
        )
    return tuple(sorted(names, key=lambda one: one == positive))


def places_of(
    column: pd.Series, numbers: Float64[np.ndarray, " sample"] | None, names: Sequence[str], name: str, *, known: bool
) -> Float64[np.ndarray, " sample"]:
    """The place of each label among the classes.

    Parameters
    ----------
    column : Series
        Words, booleans or numbers.
    numbers : ndarray [sample], optional
        The same as numbers, if it holds such.
    names : sequence of str
    name : str
        What to call the column.
    known : bool
        Whether a label that is none of them is an error; otherwise its place is behind the last class.

    Raises
    ------
    LabelError
        Names the first such label.
    """
    if numbers is None:
        words = list(map(str, column.tolist()))
    else:
        # True and 1 are one class, whichever of the two splits has numbers.
        boolean = set(names) <= set(_BOOLEANS) or (is_boolean(column) and bool(set(names) & set(_BOOLEANS)))
        spelled = dict(enumerate(_BOOLEANS)) if boolean else {}
        words = [spelled.get(value, class_name(value)) for value in numbers.tolist()]
    place = {one: float(code) for code, one in enumerate(names)}
    foreign = [row for row, word in enumerate(words) if word not in place]
    # Where there is one class only, nothing is fitted that could be tested.
    if foreign and known and len(names) > 1:
        raise LabelError(
            f"{name} has {len(foreign)} labels that training never saw (first: {words[foreign[0]]!r} in row "
            f"{foreign[0]}; classes: {_listed(names)}); drop those rows, or train on rows of that class, too"
        )
    return np.array([place.get(word, float(len(names))) for word in words])


def _spells_number(text: str) -> bool:
    """Whether a text is a number, with a decimal comma perhaps, or what is written for a missing one."""
    if re.fullmatch(r"\s*[+-]?[\d.,\s]*\d[\d.,\s]*%?\s*", text):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _reject(bad: Bool[np.ndarray, " sample"], values: Sequence[Any], name: str, what: str, way_out: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        raise LabelError(
            f"{name} has {rows.size} {what} of {len(values)} (first: {values[rows[0]]!r} in row {rows[0]}); {way_out}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
