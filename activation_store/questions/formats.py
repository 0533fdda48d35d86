"""Files of rows: read as they are written, and handed on without a change."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, AnyStr

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from activation_store.errors import InputError

# Neither Arrow's arrays nor its tables have types.
Column = Any
Table = Any

# A row longer than a block cannot be read; pyarrow's own is 1 MiB.
_CSV_BLOCK_NBYTES = 64 * 2**20
_SHOWN_CHARACTERS = 40
_SPELLED_BOOLEANS = {
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}


@dataclass(frozen=True)
class ArrowRows:
    """Rows of a file whose columns have types of their own.

    Parameters
    ----------
    path : Path
        Where they were read.
    table : pyarrow.Table
    used : sequence of str
        Columns of prompts: text stays text in them, and structs are written without padding.
    """

    path: Path
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
        _check_columns(self.path, self.names, self.names)
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
    path : Path
        Where they were read.
    names : list of str
        Keys, in order of their first appearance.
    rows : list of dict
    sources : list of str
        The objects as they are written there, each on one line; line breaks between their parts are left out.
    """

    path: Path
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
            There is no such type; the message does not say what to do.
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
                    f"{self.path}: row {row} has {error}, which is beyond the numbers that parquet holds; write .jsonl"
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


@dataclass(frozen=True)
class Wanted:
    """What to read of a file.

    Parameters
    ----------
    names : sequence of str
        Columns that must be there, once each.
    others : bool
        Read the other columns, too.
    max_rows : int or None
        Read the first rows only.
    """

    names: Sequence[str]
    others: bool = False
    max_rows: int | None = None

    @property
    def chosen(self) -> list[str] | None:
        """Columns to read; None: all."""
        return None if self.others else list(self.names)


def read_rows(path: Path, wanted: Wanted) -> Rows:
    """Read rows of a parquet, CSV or JSON file, or of a folder written by ``save_to_disk``.

    Raises
    ------
    InputError
        Missing file or column, a column that is there twice, a file that is not what its name says.
    """
    return _reader(path)(path, wanted)


def _check_columns(path: Path, names: Sequence[str], present: Sequence[str]) -> None:
    """Raise `InputError` where a column is missing or there twice."""
    missing = [name for name in names if name not in present]
    if missing:
        hint = ""
        if path.suffix.lower() == ".csv" and len(present) == 1 and any(mark in present[0] for mark in ";\t|"):
            hint = " in one; columns are separated by commas: write it that way, or as parquet"
        raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(present)}{hint}")
    twice = [name for name in names if list(present).count(name) > 1]
    if twice:
        raise InputError(f"{path} has several columns {twice[0]!r}; rename all but one")


_Reader = Callable[[Path, Wanted], Rows]


def _reader(path: Path) -> _Reader:
    """What reads a dataset, by the ending of its name."""
    kinds = "a parquet, .csv or .jsonl file, or a folder written by datasets' save_to_disk"
    if str(path) == "-":
        raise InputError(f"dataset -: only predict reads standard input; write the rows to a file, as {kinds}")
    if not path.exists():
        raise InputError(f"dataset {path} does not exist; give {kinds} with --dataset_path")
    if path.is_dir():
        return _read_folder
    reader = _READERS.get(path.suffix.lower())
    if reader is None and _is_parquet(path):
        return _read_parquet
    if reader is None:
        raise InputError(f"dataset {path}: files that end in {path.suffix!r} are not read; give {kinds}")
    return reader


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _read_parquet(path: Path, wanted: Wanted) -> ArrowRows:
    # Not read_table, which takes columns from the names of the folders above.
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, wanted.names, file.schema_arrow.names)
            table = file.read(wanted.chosen)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "parquet", error) from error
    return ArrowRows(path, table.slice(0, wanted.max_rows), wanted.names)


def _read_folder(path: Path, wanted: Wanted) -> ArrowRows:
    splits = _json_file(path / "dataset_dict.json").get("splits")
    if splits:
        raise InputError(f"{path} holds several splits; give one of them: {', '.join(f'{path}/{s}' for s in splits)}")
    state = _json_file(path / "state.json")
    if not state.get("_data_files"):
        raise InputError(f"{path} is a folder, but not one that datasets' save_to_disk writes: it has no state.json")
    if state.get("_indices_data_files"):
        raise InputError(f"{path} was saved with a selection of rows by an old version of datasets; save it anew")
    files = [path / Path(file["filename"]).name for file in state["_data_files"]]
    try:
        # The parts of rows that are not used are not even read: the files are mapped.
        tables = [paipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
        _check_columns(path, wanted.names, tables[0].column_names)
        table = pa.concat_tables([table.select(wanted.chosen or table.column_names) for table in tables])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _unreadable(path, "a datasets folder", error) from error
    return ArrowRows(path, table.slice(0, wanted.max_rows), wanted.names)


def _read_csv(path: Path, wanted: Wanted) -> TextRows:
    delimiter = b"\t" if path.suffix.lower() == ".tsv" else b","
    read = pacsv.ReadOptions(block_size=_CSV_BLOCK_NBYTES)
    parse = pacsv.ParseOptions(delimiter=delimiter.decode(), newlines_in_values=True)
    try:
        content = path.read_bytes()
        _check_encoding(path, content[:4])
        content = content.removeprefix(codecs.BOM_UTF8)
        header = content[: _check_quotes(path, content, delimiter)] + b"\n"
        # On its own: what separates its columns is the better reason why the rows below cannot be read.
        present = pacsv.read_csv(pa.BufferReader(header), read, parse).column_names
        _check_columns(path, wanted.names, present)
        # Text whatever it looks like; only a field with nothing in it, not even quotes, is none.
        convert = pacsv.ConvertOptions(
            include_columns=wanted.chosen,
            column_types=dict.fromkeys(present, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        table = pacsv.read_csv(pa.BufferReader(content), read, parse, convert)
    except (pa.ArrowException, KeyError, OSError) as error:
        ways_out = {
            "UTF8": "; save it as UTF-8",
            "Expected": "; a field with a separator or a line break in it stands in quotes",
        }
        way_out = "".join(hint for word, hint in ways_out.items() if word in str(error))
        raise _unreadable(path, "CSV", error, way_out) from error
    return TextRows(path, table.slice(0, wanted.max_rows), wanted.names)


def _check_encoding(path: Path, start: bytes) -> None:
    encoding = json.detect_encoding(start)
    if not encoding.startswith("utf-8"):
        raise InputError(f"{path} is {encoding[:6].upper()}; save it as UTF-8")


def _check_quotes(path: Path, content: bytes, delimiter: bytes) -> int:
    """Refuse text behind a closing quote, which readers put together as they like; returns where the header ends.

    Raises
    ------
    InputError
        Names the line.
    """
    quoted = rb'"(?:[^"]++|"")*+"'
    field = b'(?:%s|[^"%s\r\n][^%s\r\n]*+|)' % (quoted, delimiter, delimiter)
    start = _end(b"(?:%s(?:%s|\r|\n|\\Z))*+" % (field, delimiter), content)
    if start == len(content):
        return _end(b"[\r\n]*(?:%s%s)*+%s" % (field, delimiter, field), content)
    closed = re.compile(quoted).match(content, start)
    end = closed.end() if closed else start
    line = 1 + max(content.count(mark, 0, end) for mark in (b"\n", b"\r"))
    shown = content[start : end + _SHOWN_CHARACTERS].decode(errors="replace").splitlines()[0]
    if closed is None:
        raise InputError(f"{path}, line {line}: the quote that opens {shown} is never closed")
    raise InputError(
        f"{path}, line {line}: {shown} goes on behind its closing quote; within quotes a quote is written twice, "
        '"", not behind a backslash'
    )


def _read_json(path: Path, wanted: Wanted) -> JsonRows:
    # Not with pyarrow, which takes texts that look like dates for dates.
    try:
        with path.open("rb") as file:
            _check_encoding(path, file.read(4))
        read = list(islice(_json_objects(path), wanted.max_rows))
    except UnicodeDecodeError as error:
        raise _unreadable(path, "JSON Lines", error, "; save it as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, "JSON Lines", error) from error
    present = list(dict.fromkeys(name for _, row in read for name in row))
    if read:
        _check_columns(path, wanted.names, present)
    return JsonRows(path, present, [row for _, row in read], [source for source, _ in read])


def _json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON Lines, or of one array, each with what is written there."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        is_array = file.read(1000).lstrip().startswith("[")
        file.seek(0)
        if is_array:
            text = file.read()
            items = _parsed(text, f"{path} starts like a JSON array, but", "write one object a line")
            for number, (item, source) in enumerate(zip(items, _sources(text), strict=True)):
                yield source, _object(item, source, f"{path}, item {number} of the array")
            return
        for number, line in enumerate(file, 1):
            source = line.strip()
            if source:
                try:
                    row = _parsed(source, f"{path}, line {number}", "a JSON Lines file has one object a line")
                except InputError as error:
                    if isinstance(error.__cause__, json.JSONDecodeError) and _is_json(path):
                        raise InputError(
                            f"{path} is one JSON object over several lines; write an array of objects, or one object a "
                            "line"
                        ) from error
                    raise
                yield source, _object(row, source, f"{path}, line {number}")


def _is_json(path: Path) -> bool:
    """Whether a whole file is one document."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _sources(text: str) -> Iterator[str]:
    """What is written of each item of a JSON array, on one line."""
    decoder, start = json.JSONDecoder(parse_float=str, parse_int=str), text.index("[") + 1
    while text[start := _end(r"[ \t\r\n,]*", text, start)] != "]":
        _, end = decoder.raw_decode(text, start)
        # No string of JSON holds a line break.
        yield re.sub(r"\s*[\r\n]\s*", "", text[start:end])
        start = end


def _end(pattern: AnyStr, content: AnyStr, start: int = 0) -> int:
    """Where a pattern that always matches ends."""
    found = re.compile(pattern).match(content, start)
    assert found is not None
    return found.end()


def _parsed(text: str, where: str, way_out: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); {way_out}") from error


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise OverflowError(text)
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"has an object with several keys {twice!r}, of which readers take one; keep one")
    return dict(pairs)


def _object(value: Any, source: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object but {source[:_SHOWN_CHARACTERS]}; write one object a line")
    return value


_READERS: dict[str, _Reader] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
}


def _json_file(path: Path) -> dict[str, Any]:
    """A small JSON document, empty where there is none."""
    try:
        document = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise _unreadable(path, "JSON", error) from error
    return document if isinstance(document, dict) else {}


def _unreadable(path: Path, kind: str, error: Exception, way_out: str = "") -> InputError:
    return InputError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}{way_out}")


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
        return "has whole numbers beyond those of int64"
    if isinstance(error, UnicodeEncodeError):
        return "has half of a surrogate pair"
    if "exactly representable" in str(error) or "too large" in str(error):
        return "has fractions beside whole numbers beyond 2 ** 53"
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
        raise TypeError(f"bytes {value[:_SHOWN_CHARACTERS]!r}")
    return str(value)
