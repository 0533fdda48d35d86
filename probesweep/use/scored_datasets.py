"""Datasets with a probe's scores as new columns."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float64

from activation_store.errors import PromptError
from activation_store.files.durable import write_output
from activation_store.questions.dataset import read_all_columns
from activation_store.questions.question import Question
from activation_store.questions.rows import Rows, Table
from gpu_probes.display.wording import class_name, one_line
from gpu_probes.scores.decisions import most_probable, predictions_of, ranked
from probesweep.errors import RequestError
from probesweep.outputs import check_file
from probesweep.use.prediction import Batches, Probe

Columns = Mapping[str, list[Any]]
OnError = Literal["stop", "null"]
CLASS_COLUMN, ERROR_COLUMN = "predicted_class", "probe_error"


@dataclass(frozen=True)
class Scored:
    """Rows with scores.

    Parameters
    ----------
    columns : list of str
        All columns written, the scores last.
    scores : dict of list
        Columns of scores, with a value per row; None if it has none. Includes the texts if texts were scored.
    unusable : dict
        Why rows have no score, by row.
    """

    columns: list[str]
    scores: Columns
    unusable: dict[int, str]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.scores.values())))

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        return [dict(zip(self.scores, row, strict=True)) for row in zip(*self.scores.values(), strict=True)]

    def __str__(self) -> str:
        """As a table."""
        import pandas as pd

        return pd.DataFrame(self.scores).to_string(index=False, na_rep="-")


def score_dataset(
    probe: Probe,
    dataset_path: Path | str,
    output_path: Path,
    *,
    question_column: str | None = None,
    max_samples: int | None = None,
    on_error: OnError = "stop",
    progress: Callable[[Batches, int], Batches] | None = None,
) -> Scored:
    """Write a dataset with the probe's scores as new columns; the others stay unchanged.

    JSON lines are written as they were read. Columns of a CSV file stay text in CSV; in other formats they become
    numbers if those print as exactly the same text.

    ``probe_score`` is calibrated, ``probe_prediction`` as in the result files, and ``probe_rank``, for classes, is what
    ROC-AUC ranks by: log odds, which still differ if probabilities round to 1. With more than two classes there are a
    ``probe_score_CLASS`` and then a ``probe_rank_CLASS`` for each. Where classes are words, the columns of two end in
    the name of the positive one, and ``predicted_class`` is the word that `best_probe_predictions.json` finds most
    probable, as accuracy and the confusion matrix count it.

    Parameters
    ----------
    probe : Probe
    dataset_path : Path or str
        Parquet, CSV or JSON file, a folder written by ``save_to_disk`` of datasets, or the address of a dataset on the
        hub.
    output_path : Path
        Ends in .parquet, .csv or .jsonl.
    question_column : str, optional
        Column of the prompts; by default the training's.
    max_samples : int, optional
        Use only the first N rows.
    on_error : stop or null
        For a row whose prompt cannot be used: an error, or null scores and a ``probe_error`` with the reason.
    progress : callable, optional
        As `Probe.decide`.

    Returns
    -------
    Scored
        What was written.

    Raises
    ------
    RequestError, StoreError
        The input cannot be used; the message says what, where, and how to fix it.
    """
    _check_on_error(on_error)
    write = _WRITERS.get(output_path.suffix.lower())
    if write is None:
        raise RequestError(
            f"output_path={str(output_path)!r}: scores are written as {', '.join(_WRITERS)}; use one of these",
            argument="output_path",
        )
    check_file(output_path, "output_path", [dataset_path])
    questions, rows = read_all_columns(dataset_path, question_column or probe.question_column, max_samples)
    taken = [name for name in _column_names(probe, on_error) if name in rows.names]
    if taken:
        raise RequestError(f"{dataset_path} has a column {taken[0]!r} already; rename it, or score the file without it")
    # Output that cannot be written is refused before the model runs, not after.
    write(rows, {})
    scores, unusable = _score(probe, questions, on_error, progress)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    write_output(output_path, [write(rows, scores)])
    return Scored([*rows.names, *scores], scores, unusable)


def score_texts(probe: Probe, texts: Sequence[str], *, on_error: OnError = "stop") -> Scored:
    """Score some prompts: one row each, with the columns of `score_dataset` after that of the texts."""
    _check_on_error(on_error)
    scores, unusable = _score(probe, texts, on_error, None)
    columns = {"text": list(texts), **scores}
    return Scored(list(columns), columns, unusable)


def _check_on_error(on_error: str) -> None:
    if on_error not in get_args(OnError):
        raise RequestError(f"on_error={on_error!r} must be one of {', '.join(get_args(OnError))}", argument="on_error")


def _score(
    probe: Probe,
    questions: Sequence[Question | PromptError],
    on_error: OnError,
    progress: Callable[[Batches, int], Batches] | None,
) -> tuple[Columns, dict[int, str]]:
    """Columns of scores, and why rows have none."""
    if on_error == "stop":
        try:
            return _columns(probe, probe.decide(questions, progress)), {}
        except PromptError as error:
            hint = "on_error='null' scores the other rows"
            raise PromptError(f"{error}; {hint}", error.reason, argument=error.argument) from error
    decision, unusable = probe.decide_usable(questions, progress)
    columns = _columns(probe, decision)
    return columns | {ERROR_COLUMN: [unusable.get(row) for row in range(len(questions))]}, unusable


def _columns(probe: Probe, decision: Float64[np.ndarray, "prompt output"]) -> dict[str, list[Any]]:
    calibrated = probe.calibrate(decision)
    scores = (
        [calibrated]
        if len(probe.coef) > 1
        else [calibrated, predictions_of(decision, probe.card.task_type, probe.card.probe)]
    )
    values = np.hstack(scores if probe.classes is None else [*scores, ranked(decision)])
    columns: list[list[Any]] = [
        [None if np.isnan(value) else value for value in column] for column in values.T.tolist()
    ]
    names = probe.class_names
    if names is not None:
        unscored = set(np.flatnonzero(np.isnan(decision).any(1)).tolist())
        words = [names[place] for place in most_probable(decision).tolist()]
        columns.append([None if row in unscored else word for row, word in enumerate(words)])
    return dict(zip(_column_names(probe, "stop"), columns, strict=True))


def _column_names(probe: Probe, on_error: OnError) -> list[str]:
    reasons = [ERROR_COLUMN] if on_error == "null" else []
    if probe.classes is None:
        return ["probe_score", "probe_prediction", *reasons]
    names = None if probe.class_names is None else _in_columns(probe.class_names)
    predicted = [] if names is None else [CLASS_COLUMN]
    if len(probe.classes) == 2:
        end = "" if names is None else f"_{names[1]}"
        return [*(f"probe_{what}{end}" for what in ("score", "prediction", "rank")), *predicted, *reasons]
    ends = list(map(class_name, probe.classes)) if names is None else names
    by_class = [f"{what}_{end}" for what in ("probe_score", "probe_rank") for end in ends]
    return [*by_class, *predicted, *reasons]


def _in_columns(names: Sequence[str]) -> list[str]:
    """Names of classes for names of columns: letters, digits and underscores, where these tell them apart."""
    plain = [re.sub(r"\W+", "_", name).strip("_") for name in names]
    return plain if all(plain) and len(set(plain)) == len(plain) else [one_line(name) for name in names]


def _parquet(rows: Rows, scores: Columns) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    try:
        pq.write_table(_with_scores(rows.typed_table(), scores), sink)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RequestError(
            f"the dataset has a column that parquet cannot hold ({error}); write .jsonl instead"
        ) from error
    return sink.getvalue()


def _csv(rows: Rows, scores: Columns) -> bytes:
    import pyarrow.csv as pacsv

    sink = io.BytesIO()
    pacsv.write_csv(_with_scores(rows.text_table(), scores), sink)
    return sink.getvalue()


def _with_scores(table: Table, scores: Columns) -> Table:
    import pyarrow as pa

    for name, values in scores.items():
        kind = pa.string() if name in (CLASS_COLUMN, ERROR_COLUMN) else pa.float64()
        table = table.append_column(name, pa.array(values, kind))
    return table


def _json_lines(rows: Rows, scores: Columns) -> bytes:
    lines = rows.json_lines()
    added = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)] or [{}] * len(lines)
    ends = [json.dumps(row, allow_nan=False)[1:-1] for row in added]
    return "".join(f"{_with_more(line, end)}\n" for line, end in zip(lines, ends, strict=True)).encode()


def _with_more(source: str, more: str) -> str:
    """The text of a JSON object with more keys at its end."""
    is_empty = not source[1:-1].strip()
    return f"{source[:-1]}{', ' if more and not is_empty else ''}{more}}}"


_WRITERS: dict[str, Callable[[Rows, Columns], bytes]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
}
