"""Labels, groups and weights in a file, joined to the rows of a store: the model need not run for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from activation_store import ActivationStore
from activation_store.files.storage import as_recorded
from activation_store.label_classes import LabelColumn
from activation_store.pt.activations import PtActivations
from activation_store.questions.dataset import Columns, content_hash
from activation_store.questions.formats import Wanted
from activation_store.questions.question import question_text
from gpu_probes.results.folder import UsedFile
from probesweep.errors import RequestError
from probesweep_errors import naming

Activations: TypeAlias = ActivationStore | PtActivations
# What tells prompts apart: their hashes, or the questions that they were made of.
Keys: TypeAlias = Sequence[Any]

PROMPT_HASH = "prompt_hash"
_SHOWN_ROWS = 5


@dataclass(frozen=True, eq=False)
class JoinedColumns:
    """Columns of a file in the order of a store's rows.

    Parameters
    ----------
    columns : Columns
        Of the file.
    row_of_sample : ndarray [sample]
        Row of the file for each sample of the store.
    joined_by : str
        The column that they were joined by, or ``row``.
    """

    columns: Columns
    row_of_sample: Int64[np.ndarray, " sample"]
    joined_by: str

    @property
    def names(self) -> list[str]:
        """Columns of the file."""
        return self.columns.names

    def labels(self, name: str) -> LabelColumn:
        """Values of a column, read as a label."""
        return self.columns.labels(name).of_rows(self.row_of_sample)

    def groups(self, name: str) -> np.ndarray:
        """Values of a column, read as groups."""
        return self.columns.groups(name)[self.row_of_sample]

    def describe(self, labels: Iterable[str], groups: Iterable[str]) -> UsedFile:
        """What was taken from the file, for ``run.json``."""
        read = {name: self.labels(name) for name in labels}
        classes = {name: one.classes for name, one in read.items() if one.classes is not None}
        taken = {name: one.values for name, one in read.items()}, {name: self.groups(name) for name in groups}
        return UsedFile(
            paths=[as_recorded(part.origin) for part in self.columns.parts],
            joined_by=self.joined_by,
            columns=[*taken[0], *taken[1]],
            content=content_hash([], *taken, classes),
        )


@dataclass(frozen=True, eq=False)
class LabelsFile:
    """A file of labels, or several whose rows follow one another.

    Its rows are joined to a store's by the column ``prompt_hash`` or, without one, by the column of questions. Where
    these are the store's in the same order, row by row, so that a repeated prompt may have several labels. Without
    either column, or if the store has no prompts, row by row as well.

    Parameters
    ----------
    columns : Columns
    question_column : str or None
        Name of the column of questions; by default that of the store.
    argument : str
        Which argument names the file, for errors.
    """

    columns: Columns
    question_column: str | None
    argument: str

    @classmethod
    def read(
        cls,
        paths: str | Path | Sequence[str | Path],
        *,
        question_column: str | None,
        max_samples: int | None,
        argument: str,
    ) -> LabelsFile:
        """Read all columns.

        Raises
        ------
        InputError
            There is no such file, it cannot be read, or has no rows.
        """
        given = [paths] if isinstance(paths, str | Path) else paths
        wanted = Wanted([question_column] if question_column else [], others=True, max_rows=max_samples)
        with naming(argument):
            columns = Columns.read(given, wanted)
        return cls(columns, question_column, argument)

    def join(self, *stores: Activations) -> tuple[JoinedColumns, ...]:
        """Find the file's row of every sample.

        Parameters
        ----------
        *stores : ActivationStore or PtActivations
            Those that the file has labels for: all of its rows belong to one of them.

        Raises
        ------
        RequestError
            A row is missing, is there twice, or has a prompt of none of the stores; names rows.
        """
        with naming(self.argument):
            return self._join(stores)

    def _join(self, stores: Sequence[Activations]) -> tuple[JoinedColumns, ...]:
        keyed = [self._key_column(store) for store in stores]
        joined: list[JoinedColumns] = []
        held: set[Any] = set()
        given: dict[str, Keys] = {name: self._keys(name) for name in dict.fromkeys(keyed) if name is not None}
        for store, name in zip(stores, keyed, strict=True):
            if name is None:
                joined.append(self._by_row(store, alone=len(stores) == 1))
                continue
            wanted = _keys_of(store, name)
            held.update(wanted)
            joined.append(JoinedColumns(self.columns, self._match(store, wanted, given[name], name), name))
        for keys in given.values():
            foreign = [row for row, key in enumerate(keys) if key not in held]
            if foreign:
                raise RequestError(
                    f"{self._path}: {_rows(foreign)} of prompts that are not in "
                    f"{' or '.join(str(store.path) for store in stores)}; drop them, or use only the first rows "
                    "(max_samples=N)"
                )
        return tuple(joined)

    @property
    def _path(self) -> str:
        return self.columns.path

    def _key_column(self, store: Activations) -> str | None:
        if not _knows_prompts(store):
            return None
        if self.question_column is not None:
            return self.question_column
        name = store.fingerprint.get("question_column")
        return next((each for each in (PROMPT_HASH, name) if each in self.columns.names), None)

    def _keys(self, name: str) -> Keys:
        if name != PROMPT_HASH:
            return [question_text(question) for question in self.columns.questions(name)]
        hashes = self.columns.numbers(name)
        wrong = [row for row, value in enumerate(hashes) if not isinstance(value, int) or isinstance(value, bool)]
        if wrong:
            raise RequestError(
                f"{self._path}: column {name!r} has {_rows(wrong)} that are not whole numbers; keep those of "
                f"store.coordinate({name!r}), or join by the questions (question_column=...)"
            )
        return hashes

    def _by_row(self, store: Activations, *, alone: bool) -> JoinedColumns:
        n_rows, n_samples = len(self.columns), store.n_samples
        if not alone or n_rows != n_samples:
            both = "" if alone else ", and of two stores it is not certain whose they are"
            raise RequestError(
                f"{self._path} can only be joined to {store.path} row by row, as {self._why_by_row(store)}; it has "
                f"{n_rows} rows for {n_samples}{both}; give each store a file of as many rows (test_labels=... for "
                "the test rows)"
            )
        return JoinedColumns(self.columns, np.arange(n_samples), "row")

    def _why_by_row(self, store: Activations) -> str:
        name = self.question_column or store.fingerprint.get("question_column")
        if not _knows_prompts(store):
            return "the activations come without prompts"
        return f"it has neither a column {PROMPT_HASH!r} nor {name!r}"

    def _match(self, store: Activations, wanted: Keys, given: Keys, name: str) -> Int64[np.ndarray, " sample"]:
        """The row of each key."""
        if list(wanted) == list(given):
            return np.arange(len(wanted))
        row_of = {key: row for row, key in reversed(list(enumerate(given)))}
        missing = [sample for sample, key in enumerate(wanted) if key not in row_of]
        if missing:
            raise RequestError(
                f"{self._path} has no row for {_rows(missing)} of {store.path}, joined by {name!r}; add them"
            )
        counts, asked = Counter(given), set(wanted)
        twice = [row for row, key in enumerate(given) if counts[key] > 1 and key in asked]
        if twice:
            raise RequestError(
                f"{self._path}: {_rows(twice)} have a prompt that other rows have, too; keep one row for each prompt, "
                f"or give all rows of {store.path} in its order"
            )
        return np.array([row_of[key] for key in wanted], dtype=np.int64)


def _knows_prompts(store: Activations) -> bool:
    return isinstance(store, ActivationStore) and "question" in store.spec.coordinates


def _keys_of(store: Activations, name: str) -> Keys:
    """What the rows of a store with prompts are joined by."""
    assert isinstance(store, ActivationStore)
    return store.coordinate(PROMPT_HASH if name == PROMPT_HASH else "question").tolist()


def _rows(rows: Sequence[int]) -> str:
    """How many, and the first of them."""
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS]))
    return f"{len(rows)} rows ({shown}{', ...' if len(rows) > _SHOWN_ROWS else ''})"
