"""Read questions and labels, and refuse what a probe could not be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from activation_store.chat import Question, question_text
from activation_store.errors import InputError

# A row longer than a block cannot be read; pyarrow's own is 1 MiB.
_CSV_BLOCK_NBYTES = 64 * 2**20


@dataclass(frozen=True)
class Dataset:
    """The columns that are used, in dataset order.

    Parameters
    ----------
    question_column : str
        Where the questions come from.
    questions : list of str or list of dict
        Texts, or conversations that end in a user's message.
    labels : dict of ndarray [sample]
        Numeric or boolean, finite.
    groups : dict of ndarray [sample]
        Texts that say which samples belong together.
    content_hash : str
        SHA-256 over questions, labels and groups in order.
    """

    question_column: str
    questions: list[Question]
    labels: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    content_hash: str


def read_dataset(
    path: Path,
    question_column: str,
    label_columns: Sequence[str],
    max_samples: int | None = None,
    group_columns: Sequence[str] = (),
) -> Dataset:
    """Read questions and labels from a parquet, CSV or JSON Lines file, or a folder written by ``save_to_disk``.

    A question is a text, or a list of messages ``{"role": ..., "content": ...}`` that ends in a user's. Text is never
    taken for anything else: neither a number in a CSV file nor JSON within a text.

    Raises
    ------
    InputError
        Missing file or column, no rows, questions that are neither text nor a conversation, null, non-numeric or
        non-finite labels, null groups.
    """
    if max_samples is not None and max_samples < 1:
        raise InputError(f"--max_samples {max_samples}: must be at least 1")
    names = list(dict.fromkeys([question_column, *label_columns, *group_columns]))
    columns = _reader(path)(path, names, max_samples, question_column)
    if not len(columns[question_column]):
        raise InputError(f"{path} has no rows")
    questions = _questions(columns[question_column], path, question_column)
    labels = {name: _labels(columns[name], path, name) for name in label_columns}
    groups = {name: _groups(columns[name], path, name) for name in group_columns}
    return Dataset(question_column, questions, labels, groups, _content_hash(questions, labels, groups))


def read_all_columns(path: Path, question_column: str, max_samples: int | None = None) -> tuple[list[Question], Column]:
    """Read the questions, and every column as it is in an Arrow table, from the same kinds of files as `read_dataset`.

    Raises
    ------
    InputError
        Missing file or column, no rows, questions that are neither text nor a conversation, a column of mixed types.
    """
    if max_samples is not None and max_samples < 1:
        raise InputError(f"--max_samples {max_samples}: must be at least 1")
    columns = _reader(path)(path, None, max_samples, question_column)
    if not len(columns[question_column]):
        raise InputError(f"{path} has no rows")
    table = {
        name: _typed(column, path, name) if isinstance(column, list) else column for name, column in columns.items()
    }
    return _questions(columns[question_column], path, question_column), pa.table(table)


# Values of a column: Arrow's where the file has types of its own, else Python's.
Column = Any
# Columns to read (None: all that there are), most rows, the column of the questions.
_Reader = Callable[[Path, list[str] | None, int | None, str], Mapping[str, Column]]


def _reader(path: Path) -> _Reader:
    """What reads a dataset, by the ending of its name."""
    kinds = "a parquet, .csv or .jsonl file, or a folder written by datasets' save_to_disk"
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


def _read_parquet(path: Path, names: list[str] | None, max_rows: int | None, question: str) -> Mapping[str, Column]:
    try:
        names = _chosen(path, names, pq.read_schema(path).names, question)
        table = pq.read_table(path, columns=names)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, "parquet", error) from error
    return _columns(table, names, max_rows)


def _read_csv(path: Path, names: list[str] | None, max_rows: int | None, question: str) -> Mapping[str, Column]:
    read = pacsv.ReadOptions(block_size=_CSV_BLOCK_NBYTES)
    parse = pacsv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True)
    try:
        with pacsv.open_csv(path, read_options=read, parse_options=parse) as start:
            names = _chosen(path, names, start.schema.names, question)
        # A question is text whatever it looks like; only a field with nothing in it, not even quotes, is none.
        convert = pacsv.ConvertOptions(
            include_columns=names,
            column_types={question: pa.string()},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        table = pacsv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise _unreadable(path, "CSV", error) from error
    return _columns(table, names, max_rows)


def _read_json_lines(path: Path, names: list[str] | None, max_rows: int | None, question: str) -> Mapping[str, Column]:
    # Not with pyarrow, which takes texts that look like dates for dates.
    rows = list(islice(_json_objects(path), max_rows))
    present = list(dict.fromkeys(name for row in rows for name in row))
    names = _chosen(path, names, present, question) if rows else names or [question]
    return {name: [row.get(name) for row in rows] for name in names}


def _json_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON Lines file, one a line."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"{path}, line {number} is not JSON ({error}); a JSON Lines file has one object a line"
                    ) from error
                if not isinstance(row, dict):
                    raise InputError(
                        f"{path}, line {number} is not a JSON object but {line.strip()[:40]}; write one object a line"
                    )
                yield row
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, "JSON Lines", error) from error


def _read_folder(path: Path, names: list[str] | None, max_rows: int | None, question: str) -> Mapping[str, Column]:
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
        names = _chosen(path, names, tables[0].column_names, question)
        table = pa.concat_tables([table.select(names) for table in tables])
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise _unreadable(path, "a datasets folder", error) from error
    return _columns(table, names, max_rows)


_READERS: dict[str, _Reader] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
}


def _json_file(path: Path) -> dict[str, Any]:
    """A small JSON document, empty where there is none."""
    try:
        document = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise _unreadable(path, "JSON", error) from error
    return document if isinstance(document, dict) else {}


def _columns(table: Any, names: list[str], max_rows: int | None) -> Mapping[str, Column]:
    table = table.slice(0, max_rows)
    return {name: table.column(name) for name in names}


def _chosen(path: Path, names: list[str] | None, present: Sequence[str], question: str) -> list[str]:
    """The columns to read; raises `InputError` where one is missing or there twice."""
    if names is None:
        _check_columns(path, [question], present)
        names = list(present)
    _check_columns(path, names, present)
    return names


def _check_columns(path: Path, names: list[str], present: Sequence[str]) -> None:
    missing = [name for name in names if name not in present]
    if missing:
        hint = ""
        if path.suffix == ".csv" and len(present) == 1 and any(mark in present[0] for mark in ";\t"):
            hint = " in one; columns are separated by commas: write it that way, or as parquet"
        raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(present)}{hint}")
    twice = [name for name in names if list(present).count(name) > 1]
    if twice:
        raise InputError(f"{path} has several columns {twice[0]!r}; rename all but one")


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}")


def _questions(column: Column, path: Path, name: str) -> list[Question]:
    values = column if isinstance(column, list) else column.to_pylist()
    wrong = [row for row, value in enumerate(values) if not isinstance(value, (str, list))]
    if wrong:
        raise InputError(
            f"{path}: column {name!r} has {len(wrong)} values that are not text, the first in row {wrong[0]} "
            f"({values[wrong[0]]!r}); drop or mend them"
        )
    for row, value in enumerate(values):
        if isinstance(value, list):
            values[row] = [_present(message) for message in value]
        reason = _what_is_wrong(values[row])
        if reason:
            raise InputError(f"{path}: column {name!r}, row {row}: {reason}")
    return values


def _present(message: Any) -> Any:
    """A message without the keys that it has only because another one of the column has them."""
    return {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else message


def _what_is_wrong(question: Any) -> str | None:
    """Why a text or a list is no question, None if it is one."""
    if isinstance(question, list):
        if not question:
            return "the list of chat messages is empty"
        for number, message in enumerate(question):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                found = f"the keys {', '.join(message)}" if isinstance(message, dict) else repr(message)
                return f'message {number} is not of the form {{"role": ..., "content": ...}}: it has {found}'
            if not isinstance(message["role"], str) or not isinstance(message["content"], str):
                return f"message {number}: role and content must be text, not {message['role']!r} and other parts"
        if question[-1]["role"] != "user":
            return f"the last message must be the user's, not the {question[-1]['role']}'s; cut the conversation there"
    try:
        question_text(question).encode()
    except UnicodeEncodeError as error:
        return f"character {error.start} is half of a surrogate pair, which no text file can hold; drop or mend it"
    return None


def _labels(column: Column, path: Path, name: str) -> np.ndarray:
    if isinstance(column, list):
        column = _typed(column, path, name)
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    readable = column.to_pandas() if numeric or _is_text(kind) else [None] * len(column)
    as_float = np.asarray(pd.to_numeric(readable, errors="coerce"), dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(as_float))
    # Numbers written as text are refused too: what "0,5" or "1e3 " means is not ours to guess. In a CSV file all is
    # text, and what keeps a column from being numbers is what is at fault.
    if not numeric and (path.suffix.lower() not in (".csv", ".tsv") or not len(wrong)):
        wrong = np.arange(len(as_float))
    if len(wrong):
        raise InputError(
            f"{path}: label column {name!r} ({kind}) has {len(wrong)} null or non-numeric values, the first in "
            f"row {wrong[0]} ({column[int(wrong[0])].as_py()!r}); drop those rows or make them numbers"
        )
    return np.asarray(column.to_numpy())


def _groups(column: Column, path: Path, name: str) -> np.ndarray:
    """Numbers and texts alike as text: only whether they are equal matters."""
    values = column if isinstance(column, list) else column.to_pylist()
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise InputError(
            f"{path}: group column {name!r} has {len(missing)} null values, the first in row {missing[0]}; name a "
            "group for each row"
        )
    return np.array([str(value) for value in values], dtype=object)


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _typed(values: list[Any], path: Path, name: str) -> Any:
    """Values of a JSON file as Arrow's, which has one type for all of them."""
    try:
        return pa.chunked_array([pa.array(values)])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(
            f"{path}: column {name!r} mixes types: {str(error).splitlines()[0]}; make all of them numbers"
        ) from error


def _content_hash(questions: Sequence[Question], labels: dict[str, np.ndarray], groups: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        # A conversation is another question than the text that spells its JSON.
        kind = b"" if isinstance(question, str) else b"messages"
        data = question_text(question).encode()
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    for name, values in labels.items():
        digest.update(f"{name}:{values.dtype.str}:".encode() + values.tobytes())
    for name, texts in groups.items():
        digest.update(f"{name}:groups:".encode() + repr(texts.tolist()).encode())
    return digest.hexdigest()
