"""Files of rows, read and passed on without changes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, AnyStr

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from activation_store.errors import InputError
from activation_store.questions.rows import SHOWN_CHARACTERS, ArrowRows, JsonRows, Rows, TextRows, check_columns

# What a DataFrame is called in errors.
FRAME = Path("DataFrame")
# A row longer than a block cannot be read; pyarrow's own is 1 MiB.
_CSV_BLOCK_NBYTES = 64 * 2**20


@dataclass(frozen=True)
class Wanted:
    """What to read of a file.

    Parameters
    ----------
    names : sequence of str
        Columns that must exist, once each.
    arguments : dict of str, optional
        The argument that names a column, for errors.
    others : bool
        Read the other columns, too.
    max_rows : int or None
        Read only the first N rows.
    """

    names: Sequence[str]
    others: bool = False
    max_rows: int | None = None
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def chosen(self) -> list[str] | None:
        """Columns to read; None: all."""
        return None if self.others else list(self.names)


def read_rows(path: Path, wanted: Wanted) -> Rows:
    """Read rows of a parquet, CSV or JSON file, or of a folder written by ``save_to_disk``.

    Raises
    ------
    InputError
        Missing file or column, a repeated column, a file that does not match its name.
    """
    return _reader(path)(path, wanted)


def frame_rows(frame: Any, wanted: Wanted) -> ArrowRows:
    """Rows of a pandas DataFrame, in its order; the index plays no part.

    Raises
    ------
    InputError
        A missing or repeated column, or one with values that have no type in common.
    """
    names = [str(name) for name in frame.columns]
    check_columns(FRAME, wanted.names, names, wanted.arguments)
    chosen = frame.iloc[: wanted.max_rows, [names.index(name) for name in wanted.chosen or names]]
    try:
        table = pa.Table.from_pandas(chosen, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{FRAME}: {' '.join(map(str, error.args))}; give each column one type") from error
    return ArrowRows(FRAME, table, wanted.names)


_Reader = Callable[[Path, Wanted], Rows]


def _reader(path: Path) -> _Reader:
    """What reads a dataset, by the ending of its name."""
    kinds = "a parquet, .csv or .jsonl file, or a folder written by datasets' save_to_disk"
    if str(path) == "-":
        raise InputError(f"dataset -: only predict reads standard input; write the rows to a file, as {kinds}")
    if not path.exists():
        raise InputError(
            f"dataset {path} does not exist; give {kinds}, or of the hub hf://datasets/ORG/NAME/FILE or "
            "ORG/NAME:CONFIG:SPLIT"
        )
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
            check_columns(path, wanted.names, file.schema_arrow.names, wanted.arguments)
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
        raise InputError(f"{path} was saved with a selection of rows by an old version of datasets; save it again")
    files = [path / Path(file["filename"]).name for file in state["_data_files"]]
    return read_arrow(path, files, wanted)


def read_arrow(name: Path | str, files: Sequence[Path], wanted: Wanted) -> ArrowRows:
    """Read rows of the Arrow files that datasets writes, which follow one another.

    Parameters
    ----------
    name : Path or str
        What to call them all.
    files : sequence of Path
    wanted : Wanted

    Raises
    ------
    InputError
        As `read_rows`.
    """
    try:
        # The parts of rows that are not used are not even read: the files are mapped.
        tables = [paipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
        check_columns(name, wanted.names, tables[0].column_names, wanted.arguments)
        table = pa.concat_tables([table.select(wanted.chosen or table.column_names) for table in tables])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _unreadable(name, "a datasets folder", error) from error
    return ArrowRows(name, table.slice(0, wanted.max_rows), wanted.names)


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
        check_columns(path, wanted.names, present, wanted.arguments)
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
            "Expected": "; put fields with a separator or a line break in quotes",
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
    shown = content[start : end + SHOWN_CHARACTERS].decode(errors="replace").splitlines()[0]
    if closed is None:
        raise InputError(f"{path}, line {line}: the quote that opens {shown} is never closed")
    raise InputError(
        f"{path}, line {line}: {shown} continues after its closing quote; within quotes a quote is written twice, "
        '"", not escaped by a backslash'
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
        check_columns(path, wanted.names, present, wanted.arguments)
    return JsonRows(path, present, [row for _, row in read], [source for source, _ in read])


def _json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON Lines, or of one array, each with what is written there."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        is_array = file.read(1000).lstrip().startswith("[")
        file.seek(0)
        if is_array:
            text = file.read()
            items = _parsed(text, f"{path} starts like a JSON array, but", "write one object per line")
            for number, (item, source) in enumerate(zip(items, _sources(text), strict=True)):
                yield source, _object(item, source, f"{path}, item {number} of the array")
            return
        for number, line in enumerate(file, 1):
            source = line.strip()
            if source:
                try:
                    row = _parsed(source, f"{path}, line {number}", "a JSON Lines file has one object per line")
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


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"has an object with the key {twice!r} more than once; keep one")
    return dict(pairs)


def _object(value: Any, source: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object but {source[:SHOWN_CHARACTERS]}; write one object per line")
    return value


_READERS: dict[str, _Reader] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
}
# How names of files end that are read.
READABLE = tuple(_READERS)


def _json_file(path: Path) -> dict[str, Any]:
    """A small JSON document, empty where there is none."""
    try:
        document = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise _unreadable(path, "JSON", error) from error
    return document if isinstance(document, dict) else {}


def _unreadable(path: Path | str, kind: str, error: Exception, way_out: str = "") -> InputError:
    return InputError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}{way_out}")
