"""Labels that others made, as the columns that labelling makes: logs of evaluations, graded answers, counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from activation_store.errors import InputError
from activation_store.questions.formats import Wanted, read_rows
from activation_store.questions.rows import JsonRows, Rows
from probesweep.labelling.columns import FORMATTED_PROMPT, check_truncated, outcome_columns
from probesweep.labelling.graded_columns import Graded, read_graded
from probesweep.labelling.inspect_log import is_inspect_log, read_inspect_log
from probesweep.labelling.lm_eval_log import is_lm_eval_log, read_lm_eval_log
from probesweep.labelling.logged import ANSWER, QUESTION, Logged
from probesweep_errors import naming


@dataclass(frozen=True, eq=False)
class Existing:
    """A dataset with the labels of somebody else.

    Parameters
    ----------
    table : pyarrow.Table
        A row for each question: its other columns, the question, and `OUTCOME_COLUMNS`; what is not known is null.
    recognized : str
        What the file was taken for, in a sentence for the user.
    """

    table: Any
    recognized: str


def read_existing(
    path: str | Path,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    metric: str | None = None,
    truncated: str | None = None,
) -> Existing:
    """Read labels that others made.

    Samples that lm-evaluation-harness logs (``--log_samples``), logs of Inspect, and datasets with a list column of
    graded answers, with columns of how many were right of how many, or with ``success_rate`` and ``n_samples``.

    Parameters
    ----------
    path : str or Path
    question_column : str, optional
        Column of the questions, by default ``question``; of a log the key of its documents.
    answer_column : str, optional
        Column of the reference answers, which must exist if it is named.
    metric : str, optional
        Which of several scores counts.
    truncated : wrong or drop, optional
        What answers that were cut off count as; by default what the file says of them.

    Raises
    ------
    InputError, RequestError
        The file cannot be read or understood; names the row. Of several scores none was chosen; lists them.
    """
    path = Path(path)
    if truncated is not None:
        check_truncated(truncated)
    with naming("from_file"):
        if is_inspect_log(path):
            return _from_log(path, read_inspect_log(path, metric), truncated)
        rows = read_rows(path, Wanted([], others=True))
        if not len(rows):
            raise InputError(f"{path} has no rows")
        if is_lm_eval_log(rows):
            return _from_log(path, read_lm_eval_log(rows, question_column, metric), truncated)
    for name, argument in ((question_column or QUESTION, "question_column"), (answer_column, "answer_column")):
        if name is not None and name not in rows.names:
            raise InputError(f"{path} has no column {name!r}; it has {', '.join(rows.names)}", argument=argument)
    with naming("from_file"):
        table = _typed(rows)
        return _from_dataset(table, read_graded(path, table, metric, truncated))


def _from_log(path: Path, logged: Logged, truncated: str | None) -> Existing:
    if not logged.attempts:
        raise InputError(f"{path} has no samples")
    columns = {
        **{name: column_of(values) for name, values in logged.others.items()},
        QUESTION: column_of(logged.questions),
        ANSWER: column_of(logged.answers),
        **outcome_columns(logged.attempts, truncated),
        FORMATTED_PROMPT: pa.array(logged.prompts, pa.string()),
    }
    return Existing(pa.table(columns), logged.recognized)


def _from_dataset(table: Any, graded: Graded) -> Existing:
    """The file's columns, with those of the outcome behind them."""
    # What the file says stands where its grades say nothing.
    outcome = {
        name: table.column(name) if column.null_count == len(column) and name in table.column_names else column
        for name, column in graded.columns.items()
    }
    others = {name: table.column(name) for name in table.column_names if name not in outcome}
    prompts = others.pop(FORMATTED_PROMPT, pa.nulls(len(table), pa.string()))
    return Existing(pa.table({**others, **outcome, FORMATTED_PROMPT: prompts}), graded.recognized)


def _typed(rows: Rows) -> Any:
    """All columns with a type each; what has none as JSON."""
    if not isinstance(rows, JsonRows):
        return rows.typed_table()
    return pa.table({name: _typed_column(rows, name) for name in rows.names})


def _typed_column(rows: JsonRows, name: str) -> Any:
    try:
        column = rows.typed(name)
    except InputError:
        return _as_json(rows.values(name))
    return column if _fits_parquet(column.type) else _as_json(rows.values(name))


def _fits_parquet(kind: Any) -> bool:
    """Whether no part of a type is an object without keys."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_fits_parquet(field.type) for field in kind)
    return not pa.types.is_list(kind) or _fits_parquet(kind.value_type)


def column_of(values: Sequence[Any]) -> Any:
    """Values as a column: with a type if they have one in common, else as JSON."""
    return _typed_column(JsonRows(Path(), ["value"], [{"value": value} for value in values], []), "value")


def _as_json(values: Sequence[Any]) -> Any:
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values], pa.string())
