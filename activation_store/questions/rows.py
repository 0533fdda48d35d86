"""Rows of a file as they were written, typed if that loses nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from activation_store.errors import InputError

# Neither Arrow's arrays nor its tables have types.
Column = Any
Table = Any
_SPELLED_BOOLEANS = {
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}


@dataclass(frozen=True)
class ArrowRows:
    """Rows of a file whose columns have types of their own.

    Parameters
    ----------
    path : Path or str
        Where they were read, or their address.
    table : pyarrow.Table
    used : sequence of str
        Columns of prompts: text stays text in them, and structs are written without padding.
    """

    path: Path | str
    table: Table
    used: Sequence[str]

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def names(self) -> list[str]:
        """Columns, in order."""
        return self.table.column_names

    def values(self, name: str) -> list[Any]:
        """Python's values of a column, without the keys that a struct has only because others have them."""
        column = self.table.column(name)
        values = self._padded(column, name)
        try:
            return [_without_padding(value, column.type) for value in values]
        except ValueError as error:
            raise InputError(f"{self.path}: column {name!r}: {error}; keep one") from error

    def typed(self, name: str) -> Column:
        """A column as Arrow's."""
        return self.table.column(name)

    def numbers(self, name: str) -> list[Any]:
        """Python's values of a column that should hold numbers; what is none stays what it is."""
        return self._padded(self.table.column(name), name)

    def number_type(self, name: str) -> Any:
        """NumPy's type of a column of numbers or of true and false, None where it has none."""
        kind = self.typed(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        has_one = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        return kind.to_pandas_dtype() if has_one else None

    def typed_table(self) -> Table:
        """All columns with their types, for parquet."""
        check_columns(self.path, self.names, self.names)
        return self.table

    def text_table(self) -> Table:
        """All columns as they are written into a CSV file.

        Raises
        ------
        InputError
            A column whose type or values CSV cannot hold.
        """
        table = self.table
        for index, field in enumerate(table.schema):
            if pa.types.is_string_view(field.type):
                table = table.set_column(index, field.name, table.column(index).cast(pa.large_string()))
            try:
                pacsv.write_csv(table.select([index]), pa.BufferOutputStream())
            except pa.ArrowException as error:
                what = f"holds {field.type}" if "Unsupported" in str(error) else f"({field.type}) has bytes"
                raise InputError(
                    f"{self.path}: column {field.name!r} {what}, which CSV cannot hold; write .parquet"
                ) from error
        return table

    def json_lines(self) -> list[str]:
        """Rows as JSON objects.

        Raises
        ------
        InputError
            A NaN or infinity, bytes.
        """
        table = self.typed_table()
        columns = {
            name: self.values(name) if name in self.used else self._padded(table.column(name), name)
            for name in table.column_names
        }
        for name, values in columns.items():
            self._check_json(name, values)
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [json.dumps(row, default=_spelled) for row in rows]

    def _check_json(self, name: str, values: list[Any]) -> None:
        """Refuse what JSON cannot hold."""
        try:
            json.dumps(values, default=_spelled, allow_nan=False)
        except ValueError as error:
            raise InputError(
                f"{self.path}: column {name!r} has a NaN or infinity, which JSON cannot hold; write .parquet"
            ) from error
        except TypeError as error:
            raise InputError(
                f"{self.path}: column {name!r} has {error}, which JSON cannot hold; write .parquet"
            ) from error

    def _padded(self, column: Column, name: str) -> list[Any]:
        """Python's values as Arrow gives them, but for times of day to the nanosecond: text, as Python has none."""
        try:
            kind = _with_times_as_text(column.type)
            return (column if kind == column.type else column.cast(kind)).to_pylist()
        except (ValueError, OverflowError) as error:
            # Such as dates after the year 9999.
            raise InputError(f"{self.path}: column {name!r} ({column.type}) cannot be read: {error}") from error


@dataclass(frozen=True)
class TextRows(ArrowRows):
    """Rows of a CSV file: every column is text, as it is written there."""

    def numbers(self, name: str) -> list[Any]:
        """Numbers, true and false that fields spell; other fields stay text."""
        return [text if text is None else _number_or_text(text) for text in self.values(name)]

    def number_type(self, name: str) -> Any:
        """Text has none."""
        del name

    def typed_table(self) -> Table:
        """Columns as numbers where these print the very texts, else as text: an id does not lose its zeros."""
        table = super().typed_table()
        texts = {name: table.column(name) for name in self.names}
        return pa.table({name: text if name in self.used else _numbers_or_text(text) for name, text in texts.items()})


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON file.

    Parameters
    ----------
    path : Path or str
        Where they were read, or their address.
    names : list of str
        Keys, in order of their first appearance.
    rows : list of dict
    sources : list of str
        The objects as they are written there, each on one line; line breaks between their parts are left out.
    """

    path: Path | str
    names: list[str]
    rows: list[dict[str, Any]]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, name: str) -> list[Any]:
        """Values of a key, None where it is absent."""
        return [row.get(name) for row in self.rows]

    def numbers(self, name: str) -> list[Any]:
        """Values of a key that should hold numbers; what is none stays what it is."""
        return self.values(name)

    def number_type(self, name: str) -> Any:
        """JSON has none."""
        del name

    def typed(self, name: str) -> Column:
        """A column as Arrow's, which has one type for all values.

        Raises
        ------
        InputError
            There is no such type; the message does not say how to fix it.
        """
        values = self.values(name)
        try:
            column = pa.chunked_array([_of_one_type(values)])
        except (ValueError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path}: column {name!r} {_what_has_no_type(error)}: {reason}") from error
        if any(_turns_into_number(value, column.type) for value in values):
            raise InputError(f"{self.path}: column {name!r} mixes types: true or false, and numbers")
        return column

    def typed_table(self) -> Table:
        """All columns with one type each, for parquet."""
        for row, source in enumerate(self.sources):
            try:
                json.loads(source, parse_float=_finite)
            except OverflowError as error:
                raise InputError(
                    f"{self.path}: row {row} has {error}, which is beyond the range of parquet; write .jsonl"
                ) from error
        try:
            return pa.table({name: self.typed(name) for name in self.names})
        except InputError as error:
            raise InputError(f"{error}; write .jsonl, where rows stay as they are") from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.path}: half of a surrogate pair in a key, which parquet cannot hold ({error}); write .jsonl"
            ) from error

    def text_table(self) -> Table:
        """All columns as text, for CSV: text as it is, else as it is written in the file."""
        try:
            return pa.table({name: pa.array(self._texts(name), pa.string()) for name in self.names})
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.path}: half of a surrogate pair, which CSV cannot hold ({error}); write .jsonl"
            ) from error

    def json_lines(self) -> list[str]:
        """Rows as they were read."""
        return self.sources

    def _texts(self, name: str) -> list[str | None]:
        values = self.values(name)
        row = next((row for row, value in enumerate(values) if isinstance(value, (list, dict))), None)
        if row is not None:
            raise InputError(
                f"{self.path}: row {row} has a list or an object in {name!r}, which CSV cannot hold; write .jsonl"
            )
        return [
            json.dumps(value) if isinstance(value, bool) else written.get(name)
            for value, written in zip(values, self._written, strict=True)
        ]

    @cached_property
    def _written(self) -> list[dict[str, Any]]:
        """Rows with the text of every number in its place: a number can be written in more ways than one."""
        return [json.loads(source, parse_float=str, parse_int=str, parse_constant=str) for source in self.sources]


Rows = ArrowRows | JsonRows


def _with_times_as_text(kind: Any) -> Any:
    """A type with text in place of times of day to the nanosecond."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_times_as_text(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with_times_as_text(kind.key_type), _with_times_as_text(kind.item_type))
    for is_kind, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_kind(kind):
            return make(kind.value_field.with_type(_with_times_as_text(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_with_times_as_text(kind.value_type)), kind.list_size)
    return pa.string() if kind == pa.time64("ns") else kind


def _without_padding(value: Any, kind: Any) -> Any:
    """Arrow gives every struct of a column the keys of all, null where they are absent; the keys of a map are its own.

    Raises
    ------
    ValueError
        A map has a key twice.
    """
    if value is None:
        return None
    if isinstance(kind, pa.BaseExtensionType):
        return _without_padding(value, kind.storage_type)
    if pa.types.is_struct(kind):
        present = [field for field in kind if value[field.name] is not None]
        return {field.name: _without_padding(value[field.name], field.type) for field in present}
    if pa.types.is_map(kind):
        found = {key: _without_padding(item, kind.item_type) for key, item in value}
        if len(found) < len(value):
            raise ValueError(f"the map {dict(value)} has a key twice")
        return found
    return [_without_padding(item, kind.value_type) for item in value] if isinstance(value, list) else value


def _of_one_type(values: list[Any]) -> Any:
    """Values as Arrow's array."""
    try:
        return pa.array(values)
    except OverflowError:
        # Of whole numbers Arrow tries the types with a sign alone.
        if not all(value is None or isinstance(value, int) for value in values):
            raise
        return pa.array(values, pa.uint64())


def _what_has_no_type(error: Exception) -> str:
    """Why values have no type in common."""
    if isinstance(error, OverflowError):
        return "has whole numbers beyond int64"
    if isinstance(error, UnicodeEncodeError):
        return "has half of a surrogate pair"
    if "exactly representable" in str(error) or "too large" in str(error):
        return "has fractions next to whole numbers beyond 2 ** 53"
    return "mixes types"


def _turns_into_number(value: Any, kind: Any) -> bool:
    """Whether Arrow takes a true or false in a value for 1 or 0, as it does among numbers with a decimal point."""
    if isinstance(value, list):
        return any(_turns_into_number(item, kind.value_type) for item in value)
    if isinstance(value, dict):
        return any(_turns_into_number(item, kind.field(name).type) for name, item in value.items())
    return isinstance(value, bool) and not pa.types.is_boolean(kind)


def _number_or_text(text: str) -> bool | int | float | str:
    """What a field spells in decimal digits, or true and false; else the field."""
    bare = text.strip(" \t")
    if bare in _SPELLED_BOOLEANS:
        return _SPELLED_BOOLEANS[bare]
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", bare):
        return text
    try:
        number = int(bare) if re.fullmatch("[+-]?[0-9]+", bare) else float(bare)
        return number if isinstance(number, int) or math.isfinite(number) else text
    except ValueError:
        # More digits than Python reads.
        return text


def _numbers_or_text(texts: Column) -> Column:
    present = texts.drop_null().to_pylist()
    for kind, number in ((pa.int64(), int), (pa.float64(), float)):
        try:
            if present and all(str(number(text)) == text and math.isfinite(number(text)) for text in present):
                return pa.chunked_array([pa.array([t if t is None else number(t) for t in texts.to_pylist()], kind)])
        except (ValueError, OverflowError):
            pass
    return texts


def _spelled(value: Any) -> str:
    """What JSON has no form for, as text: dates, decimals."""
    if isinstance(value, bytes):
        raise TypeError(f"bytes {value[:SHOWN_CHARACTERS]!r}")
    return str(value)


SHOWN_CHARACTERS = 40


def check_columns(
    path: Path | str, names: Sequence[str], present: Sequence[str], arguments: Mapping[str, str] | None = None
) -> None:
    """Raise `InputError` if a column is missing or repeated; `arguments` are those that name the columns."""
    arguments = arguments or {}
    missing = [name for name in names if name not in present]
    if missing:
        hint = ""
        if Path(path).suffix.lower() == ".csv" and len(present) == 1 and any(mark in present[0] for mark in ";\t|"):
            hint = " as one column; columns are separated by commas: write it that way, or as parquet"
        raise InputError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(present)}{hint}",
            argument=arguments.get(missing[0]),
        )
    twice = [name for name in names if list(present).count(name) > 1]
    if twice:
        raise InputError(
            f"{path} has several columns {twice[0]!r}; rename all but one", argument=arguments.get(twice[0])
        )


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise OverflowError(text)
    return number
