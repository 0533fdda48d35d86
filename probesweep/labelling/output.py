"""The parquet file that a labelling writes: a dataset's rows with the columns that labelling adds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from activation_store.files.durable import draft_of
from probesweep.errors import RequestError
from probesweep.labelling.columns import FORMATTED_PROMPT, OUTCOME_COLUMNS, Attempt, outcome_columns

# The key of how a file was made, among parquet's metadata.
ABOUT = b"probesweep_label"
VERSION = 1
ADDED = (*OUTCOME_COLUMNS, FORMATTED_PROMPT)
_GROUP_ROWS = 1000
_PANDAS = b"pandas"


def read_about(path: Path) -> dict[str, Any]:
    """How the labels of a file were made or taken up.

    Raises
    ------
    RequestError
        The file is not of ``probesweep label``.
    """
    try:
        return json.loads((pq.read_schema(path).metadata or {})[ABOUT])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise RequestError(
            f"{path} exists and was not made by probesweep label; give another output_path=..., or remove it",
            argument="output_path",
        ) from error


def read_attempts(path: Path) -> Iterator[list[Attempt]]:
    """The attempts at each question of a file of labels."""
    for of_row in pq.read_table(path, columns=["attempts"])["attempts"].to_pylist():
        yield [Attempt(**attempt) for attempt in of_row]


def described(table: Any, about: Mapping[str, Any]) -> Any:
    """A table that says how its labels were made; pandas' own description of the columns, which is wrong now, goes."""
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key != _PANDAS}
    return table.replace_schema_metadata({**kept, ABOUT: json.dumps(about).encode()})


def hash_of(table: Any) -> str:
    """SHA-256 over names, types and values, whatever the parts that they were read in."""
    sink = pa.BufferOutputStream()
    whole = table.combine_chunks().replace_schema_metadata(None)
    with paipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def write_rated(path: Path) -> Path:
    """The rows of a file of labels that have a rate: itself if all have, else another file beside it.

    Returns
    -------
    Path
        Of the file with these rows alone.
    """
    rated = path.with_suffix(".rated.parquet")
    table: Any = pq.read_table(path)
    kept = table.filter(table["success_rate"].is_valid())
    if kept.num_rows == table.num_rows:
        rated.unlink(missing_ok=True)
        return path
    with draft_of(rated) as draft:
        pq.write_table(kept, draft)
    return rated


def write_labelled(
    path: Path,
    table: Any,
    attempts: Callable[[], Iterator[list[Attempt]]],
    prompts: Sequence[str | None] | None,
    about: Mapping[str, Any],
) -> None:
    """Write the file whole or not at all, a thousand rows at a time.

    Parameters
    ----------
    path : Path
    table : pyarrow.Table
        The dataset; its columns with the names of those that are added are left out.
    attempts : callable
        Those at each question, in the order of the rows.
    prompts : sequence of str, optional
        As the model read them.
    about : mapping
        How the labels were made, as JSON.
    """
    kept = described(table.drop_columns([name for name in ADDED if name in table.column_names]), about)
    # Shares of a user's verifier may add up to a fraction in any row: the type of a column is that of all rows.
    share = next((one for of_row in attempts() for one in of_row if _is_share(one)), None)
    fields = outcome_columns([[] if share is None else [share]], None)
    schema = pa.schema(
        [
            *kept.schema,
            *(pa.field(name, fields[name].type) for name in OUTCOME_COLUMNS),
            pa.field(FORMATTED_PROMPT, pa.string()),
        ],
        metadata=kept.schema.metadata,
    )
    left = attempts()
    with draft_of(path) as draft, pq.ParquetWriter(draft, schema) as writer:
        for start in range(0, kept.num_rows, _GROUP_ROWS):
            part = kept.slice(start, _GROUP_ROWS)
            columns = outcome_columns([next(left) for _ in range(part.num_rows)], None)
            texts = [None] * part.num_rows if prompts is None else prompts[start : start + part.num_rows]
            arrays = [
                *part.columns,
                *(columns[name].cast(fields[name].type) for name in OUTCOME_COLUMNS),
                pa.array(texts, pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=_GROUP_ROWS)


def _is_share(attempt: Attempt) -> bool:
    return attempt.correct is not None and not float(attempt.correct).is_integer()
