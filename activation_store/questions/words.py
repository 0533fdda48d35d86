"""Labels that are words: which classes there are, in which order, and which of them each row is of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from activation_store.errors import InputError
from activation_store.label_classes import LabelClasses, LabelColumn
from activation_store.questions.rows import JsonRows, Rows, TextRows

# A few rows of a large dataset may each have a class of their own; hundreds are texts or names, no classes.
_MANY_CLASSES = 50


def are_words(rows: Rows, name: str) -> bool:
    """Whether a column holds words: some text, and no number (a file without types spells true and false as text)."""
    values = rows.numbers(name)
    numbers = (isinstance(value, int | float) and not isinstance(value, bool) and value == value for value in values)
    return any(isinstance(value, str) for value in values) and not any(numbers)


def read_words(rows: Rows, path: Path | str, name: str) -> LabelColumn:
    """Read a column of words as places of the classes that occur.

    Raises
    ------
    InputError
        A value is null, empty or no text, numbers are stored as text, two names differ only in spaces, or nearly every
        row has a class of its own.
    """
    where = f"{path}: label column {name!r}"
    values = rows.values(name) if isinstance(rows, TextRows) else rows.numbers(name)
    _check_words(values, where)
    present = set(values)
    _check_distinct(values, where)
    if len(present) > max(_MANY_CLASSES, len(values) // 2):
        raise InputError(
            f"{where} has {len(present)} different texts in {len(values)} rows (row 0 is {_short(values[0])}), which "
            "name no classes; choose a column of numbers or of class names"
        )
    order = _order_of(rows, name)
    names = sorted(present) if order is None else [one for one in order if one in present]
    return _placed(values, LabelClasses(tuple(names), order is not None))


def join_words(parts: Sequence[LabelColumn]) -> LabelColumn:
    """Columns of words whose rows follow one another.

    Their order is that of ordered categoricals if the classes of all are part of the order of one of them.
    """
    values = [word for part in parts for word in part.words]
    classes = [part.classes for part in parts if part.classes is not None]
    longest = max(classes, key=lambda one: len(one.names))
    agree = all(one.ordered and one.names == tuple(n for n in longest.names if n in one.names) for one in classes)
    return _placed(values, longest if agree else LabelClasses(tuple(sorted(set(values)))))


def _placed(values: Sequence[str], classes: LabelClasses) -> LabelColumn:
    place = {one: code for code, one in enumerate(classes.names)}
    return LabelColumn(np.array([place[value] for value in values], dtype=np.int64), classes)


def spells_number(text: str) -> bool:
    """Whether a text is a number, with a decimal comma perhaps, or what is written for a missing one."""
    if re.fullmatch(r"\s*[+-]?[\d.,\s]*\d[\d.,\s]*%?\s*", text):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_words(values: Sequence[Any], where: str) -> None:
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise InputError(
            f"{where} has {len(missing)} null or empty values, the first in row {missing[0]} ({values[missing[0]]!r}); "
            "drop those rows, or give them a class"
        )
    other = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if other:
        text = next(row for row, value in enumerate(values) if isinstance(value, str))
        raise InputError(
            f"{where} mixes types: row {text} is {_short(values[text])}, row {other[0]} {_short(values[other[0]])}; "
            "make all of them text"
        )
    numbers = [row for row, value in enumerate(values) if spells_number(value)]
    if numbers:
        value = values[numbers[0]]
        raise InputError(
            f"{where} has {len(numbers)} numbers stored as text, the first in row {numbers[0]} ({value!r}); store the "
            f"column as numbers or, if they name classes, as words such as {'class ' + value.strip()!r}"
        )
    broken = [row for row, value in enumerate(values) if not is_unicode(value)]
    if broken:
        raise InputError(f"{where} has half of a surrogate pair in row {broken[0]} ({values[broken[0]]!r}); fix it")


def _check_distinct(values: Sequence[str], where: str) -> None:
    """Refuse names of which it is not certain whether they are one class."""
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        other = first.setdefault(" ".join(value.split()), row)
        if values[other] != value:
            raise InputError(
                f"{where} has {values[other]!r} in row {other} and {value!r} in row {row}: one class or two? Write "
                "each class in one way"
            )


def _order_of(rows: Rows, name: str) -> list[str] | None:
    """The order that a column says its values have: an ordered categorical's."""
    if isinstance(rows, JsonRows):
        return None
    column = rows.typed(name)
    if not (pa.types.is_dictionary(column.type) and column.type.ordered):
        return None
    return list(dict.fromkeys(value for chunk in column.chunks for value in chunk.dictionary.to_pylist()))


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
