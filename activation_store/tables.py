"""Files of rows: read as they are written, and handed on without a change."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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

    def typed_table(self) -> Table:
        """All columns with their types, for parquet."""
        _check_columns(self.path, self.names, self.names)
        return self.table

    def text_table(self) -> Table:
        """All columns as they are written into a CSV file."""
        table = self.table
        for index, field in enumerate(table.schema):
            if pa.types.is_string_view(field.type):
                table = table.set_column(index, field.name, table.column(index).cast(pa.large_string()))
        return table

    def json_lines(self) -> list[str]:
        """Rows as JSON objects.

        Raises
        ------
        ValueError, TypeError
            A NaN or infinity, bytes.
        """
        table = self.typed_table()
        columns = {
            name: self.values(name) if name in self.used else self._padded(table.column(name), name)
            for name in table.column_names
        }
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [json.dumps(row, default=_spelled, allow_nan=False) for row in rows]

    def _padded(self, column: Column, name: str) -> list[Any]:
        """Python's values as Arrow gives them."""
        try:
            return column.to_pylist()
        except (ValueError, OverflowError) as error:
            # Such as dates after the year 9999.
            raise InputError(f"{self.path}: column {name!r} ({column.type}) cannot be read: {error}") from error


@dataclass(frozen=True)
class TextRows(ArrowRows):
    """Rows of a CSV file: every column that is not asked for as numbers is text, as it is written there."""

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
        The objects as they are written there, each on one line.
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

    def typed(self, name: str) -> Column:
        """A column as Arrow's, which has one type for all values.

        Raises
        ------
        InputError
            The values are of several types; the message does not say what to do.
        """
        values = self.values(name)
        try:
            column = pa.chunked_array([pa.array(values)])
        except (ValueError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.path}: column {name!r} mixes types or has whole numbers beyond 64 bits: {reason}"
            ) from error
        if any(_turns_into_number(value, column.type) for value in values):
            raise InputError(f"{self.path}: column {name!r} mixes types: true or false, and numbers")
        return column

    def typed_table(self) -> Table:
        """All columns with one type each, for parquet."""
        try:
            return pa.table({name: self.typed(name) for name in self.names})
        except InputError as error:
            raise InputError(f"{error}; write .jsonl, where rows stay as they are") from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.path}: half of a surrogate pair in a key, which parquet cannot hold ({error}); write .jsonl"
            ) from error

    def text_table(self) -> Table:
        """All columns as text, for CSV: text as it is, else as JSON writes it."""
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
        return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


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
    numbers : collection of str
        Columns of a CSV file that are read as numbers where all their fields are.
    """

    names: Sequence[str]
    others: bool = False
    max_rows: int | None = None
    numbers: Collection[str] = ()

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
            column_types={name: pa.string() for name in present if name not in wanted.numbers},
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


def _end(pattern: bytes, content: bytes) -> int:
    """Where a pattern that always matches ends."""
    found = re.match(pattern, content)
    assert found is not None
    return found.end()


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
            items = _parsed(file.read(), f"{path} starts like a JSON array, but", "write one object a line")
            for number, item in enumerate(items):
                yield json.dumps(item), _object(item, json.dumps(item), f"{path}, item {number} of the array")
            return
        for number, line in enumerate(file, 1):
            source = line.strip()
            if source:
                row = _parsed(source, f"{path}, line {number}", "a JSON Lines file has one object a line")
                yield source, _object(row, source, f"{path}, line {number}")


def _parsed(text: str, where: str, way_out: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); {way_out}") from error


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


def _turns_into_number(value: Any, kind: Any) -> bool:
    """Whether Arrow takes a true or false in a value for 1 or 0, as it does among numbers with a decimal point."""
    if isinstance(value, list):
        return any(_turns_into_number(item, kind.value_type) for item in value)
    if isinstance(value, dict):
        return any(_turns_into_number(item, kind.field(name).type) for name, item in value.items())
    return isinstance(value, bool) and not pa.types.is_boolean(kind)


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
