"""Labels that others made, written as those that are made here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from activation_store.files.durable import draft_of, hidden_beside, make_folder
from probesweep.errors import RequestError
from probesweep.labelling.existing import read_existing
from probesweep.labelling.output import VERSION, described, hash_of, read_about
from probesweep.labelling.progress import check_same
from probesweep.labelling.summary import Summary
from probesweep.outputs import check_file, check_on_disk, only_writer

# Others are made of it, for what is kept until the file is written.
_LONGEST_NAME = 230


@dataclass(frozen=True)
class Taking:
    """Take up labels that others made: logs of evaluations, graded answers, counts.

    Parameters
    ----------
    from_file : str or Path
        As of `read_existing`, with `question_column`, `answer_column`, `metric` and `truncated`.
    output_path : str or Path
        Parquet file to write.
    """

    from_file: str | Path
    output_path: str | Path
    question_column: str | None = None
    answer_column: str | None = None
    metric: str | None = None
    truncated: str | None = None

    def run(self) -> tuple[Summary, str]:
        """Write the file, unless it is there.

        Returns
        -------
        tuple of Summary and str
            What the labels come to, and what the file was taken for.

        Raises
        ------
        RequestError, InputError
            The file cannot be read or understood, or the output cannot be written.
        """
        source, path = Path(self.from_file), Path(self.output_path)
        check_labelled_path(self.output_path, [source])
        existing = read_existing(
            source,
            question_column=self.question_column,
            answer_column=self.answer_column,
            metric=self.metric,
            truncated=self.truncated,
        )
        about: dict[str, Any] = {
            "version": VERSION,
            "taken": {"content": hash_of(existing.table), "metric": self.metric, "truncated": self.truncated},
            "from": str(source),
            "recognized": existing.recognized,
        }
        make_folder(path.parent)
        with only_writer(hidden_beside(path, "lock"), path):
            found = read_about(path) if path.exists() else None
            if found is not None:
                check_same(path, found.get("taken", {"made by": "probesweep label"}), about["taken"], "remove it")
            else:
                with draft_of(path) as draft:
                    pq.write_table(described(existing.table, about), draft)
        return Summary.read(path), existing.recognized


def check_labelled_path(output_path: str | Path, inputs: list[Path]) -> None:
    """Raise `RequestError` unless labels can be written to a file."""
    check_on_disk(output_path, "output_path")
    path = Path(output_path)
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise RequestError(
            f"{path.name[:40]}... is too long a name; give another output_path=...", argument="output_path"
        )
    if path.suffix != ".parquet":
        raise RequestError(
            f"output_path={str(path)!r}: labels are written as parquet; end the name in .parquet",
            argument="output_path",
        )
    check_file(path, "output_path", inputs)
