"""Read a store: labelled, checked, memory-mapped where it is on a disk."""

from __future__ import annotations

import html
import math
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Integer, Shaped

from activation_store.errors import CorruptStoreError, InputError, MissingShardError, StoreError, check_same_content
from activation_store.files.in_flight import InFlight
from activation_store.files.storage import Location, Storage, locate, open_storage
from activation_store.format.dtypes import as_bits
from activation_store.format.journal import JournalContents
from activation_store.format.spec import ARRAY, AXES, PLACE, StoreSpec
from activation_store.store.documents import check_length, read_coordinate, read_spec
from activation_store.store.integrity import (
    Progress,
    damaged_files,
    damaged_records,
    damaged_shards,
    look_at_shard,
    never_committed,
    open_shard,
)
from activation_store.store.journals import journal_of
from activation_store.store.shards import Shard

if TYPE_CHECKING:
    import pandas as pd
    import xarray

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# Each takes a descriptor, and two stores are read at a time.
MAX_MAPPED_SHARDS = max(1, min(128, _MOST_FILES // 8)) if _MOST_FILES != resource.RLIM_INFINITY else 128


class ActivationStore:
    """Activations ``[sample, layer, position, feature]``, with their labels and provenance.

    Open with `ActivationStore.open`. Only what is requested is read, and memory grows only with what is returned.
    """

    def __init__(self, storage: Storage, spec: StoreSpec, journal: JournalContents, *, verify: bool) -> None:
        self.spec = spec
        self._storage = storage
        self._journal = journal
        self._verify = verify
        self._shards: dict[int, Shard] = {}
        self._verified: dict[int, np.ndarray] = {}
        self._looked_at: set[int] = set()
        # One for all readers of the store: what is read ahead is bounded, however many cells are read at a time.
        self._requests = InFlight(storage.n_in_flight)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> ActivationStore:
        """Open a store for reading.

        Parameters
        ----------
        path : str or Path
            Folder of the store, or its address in an object store: ``s3://``, ``gs://`` or ``az://``.
        verify : bool
            Check every inner chunk against its crc32c when it is first read.

        Raises
        ------
        InputError
            Nothing is at `path`.
        UnsupportedFormatError
            What is there is not a store of this format.
        CorruptStoreError
            Its metadata or journal is damaged.
        """
        storage = open_storage(path)
        spec, journal = read_spec(storage)
        check_length(storage, spec)
        return cls(storage, spec, journal, verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process go its path and what should be there."""
        path = self.path.absolute() if isinstance(self.path, Path) else self.path
        return _reopen, (path, self._verify, self.journal_hash)

    dims = AXES

    @property
    def path(self) -> Location:
        """Where the store is: a path, or an address as a string."""
        return self._storage.location

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.spec.numpy_dtype

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices into Hugging Face ``hidden_states``."""
        return self.spec.layers

    @property
    def positions(self) -> tuple[int, ...]:
        """Negative token indices, -1 = last."""
        return self.spec.positions

    @property
    def n_samples(self) -> int:
        return self.spec.n_samples

    @property
    def n_features(self) -> int:
        return self.spec.n_features

    @property
    def n_committed(self) -> int:
        """Samples on disk; fewer than `n_samples` while an extraction is unfinished."""
        return sum(len(self.spec.layout.rows(shard)) for shard in self._journal.shards)

    @property
    def n_committed_shards(self) -> int:
        """Shards that are on disk."""
        return len(self._journal.shards)

    @property
    def first_committed_rows(self) -> range | None:
        """Samples of the first shard that is on disk."""
        shards = self._journal.shards
        return self.spec.layout.rows(min(shards)) if shards else None

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes of the Zarr group: conventions, fingerprint, provenance."""
        return self.spec.attributes()

    @property
    def journal_hash(self) -> str:
        """SHA-256 of the journal, which holds the checksums of all committed values and metadata."""
        return journal_of(self._storage, self.spec.version).content_hash(self._journal)

    @property
    def health(self) -> Mapping[str, Any]:
        """Findings when the store was finished (see `activation_store.store.health`); empty before."""
        return self._journal.health

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self.spec.fingerprint

    @property
    def labels(self) -> pd.DataFrame:
        """Label columns, a row per sample; labels of words as pandas' categoricals, in the order of their classes."""
        import pandas as pd

        return pd.DataFrame({name: self._label(name) for name in self.spec.label_columns})

    def _label(self, name: str) -> Any:
        import pandas as pd

        values, classes = self.coordinate(name), self.spec.label_classes.get(name)
        if classes is None:
            return values
        try:
            return pd.Categorical.from_codes(values, list(classes.names), ordered=classes.ordered)
        except ValueError as error:
            raise CorruptStoreError(
                f"{self.path}: label {name!r} does not hold places of its {len(classes.names)} classes; restore it"
            ) from error

    def coordinate(self, name: str) -> np.ndarray:
        """Read one of the arrays next to the activations: n_tokens, token_id, prompt_hash, question, or a label column.

        A label of words is stored as places in ``spec.label_classes[name].names``; `labels` has the words.

        Raises
        ------
        InputError
            There is no such array.
        CorruptStoreError
            It was damaged.
        """
        return read_coordinate(self._storage, name, self.spec, self._journal)

    @property
    def questions(self) -> list[str] | None:
        """The questions, conversations as JSON; None for imported activations."""
        return self.coordinate("question").tolist() if "question" in self.spec.coordinates else None

    @property
    def n_tokens(self) -> Integer[np.ndarray, " sample"] | None:
        """Tokens of each prompt; None for imported activations."""
        return self.coordinate("n_tokens") if "n_tokens" in self.spec.coordinates else None

    @property
    def position_tokens(self) -> list[str]:
        """Decoded token at each position, as the first sample has it; empty where unknown."""
        return self.coordinate("token")[0].tolist() if "token" in self.spec.coordinates else [""] * len(self.positions)

    def require_complete(self) -> None:
        """Raise unless every sample is committed.

        Raises
        ------
        MissingShardError
            Says how many are.
        """
        if self.n_committed < self.n_samples:
            raise MissingShardError(
                f"{self.path} is unfinished: {self.n_committed} of {self.n_samples} samples are committed; "
                "run the same extract again to resume"
            )

    def __len__(self) -> int:
        return self.n_samples

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis}: {length}" for axis, length in zip(AXES, self.shape, strict=True))
        size = f"{self.spec.layout.store_nbytes / 2**20:.1f} MiB"
        return (
            f"<ActivationStore {self.path}>\n"
            f"  {axes}  {self.spec.dtype}, {size}, {self.n_committed} of {self.n_samples} committed\n"
            f"  layers {_span(self.layers)} (hidden_states index), positions {_span(self.positions)} (-1 = last)\n"
            f"  model {self.fingerprint.get('model')}, labels {', '.join(self.spec.label_columns)}"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the axes with their names, and where the values come from."""
        lengths = " x ".join(f"{length} {axis}s" for axis, length in zip(self.dims, self.shape, strict=True))
        rows = {
            "axes": f"{lengths}, {self.spec.dtype}, {self.spec.layout.store_nbytes / 2**20:.1f} MiB",
            "committed": f"{self.n_committed} of {self.n_samples} samples",
            "layers": f"{_span(self.layers)} (hidden_states index)",
            "positions": ", ".join(
                f"{position} {token!r}" if token else str(position)
                for position, token in zip(self.positions, self.position_tokens, strict=True)
            ),
            "model": str(self.fingerprint.get("model")),
            "labels": ", ".join(self.spec.label_columns),
        }
        cells = (f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table><caption>{html.escape(str(self.path))}</caption>{''.join(cells)}</table>"

    def __getitem__(self, rows: slice | int) -> Shaped[np.ndarray, "row layer position feature"]:
        """Activations of consecutive samples, such as ``store[100:200]``.

        Parameters
        ----------
        rows : slice
            Sample indices, without a step.

        Returns
        -------
        ndarray [row, layer, position, feature]
            A copy.
        """
        if not isinstance(rows, slice):
            raise InputError(
                f"{self.path}: samples are read by slices; write store[i:i+1] for one, store.cell(layer, position) for "
                "a cell"
            )
        start, stop, step = rows.indices(self.n_samples)
        if step != 1:
            raise InputError(f"{self.path}: samples are read in order, without a step; index the result instead")
        size = self.spec.shard_samples
        shards = range(start // size, -(-stop // size) if stop > start else 0)
        self._check_shards(shards)
        out = np.empty((max(stop - start, 0), *self.shape[1:]), dtype=self.dtype)
        for shard in shards:
            held = self.spec.layout.rows(shard)
            low, high = max(start, held.start), min(stop, held.stop)
            opened, cells = self._shard(shard), list(np.ndindex(*self.shape[1:3]))
            blocks = self._in_flight(lambda cell, opened=opened: opened.cell(*cell, verify=self._verify), cells)
            for (layer_idx, position_idx), block in zip(cells, blocks, strict=True):
                part = block[low - held.start : high - held.start]
                as_bits(out)[low - start : high - start, layer_idx, position_idx] = as_bits(part)
        return out

    def cells(self) -> Iterator[tuple[tuple[int, int], Shaped[np.ndarray, "sample feature"]]]:
        """Iterate over all cells in their order on disk; one of them is in memory at a time, and what is read ahead.

        Yields
        ------
        tuple of int
            Layer and position.
        ndarray [sample, feature]
        """
        shards = range(self.spec.layout.n_shards)
        self._check_shards(shards)
        places = list(np.ndindex(*self.shape[1:3]))
        # Across the ends of cells: nothing waits for the last block of one before the next is asked for.
        blocks = self._in_flight(
            lambda part: self._shard(part[1]).cell(*part[0], verify=self._verify), product(places, shards)
        )
        for layer_idx, position_idx in places:
            out = np.empty((self.n_samples, self.n_features), dtype=self.dtype)
            for shard, block in zip(shards, blocks, strict=False):
                rows = self.spec.layout.rows(shard)
                out[rows.start : rows.stop] = block
            yield (self.layers[layer_idx], self.positions[position_idx]), out

    def to_xarray(self) -> xarray.Dataset:
        """Labelled, lazy view of the complete store; zarr-python checks the values when they are read.

        Raises
        ------
        MissingShardError, CorruptStoreError
            The store is unfinished, or a shard's file is missing or truncated: Zarr would read NaN.
        """
        import xarray

        # It registers the data type.
        import_module("activation_store.format.bfloat16")
        self.require_complete()
        folders = {name.rstrip("/") for name in self._storage.names() if name.endswith("/")}
        strange = folders - {name.split("/")[0] for name in self._journal.files}
        if strange:
            raise CorruptStoreError(
                f"{self.path} holds {sorted(strange)}, which does not belong to the store; remove it"
            )
        # Zarr checks the values against the checksums next to them.
        for _ in self._in_flight(lambda shard: self._shard(shard).check_checksums(), range(self.spec.layout.n_shards)):
            pass
        beside = (*AXES[:3], *self.spec.beside)
        # Only the activations are left to Zarr: the files next to them are decoded by us, with bounds checked.
        dataset = xarray.open_zarr(self._storage.zarr_store(), consolidated=False, drop_variables=list(beside))[[ARRAY]]
        return dataset.assign_coords({name: self._variable(name) for name in beside})

    def _variable(self, name: str) -> xarray.Variable:
        import xarray

        values = self.coordinate(name)
        if name in self.spec.label_classes:
            values = np.asarray(self._label(name), dtype=object)
        if name == PLACE and self.spec.version > 1:
            return xarray.Variable(("position",), values)
        return xarray.Variable((name,) if name in AXES else ("sample", "position")[: values.ndim], values)

    def cell(self, layer: int, position: int) -> Shaped[np.ndarray, "sample feature"]:
        """Activations of one cell.

        Parameters
        ----------
        layer : int
            One of `layers`.
        position : int
            One of `positions`.

        Returns
        -------
        ndarray [sample, feature]
            A copy, in dataset order and in the store's data type.

        Raises
        ------
        InputError
            The store does not hold that layer or position.
        MissingShardError, CorruptStoreError
            Rows were never committed, or are damaged; names file and rows.
        """
        place = _index(self.layers, layer, "layer"), _index(self.positions, position, "position")
        shards = range(self.spec.layout.n_shards)
        self._check_shards(shards)
        out = np.empty((self.n_samples, self.n_features), dtype=self.dtype)

        def copy(shard: int) -> None:
            rows = self.spec.layout.rows(shard)
            out[rows.start : rows.stop] = self._shard(shard).cell(*place, verify=self._verify)

        for _ in self._in_flight(copy, shards):
            pass
        return out

    def cell_blocks(self, layer: int, position: int) -> Iterator[tuple[range, Shaped[np.ndarray, "row feature"]]]:
        """Iterate over one cell shard by shard without a copy.

        Yields
        ------
        range
            Sample indices of the shard.
        ndarray [row, feature]
            Read-only; a view of the mapped file where the store is on a disk.
        """
        layer_idx = _index(self.layers, layer, "layer")
        position_idx = _index(self.positions, position, "position")
        shards = range(self.spec.layout.n_shards)
        blocks = self._in_flight(
            lambda shard: self._shard(shard).cell(layer_idx, position_idx, verify=self._verify), shards
        )
        for shard, block in zip(shards, blocks, strict=True):
            yield self.spec.layout.rows(shard), block

    def verify(self, progress: Progress = iter) -> list[StoreError]:
        """Check every byte of the store.

        Parameters
        ----------
        progress : callable
            Wraps the shard numbers while they are worked on, such as `tqdm`.

        Returns
        -------
        list of StoreError
            What is damaged or missing, each with file and rows; empty if nothing is. The errors are not raised.
        """
        store = (self._storage, self.spec, self._journal)
        problems = [*damaged_files(*store).values(), *damaged_records(*store).values()]
        problems += damaged_shards(*store, progress).values()
        return problems + self._uncommitted()

    def copy_to(self, target: str | Path, progress: Progress = iter) -> ActivationStore:
        """Copy the store to another place, every byte checked on the way and again where it was written.

        What was committed when the store was opened is copied; the same call on a store that is opened again adds what
        was committed since, and goes on with a copy that broke off. One shard is in memory at a time, or a part of it.

        Parameters
        ----------
        target : str or Path
            Where there is nothing, an empty folder, or an earlier copy of the same store: a folder, or an address in an
            object store.
        progress : callable
            Wraps the shard numbers while they are copied, such as `tqdm`.

        Returns
        -------
        ActivationStore
            The copy.

        Raises
        ------
        InputError
            The target is something else.
        StoreLockedError
            Another process writes it.
        StoreError
            Bytes of the store are not those that were committed, or what was written is not what is read back.
        """
        from activation_store.store.copy import copy_store

        copy_store(self._storage, self.spec, self._journal, locate(target), progress)
        return ActivationStore.open(target, verify=self._verify)

    def files(self) -> list[str]:
        """Paths of all files of the store below its root, the shards last."""
        shards = [f"{ARRAY}/{self.spec.layout.shard_key(shard)}" for shard in sorted(self._journal.shards)]
        journal = journal_of(self._storage, self.spec.version).files(self._journal)
        return [*sorted(self._journal.files), *journal, *shards]

    def _uncommitted(self) -> list[StoreError]:
        """One error per gap between committed shards: a store may lack more than can be listed."""
        layout = self.spec.layout
        edges = [-1, *sorted(self._journal.shards), layout.n_shards]
        gaps = [(low + 1, high) for low, high in pairwise(edges) if high - low > 1]
        return [
            never_committed(
                self._storage.where(f"{ARRAY}/{layout.shard_key(first)}"),
                range(layout.rows(first).start, layout.rows(stop - 1).stop),
            )
            for first, stop in gaps
        ]

    def _check_shards(self, shards: range) -> None:
        """Check all shards before memory is allocated for them; those that are not mapped once."""
        pending = shards if self._storage.maps else [shard for shard in shards if shard not in self._looked_at]
        for _ in self._in_flight(lambda shard: look_at_shard(self._storage, self.spec, self._journal, shard), pending):
            pass
        self._looked_at.update(pending)

    def _in_flight(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return self._requests.map(function, items)

    def _shard(self, shard: int) -> Shard:
        """Mapped shard; only the most recent ones are kept, because each holds a file descriptor."""
        opened = self._shards.pop(shard, None)
        if opened is None:
            opened = open_shard(self._storage, self.spec, self._journal, shard)
            opened.verified = self._verified.setdefault(shard, opened.verified)
        self._shards[shard] = opened
        if len(self._shards) > MAX_MAPPED_SHARDS:
            # Several threads may read: each of these is one step for them.
            self._shards.pop(list(self._shards)[0], None)  # noqa: RUF015
        return opened


def _index(values: tuple[int, ...], value: int, axis: str) -> int:
    if value not in values:
        raise InputError(f"{axis} {value} is not in the store; it holds {_span(values)}")
    return values.index(value)


def _reopen(path: Location, verify: bool, journal_hash: str) -> ActivationStore:
    """Open the same store in another process, or refuse another one."""
    store = ActivationStore.open(path, verify=verify)
    check_same_content(path, store.journal_hash, journal_hash)
    return store


class PlannedStore(ActivationStore):
    """A store before it is written: its contents besides activations.

    Parameters
    ----------
    path : Path or str
        Where it will be written.
    spec : StoreSpec
    beside : mapping of str to ndarray
        Its coordinates and label columns.
    """

    def __init__(self, path: Location, spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> None:
        super().__init__(open_storage(path), spec, JournalContents({}), verify=True)
        self._beside = beside

    def coordinate(self, name: str) -> np.ndarray:
        """One of the arrays next to the activations."""
        return self._beside[name]

    @property
    def nbytes(self) -> int:
        """Bytes of the activations."""
        return math.prod(self.shape) * self.dtype.itemsize


def _span(values: tuple[int, ...]) -> str:
    """Consecutive integers as first..last, others one by one."""
    if len(values) > 2 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values))
