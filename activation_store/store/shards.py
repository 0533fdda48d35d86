"""One shard file: encode and commit it completely; map it and check its cells."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from activation_store.errors import MEND, CorruptStoreError, MissingShardError
from activation_store.files.durable import commit_file, make_folder
from activation_store.format.dtypes import as_bits
from activation_store.format.layout import CHECKSUM_NBYTES, Layout, checksum_bytes


def commit_shard(path: Path, layout: Layout, values: Shaped[np.ndarray, "row layer position feature"]) -> bytes:
    """Write one shard durably.

    Parameters
    ----------
    path : Path
        Target; appears under this name only when complete and on disk.
    layout : Layout
        Of the store.
    values : ndarray [row, layer, position, feature]
        All samples of the shard, at most `layout.shard_samples`; what the last shard lacks is padded with NaN.

    Returns
    -------
    bytes
        crc32c of every cell for the journal, 4 bytes each, in the order of the layout.
    """
    checksums: list[bytes] = []

    def pieces() -> Iterator[bytes | memoryview]:
        # One cell at a time: gathered, summed and written while it is in the processor's cache.
        cell = np.full((layout.shard_samples, layout.n_features), np.nan, dtype=values.dtype)
        held = as_bits(cell)[: len(values)]
        for layer_idx, position_idx in np.ndindex(layout.n_layers, layout.n_positions):
            held[...] = as_bits(values)[:, layer_idx, position_idx]
            data = cell.view(np.uint8).reshape(-1)
            checksums.append(checksum_bytes(data))
            yield data.data
            yield checksums[-1]
        yield layout.index()

    make_folder(path.parent)
    commit_file(path, pieces())
    return b"".join(checksums)


def check_shard_length(path: str, layout: Layout, rows: range, descriptor: int | None = None) -> None:
    """Check the length of a shard's file, open or not.

    Raises
    ------
    MissingShardError, CorruptStoreError
        It is missing; it is shorter or longer than its index says.
    """
    where = _where(path, rows)
    try:
        found = os.stat(path if descriptor is None else descriptor)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _gone(where) from error
    if not stat.S_ISREG(found.st_mode):
        raise _gone(where)
    if found.st_size != layout.shard_nbytes:
        raise CorruptStoreError(f"{where}: {found.st_size} bytes long, committed with {layout.shard_nbytes}; {MEND}")


def _where(path: str, rows: range) -> str:
    return f"{path} (rows {rows.start}-{rows.stop - 1})"


def _gone(where: str) -> MissingShardError:
    return MissingShardError(f"{where}: the shard was committed but its file is gone; {MEND}")


def _map(path: str, layout: Layout, rows: range) -> np.ndarray:
    """Bytes of a shard's file; NumPy's own `memmap` takes several times as long."""
    try:
        # Reading a pipe in its place would block forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _gone(_where(path, rows)) from error
    try:
        check_shard_length(path, layout, rows, descriptor)
        return np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), dtype=np.uint8)
    finally:
        os.close(descriptor)


class Shard:
    """A committed shard, memory-mapped. A cell is checked against the journal's crc32c when it is first read.

    Attributes
    ----------
    verified : ndarray [layer, position]
        Cells that were checked.
    """

    def __init__(
        self,
        path: str,
        layout: Layout,
        rows: range,
        dtype: np.dtype[Any],
        checksums: bytes,
        mapped: np.ndarray,
    ) -> None:
        self._where = _where(path, rows)
        self._layout = layout
        self._n_rows = len(rows)
        self._dtype = dtype
        self._checksums = checksums
        self._mapped = mapped
        self.verified = np.zeros((layout.n_layers, layout.n_positions), dtype=bool)

    @classmethod
    def map(cls, path: str, layout: Layout, rows: range, dtype: np.dtype[Any], checksums: bytes) -> Shard:
        """Map a shard file after checking its length and its index.

        Parameters
        ----------
        path : str
            The shard file.
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
        mapped = _map(path, layout, rows)
        if mapped[layout.index_offset :].tobytes() != layout.index():
            raise CorruptStoreError(f"{_where(path, rows)}: the shard index is damaged; {MEND}")
        return cls(path, layout, rows, dtype, checksums, mapped)

    def cell(self, layer_idx: int, position_idx: int, *, verify: bool) -> Shaped[np.ndarray, "sample feature"]:
        """View of one cell's values [sample, feature], padding left out; no copy.

        Raises
        ------
        CorruptStoreError
            If `verify` and the values do not match the crc32c that the journal has.
        """
        layout = self._layout
        start = layout.chunk_offset(layer_idx, position_idx)
        values = self._mapped[start : start + layout.values_nbytes]
        if verify and not self.verified[layer_idx, position_idx]:
            if checksum_bytes(values) != self._committed(layer_idx, position_idx):
                raise CorruptStoreError(
                    f"{self._where}: the values of layer index {layer_idx}, position index {position_idx} are not "
                    f"those that were committed; {MEND}"
                )
            self.verified[layer_idx, position_idx] = True
        return values.view(self._dtype).reshape(layout.shard_samples, layout.n_features)[: self._n_rows]

    def check_checksums(self) -> None:
        """Check the checksums next to the cells, which other Zarr readers use, against the journal's.

        Raises
        ------
        CorruptStoreError
            They differ: the file is another shard's, or damaged.
        """
        chunks = self._mapped[: self._layout.index_offset].reshape(-1, self._layout.chunk_nbytes)
        if chunks[:, self._layout.values_nbytes :].tobytes() != self._checksums:
            raise CorruptStoreError(f"{self._where}: the checksums in the file are not those committed; {MEND}")

    def check_every_byte(self) -> None:
        """Check all cells and the checksums next to them; raises as `cell` does."""
        for layer_idx, position_idx in np.ndindex(self._layout.n_layers, self._layout.n_positions):
            self.cell(layer_idx, position_idx, verify=True)
        self.check_checksums()

    def _committed(self, layer_idx: int, position_idx: int) -> bytes:
        start = (layer_idx * self._layout.n_positions + position_idx) * CHECKSUM_NBYTES
        return self._checksums[start : start + CHECKSUM_NBYTES]
