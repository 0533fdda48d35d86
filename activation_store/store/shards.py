"""One shard file: encode and write it completely; open it and check its cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Shaped

from activation_store.errors import MEND, CorruptStoreError, MissingShardError
from activation_store.files.storage import Contents, InMemory, Lock, Storage
from activation_store.format.dtypes import as_bits
from activation_store.format.layout import CHECKSUM_NBYTES, Layout, checksum_bytes


def write_shard(
    storage: Storage, name: str, layout: Layout, values: Shaped[np.ndarray, "row layer position feature"], lock: Lock
) -> bytes:
    """Write one shard durably.

    Parameters
    ----------
    storage : Storage
        Of the store.
    name : str
        Path of the file in the store; it appears only when complete and on disk.
    layout : Layout
        Of the store.
    values : ndarray [row, layer, position, feature]
        All samples of the shard, at most `layout.shard_samples`; what the last shard lacks is padded with NaN.
    lock : Lock
        Of the store's writer.

    Returns
    -------
    bytes
        crc32c of every cell for the journal, 4 bytes each, in the order of the layout.
    """
    checksums: list[bytes] = []

    def pieces() -> Iterator[bytes | memoryview]:
        # Asked for once more where a run that was killed had written the file, and not committed it.
        checksums.clear()
        for data, checksum in _cells(layout, values):
            checksums.append(checksum)
            yield data.data
            yield checksum
        yield layout.index()

    storage.write_uncommitted(name, pieces, lock)
    return b"".join(checksums)


def shard_checksums(layout: Layout, values: Shaped[np.ndarray, "row layer position feature"]) -> Iterator[bytes]:
    """crc32c of every cell, in the order of the layout."""
    return (checksum for _, checksum in _cells(layout, values))


def _cells(layout: Layout, values: np.ndarray) -> Iterator[tuple[np.ndarray, bytes]]:
    """Bytes and crc32c of every cell; the bytes until the next one is asked for."""
    # One cell at a time: gathered, summed and written while it is in the processor's cache.
    cell = np.full((layout.shard_samples, layout.n_features), np.nan, dtype=values.dtype)
    held = as_bits(cell)[: len(values)]
    for layer_idx, position_idx in np.ndindex(layout.n_layers, layout.n_positions):
        held[...] = as_bits(values)[:, layer_idx, position_idx]
        data = cell.view(np.uint8).reshape(-1)
        yield data, checksum_bytes(data)


def checked_pieces(storage: Storage, name: str, layout: Layout, rows: range, checksums: bytes) -> Iterator[bytes]:
    """A committed shard's file, piece by piece, every byte checked before the last piece is taken.

    Parameters
    ----------
    storage : Storage
        Of the store.
    name : str
        Path of the file in the store.
    layout : Layout
        Of the store.
    rows : range
        Samples that the shard holds.
    checksums : bytes
        crc32c of every cell as the journal has them.

    Raises
    ------
    MissingShardError
        The file is missing.
    CorruptStoreError
        The file is shorter or longer than its index says, or not what was committed.
    """
    check_shard_length(storage, name, layout, rows)
    where, n_bytes = _where(storage, name, rows), 0
    parts = _parts(layout, checksums)
    what, left, expected = next(parts)
    found = 0
    for piece in storage.pieces(name):
        n_bytes += len(piece)
        values = np.frombuffer(piece, dtype=np.uint8)
        while len(values) and left:
            found = google_crc32c.extend(found, values[:left])
            left, values = left - len(values[:left]), values[left:]
            if left:
                continue
            if found != expected:
                raise CorruptStoreError(f"{where}: {what} what was committed; {MEND}")
            (what, left, expected), found = next(parts, ("", 0, 0)), 0
        yield piece
    if n_bytes != layout.shard_nbytes:
        raise _other_length(n_bytes, layout, where)


def _parts(layout: Layout, checksums: bytes) -> Iterator[tuple[str, int, int]]:
    """What a shard's file consists of: its name, its length, its crc32c."""
    for cell, (layer_idx, position_idx) in enumerate(np.ndindex(layout.n_layers, layout.n_positions)):
        committed = checksums[cell * CHECKSUM_NBYTES :][:CHECKSUM_NBYTES]
        place = f"layer index {layer_idx}, position index {position_idx}"
        yield f"the values of {place} are not", layout.values_nbytes, int.from_bytes(committed, "little")
        yield f"the checksum of {place} is not", CHECKSUM_NBYTES, google_crc32c.value(committed)
    yield "the index is not", len(layout.index()), google_crc32c.value(layout.index())


def check_shard_length(storage: Storage, name: str, layout: Layout, rows: range) -> None:
    """Check the length of a shard's file without opening it.

    Raises
    ------
    MissingShardError, CorruptStoreError
        It is missing; it is shorter or longer than its index says.
    """
    n_bytes = storage.n_bytes(name)
    if n_bytes is None:
        raise _gone(_where(storage, name, rows))
    # Asked for every shard of every cell that is read.
    if n_bytes != layout.shard_nbytes:
        raise _other_length(n_bytes, layout, _where(storage, name, rows))


def _other_length(n_bytes: int, layout: Layout, where: str) -> CorruptStoreError:
    return CorruptStoreError(f"{where}: {n_bytes} bytes long, committed with {layout.shard_nbytes}; {MEND}")


def _where(storage: Storage, name: str, rows: range) -> str:
    return f"{storage.where(name)} (rows {rows.start}-{rows.stop - 1})"


def _gone(where: str) -> MissingShardError:
    return MissingShardError(f"{where}: the shard was committed but its file is gone; {MEND}")


class Shard:
    """A committed shard. A cell is checked against the journal's crc32c when it is read, a mapped one the first time.

    Attributes
    ----------
    verified : ndarray [layer, position]
        Cells that were checked.
    """

    def __init__(
        self,
        where: str,
        layout: Layout,
        rows: range,
        dtype: np.dtype[Any],
        checksums: bytes,
        contents: Contents,
        *,
        mapped: bool,
    ) -> None:
        self._where = where
        self._layout = layout
        self._n_rows = len(rows)
        self._dtype = dtype
        self._checksums = checksums
        self._contents = contents
        self._mapped = mapped
        self.verified = np.zeros((layout.n_layers, layout.n_positions), dtype=bool)

    @classmethod
    def open(
        cls, storage: Storage, name: str, layout: Layout, rows: range, dtype: np.dtype[Any], checksums: bytes
    ) -> Shard:
        """Open a shard file; if it is mapped, after checking its length and its index.

        Parameters
        ----------
        storage : Storage
            Of the store.
        name : str
            Path of the file in the store.
        layout : Layout
            Of the store.
        rows : range
            Samples that the shard holds.
        dtype : numpy.dtype
            Of the values.
        checksums : bytes
            crc32c of every cell as the journal has them.

        Raises
        ------
        MissingShardError
            The file is missing.
        CorruptStoreError
            The file is shorter or longer than its index says, or the index is damaged.
        """
        where = _where(storage, name, rows)
        try:
            contents = storage.open(name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _gone(where) from error
        shard = cls(where, layout, rows, dtype, checksums, contents, mapped=storage.maps)
        if storage.maps:
            shard._check_index()
        return shard

    def cell(self, layer_idx: int, position_idx: int, *, verify: bool) -> Shaped[np.ndarray, "sample feature"]:
        """One cell's values [sample, feature], padding left out; a view if the file is mapped.

        Raises
        ------
        MissingShardError
            The file is gone.
        CorruptStoreError
            If `verify` and the values do not match the crc32c that the journal has.
        """
        layout = self._layout
        values = self._part(layout.chunk_offset(layer_idx, position_idx), layout.values_nbytes)
        # What is not mapped was sent over a network, and is checked each time.
        if verify and not (self._mapped and self.verified[layer_idx, position_idx]):
            if checksum_bytes(values) != self._committed(layer_idx, position_idx):
                raise CorruptStoreError(
                    f"{self._where}: the values of layer index {layer_idx}, position index {position_idx} are not "
                    f"those that were committed; {MEND}"
                )
            self.verified[layer_idx, position_idx] = True
        if len(values) != layout.values_nbytes:
            raise CorruptStoreError(f"{self._where}: shorter than it was committed; {MEND}")
        return values.view(self._dtype).reshape(layout.shard_samples, layout.n_features)[: self._n_rows]

    def check_checksums(self) -> None:
        """Check the checksums next to the cells, which other Zarr readers use, against the journal's.

        Raises
        ------
        CorruptStoreError
            They differ: the file is another shard's, or damaged.
        """
        layout = self._layout
        if self._mapped:
            chunks = self._part(0, layout.index_offset).reshape(-1, layout.chunk_nbytes)
            found = chunks[:, layout.values_nbytes :].tobytes()
        else:
            places = (cell * layout.chunk_nbytes + layout.values_nbytes for cell in range(layout.n_cells))
            found = b"".join(self._part(place, CHECKSUM_NBYTES).tobytes() for place in places)
        if found != self._checksums:
            raise CorruptStoreError(f"{self._where}: the checksums in the file are not those committed; {MEND}")

    def check_every_byte(self) -> None:
        """Check all cells, the checksums next to them and the index; raises as `cell` does."""
        self._check_length()
        whole = self._loaded()
        whole._check_index()
        for layer_idx, position_idx in np.ndindex(self._layout.n_layers, self._layout.n_positions):
            whole.cell(layer_idx, position_idx, verify=True)
        whole.check_checksums()

    def _loaded(self) -> Shard:
        """The same in memory: one request for all cells."""
        if self._mapped:
            return self
        held = InMemory(self._contents.part(0, self._layout.shard_nbytes))
        rows = range(self._n_rows)
        return Shard(self._where, self._layout, rows, self._dtype, self._checksums, held, mapped=True)

    def _part(self, start: int, n_bytes: int) -> np.ndarray:
        try:
            return np.frombuffer(self._contents.part(start, n_bytes), dtype=np.uint8)
        except FileNotFoundError as error:
            raise _gone(self._where) from error

    def _check_length(self) -> None:
        try:
            n_bytes = self._contents.n_bytes()
        except FileNotFoundError as error:
            raise _gone(self._where) from error
        if n_bytes != self._layout.shard_nbytes:
            raise _other_length(n_bytes, self._layout, self._where)

    def _check_index(self) -> None:
        layout = self._layout
        self._check_length()
        if bytes(self._contents.part(layout.index_offset, len(layout.index()))) != layout.index():
            raise CorruptStoreError(f"{self._where}: the shard index is damaged; {MEND}")

    def _committed(self, layer_idx: int, position_idx: int) -> bytes:
        start = (layer_idx * self._layout.n_positions + position_idx) * CHECKSUM_NBYTES
        return self._checksums[start : start + CHECKSUM_NBYTES]
