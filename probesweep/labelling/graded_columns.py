"""Grades in the columns of a dataset: a list of graded answers in each row, or how many were right of how many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from activation_store.errors import InputError
from probesweep.labelling.columns import ATTEMPT, Attempt, count_array, outcome_columns
from probesweep.labelling.logged import choose_metric, is_share

_CORRECT = ("n_correct", "correct", "num_correct")
_TOTAL = ("n_samples", "total", "n_total", "num_samples")
_RATE = "success_rate"
# A rate that is stored with enough digits makes a whole number of right answers.
_WHOLE_WITHIN = 1e-6
_SAME_RATE_WITHIN = 1e-6


@dataclass(frozen=True, eq=False)
class Graded:
    """`OUTCOME_COLUMNS` of a dataset's rows, and what they were read from, for the user."""

    columns: Mapping[str, Any]
    recognized: str


def read_graded(path: Path, table: Any, metric: str | None, truncated: str | None) -> Graded:
    """Read the grades of a dataset.

    Raises
    ------
    InputError, RequestError
        It has none, several of which none was chosen, or a row whose grades make no sense.
    """
    readers = _readers(table)
    if not readers:
        raise InputError(
            f"{path} has no labels that are understood; it has {', '.join(table.column_names)}. Wanted is a list "
            "column of true and false or of structs with a field correct, n_correct and n_samples (or correct and "
            "total), or success_rate and n_samples"
        )
    chosen = choose_metric(path, list(readers), metric)
    graded = readers[chosen](path, table, truncated)
    _check_rate(path, table, graded)
    return graded


_Reader = Callable[[Path, Any, str | None], Graded]


def _readers(table: Any) -> dict[str, _Reader]:
    """What grades there are, by the column that holds them."""
    names = table.column_names
    lists = {name: _of_lists(name) for name in names if _is_graded(table.column(name))}
    totals = [name for name in _TOTAL if name in names and _is_number(table.column(name))]
    corrects = [name for name in _CORRECT if name in names and _is_number(table.column(name))]
    if not totals:
        return lists
    if not corrects and not lists and _RATE in names and _is_number(table.column(_RATE)):
        return {_RATE: _of_rates(totals[0])}
    return {**lists, **{name: _of_counts(name, totals[0]) for name in corrects}}


def _is_graded(column: Any) -> bool:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("correct") >= 0
    if pa.types.is_boolean(kind):
        return True
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return False
    # Numbers beyond these are no grades: token ids, vectors.
    parts = [chunk.flatten().drop_null().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = np.concatenate(parts)
    return len(values) > 0 and bool(((values >= 0) & (values <= 1)).all())


def _is_number(column: Any) -> bool:
    return pa.types.is_integer(column.type) or pa.types.is_floating(column.type)


def _of_lists(name: str) -> _Reader:
    def read(path: Path, table: Any, truncated: str | None) -> Graded:
        attempts = [_attempts(path, name, row, items) for row, items in enumerate(table.column(name).to_pylist())]
        return Graded(outcome_columns(attempts, truncated), f"{path}: graded answers in the column {name!r}")

    return read


def _attempts(path: Path, name: str, row: int, items: Sequence[Any] | None) -> list[Attempt]:
    found: list[Attempt] = []
    for item in items or []:
        fields = item if isinstance(item, dict) else {"correct": item}
        correct = fields["correct"]
        if correct is not None and not is_share(correct):
            raise InputError(
                f"{path}: row {row} has the grade {correct!r} in {name!r}; grades are true or false, or from 0 to 1"
            )
        text, extracted = (_text(fields, *keys) for keys in (("text", "response"), ("extracted", "prediction")))
        n_tokens = fields.get("n_tokens")
        found.append(
            Attempt(
                text=text,
                extracted=extracted,
                correct=None if correct is None else float(correct),
                finish_reason=_text(fields, "finish_reason"),
                n_tokens=n_tokens if isinstance(n_tokens, int) else None,
            )
        )
    return found


def _text(fields: Mapping[str, Any], *keys: str) -> str | None:
    found = next((fields[key] for key in keys if fields.get(key) is not None), None)
    return None if found is None else str(found)


def _of_counts(correct: str, total: str) -> _Reader:
    def read(path: Path, table: Any, truncated: str | None) -> Graded:
        del truncated
        counts, totals = table.column(correct).to_pylist(), table.column(total).to_pylist()
        for row, (count, n) in enumerate(zip(counts, totals, strict=True)):
            if not _is_count(n) or count is None or not 0 <= count <= n:
                raise InputError(
                    f"{path}: row {row} has {correct}={count} and {total}={n}; wanted is a number of answers, and how "
                    "many of them are right"
                )
        recognized = f"{path}: {correct} right of {total}"
        return Graded(_counted(counts, totals), recognized)

    return read


def _of_rates(total: str) -> _Reader:
    def read(path: Path, table: Any, truncated: str | None) -> Graded:
        del truncated
        rates, totals = table.column(_RATE).to_pylist(), table.column(total).to_pylist()
        counts: list[float] = []
        for row, (rate, n) in enumerate(zip(rates, totals, strict=True)):
            count = 0.0 if rate is None and n == 0 else None if rate is None or not _is_count(n) else rate * n
            if count is None or not 0 <= count <= n or abs(count - round(count)) > _WHOLE_WITHIN * max(1, n):
                raise InputError(
                    f"{path}: row {row} has success_rate={rate} and {total}={n}, which make no whole number of right "
                    "answers; store more digits, or a column n_correct"
                )
            counts.append(round(count))
        return Graded(_counted(counts, totals), f"{path}: success_rate of {total}")

    return read


def _is_count(n: Any) -> bool:
    return n is not None and n == n and n >= 0 and float(n).is_integer()


def _counted(counts: Sequence[float], totals: Sequence[float]) -> dict[str, Any]:
    """Columns of counts alone: no attempt is known."""
    n_rows = len(counts)
    return {
        "success_rate": pa.array([c / n if n else None for c, n in zip(counts, totals, strict=True)], pa.float64()),
        "n_samples": pa.array(list(map(int, totals)), pa.int64()),
        "n_correct": count_array(counts),
        "n_truncated": pa.nulls(n_rows, pa.int64()),
        "attempts": pa.nulls(n_rows, pa.list_(ATTEMPT)),
        "majority_answer": pa.nulls(n_rows, pa.string()),
        "majority_is_correct": pa.nulls(n_rows, pa.bool_()),
    }


def _check_rate(path: Path, table: Any, graded: Graded) -> None:
    """Refuse a rate in the file that its grades contradict."""
    if _RATE not in table.column_names:
        return
    ours = graded.columns[_RATE].to_pylist()
    for row, (said, rate) in enumerate(zip(table.column(_RATE).to_pylist(), ours, strict=True)):
        missing = said is None or said != said
        same = rate is None if missing else rate is not None and abs(said - rate) <= _SAME_RATE_WITHIN
        if not same:
            raise InputError(
                f"{path}: row {row} has success_rate={said}, and its grades make {rate}; drop that column, or give "
                "metric=NAME if another column holds the grades"
            )
