"""The parquet file that a labelling writes: a dataset's rows with the columns that labelling adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from activation_store.files.durable import draft_of
from probesweep.errors import RequestError
from probesweep.labelling.columns import FORMATTED_PROMPT, OUTCOME_COLUMNS, Attempt, outcome_columns

# The key of how a file was made, among parquet's metadata.
ABOUT = b"probesweep_label"
ADDED = (*OUTCOME_COLUMNS, FORMATTED_PROMPT)
_GROUP_ROWS = 1000
# pandas' own description of the columns, which would be wrong.
_PANDAS = b"pandas"


def read_about(path: Path) -> dict[str, Any] | None:
    """How a labelling made a file; None where none did.

    Raises
    ------
    RequestError
        It is no parquet file.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise RequestError(
            f"{path} exists and is no parquet file; give another output_path=...", argument="output_path"
        ) from error
    return json.loads(metadata[ABOUT]) if ABOUT in metadata else None


def write_labelled(
    path: Path,
    table: Any,
    attempts: Callable[[], Iterator[list[Attempt]]],
    prompts: Sequence[str] | None,
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
    kept = table.drop_columns([name for name in ADDED if name in table.column_names])
    metadata = {key: value for key, value in (kept.schema.metadata or {}).items() if key != _PANDAS}
    metadata[ABOUT] = json.dumps(about).encode()
    # Shares of a user's verifier may add up to a fraction in any row: the type of a column is that of all rows.
    share = next((one for of_row in attempts() for one in of_row if _is_share(one)), None)
    fields = outcome_columns([[] if share is None else [share]], None)
    schema = pa.schema(
        [
            *kept.schema,
            *(pa.field(name, fields[name].type) for name in OUTCOME_COLUMNS),
            pa.field(FORMATTED_PROMPT, pa.string()),
        ],
        metadata=metadata,
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
