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

from activation_store.arguments import check_at_least_one
from activation_store.chat import Question, question_text
from activation_store.errors import InputError, PromptError
from activation_store.tables import Column, Rows, Wanted, read_rows


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
    """Read questions and labels from a parquet, CSV or JSON file, or a folder written by ``save_to_disk``.

    A question is a text, or a list of messages ``{"role": ..., "content": ...}`` that ends in a user's. Text is never
    taken for anything else: neither a number in a CSV file nor JSON within a text.

    Raises
    ------
    InputError
        Missing file or column, no rows, questions that are neither text nor a conversation, null, non-numeric or
        non-finite labels, groups that are null, lists, or not certain to be one or two.
    """
    names = list(dict.fromkeys([question_column, *label_columns, *group_columns]))
    rows = _read(path, Wanted(names, max_rows=max_samples, numbers=label_columns))
    questions = _questions(rows.values(question_column), path, question_column)
    labels = {name: _labels(rows, path, name) for name in label_columns}
    groups = {name: _groups(rows.values(name), path, name) for name in group_columns}
    return Dataset(question_column, questions, labels, groups, _content_hash(questions, labels, groups))


def read_all_columns(
    path: Path, question_column: str, max_samples: int | None = None
) -> tuple[list[Question | PromptError], Rows]:
    """Read the questions, and the rows as they are, from the same kinds of files as `read_dataset`.

    In place of a question that is neither text nor a conversation stands the error that says so.

    Raises
    ------
    InputError
        Missing file or column, no rows.
    """
    rows = _read(path, Wanted([question_column], others=True, max_rows=max_samples))
    return [
        read_question(value, f"{path}: column {question_column!r}, row {row}")
        for row, value in enumerate(rows.values(question_column))
    ], rows


def read_question(value: Any, where: str) -> Question | PromptError:
    """A value as a question, or why it is none.

    Parameters
    ----------
    value : any
    where : str
        What to call it in the error.
    """
    question = [_present(message) for message in value] if isinstance(value, list) else value
    reason = _what_is_wrong(question)
    return question if reason is None else PromptError(f"{where}: {reason}", reason)


def _read(path: Path, wanted: Wanted) -> Rows:
    check_at_least_one(max_samples=wanted.max_rows)
    rows = read_rows(path, wanted)
    if not len(rows):
        raise InputError(f"{path} has no rows")
    return rows


def _questions(values: list[Any], path: Path, name: str) -> list[Question]:
    wrong = [row for row, value in enumerate(values) if not isinstance(value, (str, list))]
    if wrong:
        raise InputError(
            f"{path}: column {name!r} has {len(wrong)} values that are not text, the first in row {wrong[0]} "
            f"({values[wrong[0]]!r}); drop or mend them"
        )
    questions: list[Question] = []
    for row, value in enumerate(values):
        question = read_question(value, f"{path}: column {name!r}, row {row}")
        if isinstance(question, PromptError):
            raise question
        questions.append(question)
    return questions


def _present(message: Any) -> Any:
    """A message without null keys, but for the content of one that calls tools.

    Files with types cannot tell a content that is null from one that is not there: here it is always null, as some
    templates ask for.
    """
    if not isinstance(message, dict):
        return message
    present = {key: value for key, value in message.items() if value is not None or key == "content"}
    if _calls_tools(present) and "content" not in present and "role" in present:
        return {"role": present["role"], "content": None, **present}
    return present


def _calls_tools(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) and message.get("role") != "user"


def _what_is_wrong(question: Any) -> str | None:
    """Why a value is no question, None if it is one."""
    if not isinstance(question, (str, list)):
        return f"{question!r} is not text; drop or mend it"
    if isinstance(question, list):
        if not question:
            return "the list of chat messages is empty"
        for number, message in enumerate(question):
            reason = _what_is_wrong_with(message)
            if reason:
                return f"message {number}{reason}"
        if question[-1]["role"] != "user":
            return f"the last message must be the user's, not the {question[-1]['role']}'s; cut the conversation there"
    try:
        question_text(question).encode()
    except UnicodeEncodeError as error:
        return f"character {error.start} is half of a surrogate pair, which no text file can hold; drop or mend it"
    return None


def _what_is_wrong_with(message: Any) -> str | None:
    form = ' is not of the form {"role": ..., "content": ...}: '
    if not isinstance(message, dict):
        return f"{form}it has {message!r}"
    if not {"role", "content"} <= message.keys():
        return f"{form}it has the keys {', '.join(message)}"
    if message["content"] is None and not _calls_tools(message):
        return f"{form}content is null, which it may be only beside the tool_calls of another than the user"
    if not isinstance(message["role"], str) or not isinstance(message["content"], (str, type(None))):
        return f": role and content must be text, not {message['role']!r} and other parts"
    return None


def _labels(rows: Rows, path: Path, name: str) -> np.ndarray:
    column = _label_column(rows, name)
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


def _label_column(rows: Rows, name: str) -> Column:
    """A column as Arrow's, with decimals and categories as the numbers that they are."""
    try:
        column = rows.typed(name)
    except InputError as error:
        raise InputError(f"{error}; make all of them numbers") from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        # Not by Arrow, which does not round to the nearest number.
        values = [None if value is None else float(value) for value in column.to_pylist()]
        column = pa.chunked_array([pa.array(values, pa.float64())])
    return column


def _groups(values: list[Any], path: Path, name: str) -> np.ndarray:
    """Numbers and texts alike as text: only whether they are equal matters."""
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise InputError(
            f"{path}: group column {name!r} has {len(missing)} null values, the first in row {missing[0]}; name a "
            "group for each row"
        )
    texts = [str(value) for value in values]
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        if isinstance(value, (list, dict)) or not _is_unicode(text):
            raise InputError(
                f"{path}: group column {name!r} has {value!r} in row {row}, which is neither a number nor a text; "
                "name each group by one"
            )
    _check_distinct(values, texts, path, name)
    return np.array(texts, dtype=object)


def _check_distinct(values: list[Any], texts: list[str], path: Path, name: str) -> None:
    """Refuse values of which it is not certain whether they are one group: 1, 1.0 and "1"."""
    by_text: dict[str, int] = {}
    by_number: dict[float, int] = {}
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        other = by_text.setdefault(text, row)
        if type(values[other]) is type(value) and isinstance(value, (bool, int, float)):
            other = by_number.setdefault(value, row)
        if type(values[other]) is not type(value) or texts[other] != text:
            raise InputError(
                f"{path}: group column {name!r} has {values[other]!r} in row {other} and {value!r} in row {row}: one "
                "group or two? Write one group in one way"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


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
