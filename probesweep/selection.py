"""What a training uses of a store: some of its cells and rows, with labels of its own or of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from activation_store import ActivationStore
from activation_store.extraction.arguments import read_layers
from activation_store.files.storage import as_recorded
from gpu_probes.features.cells import CellSource
from gpu_probes.features.combine import SomeCells, SomeRows
from gpu_probes.results.folder import UsedStore
from gpu_probes.samples.attempts import N_CORRECT, N_SAMPLES, AttemptColumns
from gpu_probes.samples.groups import group_samples
from probesweep.errors import RequestError
from probesweep.labels_file import Activations, JoinedColumns

if TYPE_CHECKING:
    import pandas as pd

Values = TypeVar("Values", bound=np.ndarray)
_MOST_ROWS_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Selection:
    """Some cells and rows of a store, with labels.

    Parameters
    ----------
    store : ActivationStore or PtActivations
    layers, positions : tuple of int
        Those of the store that are used.
    kept : ndarray [store_sample], optional
        Which of its rows are used; by default all.
    joined : JoinedColumns, optional
        Columns of a file, which go before the store's of the same name.
    """

    store: Activations
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    kept: Bool[np.ndarray, " store_sample"] | None = None
    joined: JoinedColumns | None = None

    @classmethod
    def of(
        cls,
        store: Activations,
        layers: str | Sequence[int] | None = None,
        positions: str | Sequence[int] | None = None,
        joined: JoinedColumns | None = None,
    ) -> Selection:
        """All rows of a store.

        Raises
        ------
        RequestError
            The store lacks a layer or a position.
        """
        return cls(store, choose_layers(store, layers), choose_positions(store, positions), joined=joined)

    def only(self, kept: Bool[np.ndarray, " store_sample"]) -> Selection:
        """Some of the rows."""
        return replace(self, kept=kept)

    @cached_property
    def cells(self) -> CellSource:
        """The activations."""
        source: CellSource = self.store
        if self.has_some_cells:
            source = SomeCells(source, self.layers, self.positions)
        return source if self.kept is None else SomeRows(source, self.kept)

    @property
    def has_some_cells(self) -> bool:
        """Whether layers or positions of the store are left out."""
        return (self.layers, self.positions) != (tuple(self.store.layers), tuple(self.store.positions))

    @property
    def n_samples(self) -> int:
        """Rows that are used."""
        return self.store.n_samples if self.kept is None else int(self.kept.sum())

    @property
    def path(self) -> Any:
        """Where the store is."""
        return self.store.path

    @property
    def questions(self) -> list[str] | None:
        """The questions of the rows; None if the store does not know them."""
        questions = self.store.questions
        return None if questions is None else [questions[row] for row in self.rows]

    @property
    def n_tokens(self) -> Shaped[np.ndarray, " sample"] | None:
        """Tokens of the prompts; None if the store does not know them."""
        n_tokens = self.store.n_tokens
        return None if n_tokens is None else self._of_rows(n_tokens)

    @property
    def position_tokens(self) -> list[str]:
        """The token at each position."""
        tokens = dict(zip(self.store.positions, self.store.position_tokens, strict=True))
        return [tokens[position] for position in self.positions]

    @property
    def rows(self) -> Int64[np.ndarray, " sample"]:
        """Which rows of the store are used."""
        return np.arange(self.store.n_samples) if self.kept is None else np.flatnonzero(self.kept)

    @property
    def names_labels(self) -> bool:
        """Whether labels have names: that of a ``.pt`` has none."""
        return self.joined is not None or self.store.fingerprint.get("label_columns") is not None

    @cached_property
    def stored_labels(self) -> list[str]:
        """Names of the store's own labels."""
        return list(self.store.labels)

    @property
    def label_names(self) -> list[str]:
        """What can be a label: columns of the store, and of the file."""
        return list(dict.fromkeys([*self.stored_labels, *self._joined_names]))

    @property
    def column_names(self) -> list[str]:
        """What can say which samples belong together."""
        return list(dict.fromkeys([*self.label_names, *(self.store.fingerprint.get("group_columns") or ())]))

    def label(self, name: str) -> pd.Series:
        """Values of a label; that of a ``.pt`` file has any name."""
        import pandas as pd

        if self.joined is not None and name in self._joined_names:
            joined = self.joined.labels(name)
            return pd.Series((joined if self.kept is None else joined.of_rows(self.kept)).column, name=name)
        labels = self.store.labels
        if self.names_labels and name not in labels:
            raise RequestError(
                f"{self.path} has no label {name!r}; it holds {', '.join(self.label_names)} (label_column=...)",
                argument="label_column",
            )
        column = labels.iloc[:, list(labels).index(name) if self.names_labels else 0]
        return column if self.kept is None else column[self.kept].reset_index(drop=True)

    def group(self, name: str) -> Shaped[np.ndarray, " sample"]:
        """Values of a column that says which samples belong together."""
        if self.joined is not None and name in self._joined_names:
            return self._of_rows(self.joined.groups(name))
        if name in self.stored_labels:
            return self._of_rows(self.store.labels[name].to_numpy())
        assert isinstance(self.store, ActivationStore)
        return self._of_rows(self.store.coordinate(name))

    @property
    def attempts(self) -> AttemptColumns | None:
        """Columns that say how many attempts labels are shares of; None if there are none."""
        if not self.names_labels or N_SAMPLES not in self.label_names:
            return None
        n_correct = self.label(N_CORRECT) if N_CORRECT in self.label_names else None
        return AttemptColumns(self.label(N_SAMPLES), n_correct)

    def from_file(self, names: Iterable[str]) -> list[str]:
        """Those of some columns that the file has."""
        return [name for name in dict.fromkeys(names) if name in self._joined_names]

    def used(self, labels: Iterable[str], groups: Iterable[str]) -> UsedStore:
        """What ``run.json`` says.

        Parameters
        ----------
        labels, groups : iterable of str
            Columns that are used.
        """
        taken = self.from_file(labels), self.from_file(groups)
        return UsedStore(
            path=as_recorded(self.store.path),
            n_samples=self.n_samples,
            content=self.store.journal_hash,
            rows=None if self.kept is None else self.rows.tolist(),
            labels=self.joined.describe(*taken) if self.joined is not None and any(taken) else None,
        )

    @cached_property
    def _joined_names(self) -> list[str]:
        return [] if self.joined is None else self.joined.names

    def _of_rows(self, values: Values) -> Values:
        return values if self.kept is None else values[self.kept]  # pyright: ignore[reportReturnType]


def choose_layers(store: Activations, layers: str | Sequence[int] | None) -> tuple[int, ...]:
    """Layers of a store by a specification such as ``10-20``; negative ones count from the last one that it holds.

    Raises
    ------
    ProbesweepError
        It is none, or the store lacks a layer.
    """
    held = tuple(store.layers)
    if layers is None or layers == "all":
        return held
    wanted: set[int] = set()
    for low, high in read_layers(layers):
        counted = low < 0 and -low <= len(held)
        wanted |= {held[low]} if counted else set(range(low, high + 1))
    return _held("layers", layers, wanted, held, store)


def choose_positions(store: Activations, positions: str | Sequence[int] | None) -> tuple[int, ...]:
    """Positions of a store by a specification such as ``-4,-1`` or ``-4..-1``.

    Raises
    ------
    RequestError
        It is none, or the store lacks a position.
    """
    held = tuple(store.positions)
    if positions is None or positions == "all":
        return held
    return _held("positions", positions, set(read_positions(positions)), held, store)


def read_positions(positions: str | Sequence[int]) -> list[int]:
    """Positions that a specification names; no store is needed.

    Raises
    ------
    RequestError
        It is not a specification.
    """
    if positions == "all":
        return []
    items = [item.strip() for item in positions.split(",")] if isinstance(positions, str) else list(positions)
    wanted: list[int] = []
    for item in items:
        found = re.fullmatch(r"(-[0-9]{1,9})(?:\.\.(-[0-9]{1,9}))?", str(item), re.ASCII)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not low <= high < 0:
            raise RequestError(
                f"positions={positions!r}: {item!r} is not a position; write all, -1, -4,-1 or -4..-1",
                argument="positions",
            )
        wanted += range(low, high + 1)
    if not wanted:
        raise RequestError("positions=[] is empty; write all, -1, -4,-1 or -4..-1", argument="positions")
    return wanted


def _held(
    name: str, given: str | Sequence[int], wanted: set[int], held: tuple[int, ...], store: Activations
) -> tuple[int, ...]:
    missing = sorted(wanted - set(held))
    if missing:
        shown = ", ".join(map(str, missing[:_MOST_ROWS_SHOWN])) + ", ..." * (len(missing) > _MOST_ROWS_SHOWN)
        raise RequestError(
            f"{name}={given if isinstance(given, str) else list(given)!r}: {store.path} holds the {name} "
            f"{', '.join(map(str, held))}, not {shown}; choose among them, or extract the others",
            argument=name,
        )
    return tuple(each for each in held if each in wanted)


def split_rows(
    whole: Selection,
    test_rows: str | Sequence[int] | None,
    test_fraction: float | None,
    *,
    groups: str | None,
    seed: int,
) -> tuple[Selection, Selection]:
    """Divide the rows of one store into those to train on and those to test on.

    Parameters
    ----------
    whole : Selection
    test_rows : str or sequence of int, optional
        Rows such as ``0-99,200``, or a column and its value such as ``split=test``.
    test_fraction : float, optional
        Instead, the part of all groups that is drawn at random: scikit-learn's ``GroupShuffleSplit``. Rows with the
        same prompt are always one group.
    groups : str, optional
        Column that says which rows belong together.
    seed : int

    Raises
    ------
    RequestError
        There are no such rows, or they leave nothing to train on.
    """
    if test_fraction is not None:
        column = None if groups is None else whole.group(check_group_column(whole, groups))
        tested = _drawn(whole, column, test_fraction, seed)
    else:
        assert test_rows is not None
        tested = _named(whole, test_rows)
    return whole.only(~tested), whole.only(tested)


def check_group_column(side: Selection, name: str) -> str:
    """Raise `RequestError` unless a column can say which samples belong together."""
    if name not in side.column_names:
        raise RequestError(
            f"{side.path} has no column {name!r} to group by (groups=...); it holds {', '.join(side.column_names)}. "
            f"Join one from a file (labels=...), or extract it with group_column={name!r}",
            argument="groups",
        )
    return name


def read_test_rows(test_rows: str | Sequence[int]) -> list[tuple[int, int]] | tuple[str, str]:
    """First and last row of each part, or a column and its value; nothing else is read.

    Raises
    ------
    RequestError
        It is neither.
    """
    if isinstance(test_rows, str) and "=" in test_rows:
        column, _, value = test_rows.partition("=")
        return column.strip(), value.strip()
    items = [item.strip() for item in test_rows.split(",")] if isinstance(test_rows, str) else list(test_rows)
    parts: list[tuple[int, int]] = []
    for item in items:
        found = re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", str(item), re.ASCII)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if high < low:
            raise RequestError(
                f"test_rows={test_rows!r}: {item!r} is no row; write rows such as 0-99,200, or a column and its value "
                "such as split=test",
                argument="test_rows",
            )
        parts.append((low, high))
    return parts


def _named(whole: Selection, test_rows: str | Sequence[int]) -> Bool[np.ndarray, " store_sample"]:
    named = read_test_rows(test_rows)
    tested = np.zeros(whole.n_samples, dtype=bool)
    if isinstance(named, tuple):
        column, value = named
        if column not in whole.column_names:
            raise RequestError(
                f"test_rows={test_rows!r}: {whole.path} has no column {column!r}; it holds "
                f"{', '.join(whole.column_names)}",
                argument="test_rows",
            )
        texts = [str(each) for each in whole.group(column).tolist()]
        tested = np.array([text == value for text in texts])
        found = f"; {column!r} holds {', '.join(sorted(set(texts))[:_MOST_ROWS_SHOWN])}"
    else:
        for low, high in named:
            if high >= whole.n_samples:
                raise RequestError(
                    f"test_rows={test_rows!r}: {whole.path} has rows 0 to {whole.n_samples - 1}, not {high}",
                    argument="test_rows",
                )
            tested[low : high + 1] = True
        found = ""
    if not tested.any() or tested.all():
        what = "nothing to train on" if tested.any() else "nothing to test on"
        raise RequestError(f"test_rows={test_rows!r} leaves {what}{found}", argument="test_rows")
    return tested


def _drawn(whole: Selection, column: Any, test_fraction: float, seed: int) -> Bool[np.ndarray, " store_sample"]:
    from sklearn.model_selection import GroupShuffleSplit

    group = group_samples(whole.n_samples, column, whole.questions).group
    n_groups = int(group.max()) + 1
    if n_groups < 2:
        raise RequestError(
            f"test_fraction={test_fraction}: all rows of {whole.path} are one group; nothing is left to test on",
            argument="test_fraction",
        )
    # scikit-learn refuses fractions that round to no group.
    n_tested = min(max(round(test_fraction * n_groups), 1), n_groups - 1)
    splitter = GroupShuffleSplit(1, test_size=n_tested, random_state=seed)
    _, drawn = next(splitter.split(group, groups=group))
    tested = np.zeros(whole.n_samples, dtype=bool)
    tested[drawn] = True
    return tested
