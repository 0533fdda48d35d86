"""One shard file: encode and commit it whole; map it and check its inner chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from activation_store.durable import commit_file, make_folder
from activation_store.errors import CorruptStoreError, MissingShardError
from activation_store.layout import CHECKSUM_NBYTES, Layout, checksum_bytes

Cells = Shaped[np.ndarray, "layer position sample feature"]


def commit_shard(path: Path, layout: Layout, cells: Cells) -> str:
    """Write one shard durably.

    Parameters
    ----------
    path : Path
        Target; appears under this name only when whole and on disk.
    layout : Layout
        Of the store.
    cells : ndarray [layer, position, sample, feature]
        C-contiguous values, `layout.shard_samples` samples long, padding included.

    Returns
    -------
    str
        Checksum of the shard for the journal: crc32c over its chunks' crc32c, in hexadecimal.
    """
    checksums: list[bytes] = []

    def pieces() -> Iterator[bytes | memoryview]:
        for chunk in cells.reshape(-1, layout.shard_samples * layout.n_features):
            values = chunk.view(np.uint8)
            checksums.append(checksum_bytes(values))
            yield values.data
            yield checksums[-1]
        yield layout.index()

    make_folder(path.parent)
    commit_file(path, pieces())
    return checksum_bytes(b"".join(checksums)).hex()


class Shard:
    """A committed shard, memory-mapped. Chunks are checked against their crc32c when they are first read."""

    def __init__(self, path: Path, layout: Layout, rows: range, dtype: np.dtype[Any], mapped: np.ndarray) -> None:
        self._path = path
        self._layout = layout
        self._rows = rows
        self._dtype = dtype
        self._mapped = mapped
        self._verified = np.zeros((layout.n_layers, layout.n_positions), dtype=bool)

    @classmethod
    def map(cls, path: Path, layout: Layout, rows: range, dtype: np.dtype[Any]) -> Shard:
        """Map a shard file after checking its length and its index.

        Raises
        ------
        MissingShardError
            The file is not there.
        CorruptStoreError
            The file is shorter or longer than its index says, or the index is damaged.
        """
        where = f"{path} (rows {rows.start}-{rows.stop - 1})"
        try:
            n_bytes = path.stat().st_size
        except FileNotFoundError as error:
            raise MissingShardError(f"{where}: the shard was committed but its file is gone; restore it") from error
        if n_bytes != layout.shard_nbytes:
            raise CorruptStoreError(f"{where}: {n_bytes} bytes long, committed with {layout.shard_nbytes}; restore it")
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        if mapped[layout.index_offset :].tobytes() != layout.index():
            raise CorruptStoreError(f"{where}: the shard index is damaged; restore the file")
        return cls(path, layout, rows, dtype, mapped)

    def cell(self, layer_idx: int, position_idx: int, *, verify: bool) -> Shaped[np.ndarray, "sample feature"]:
        """View of one cell's values [sample, feature], padding left out; no copy.

        Raises
        ------
        CorruptStoreError
            If `verify` and the values do not match their crc32c.
        """
        layout = self._layout
        start = layout.chunk_offset(layer_idx, position_idx)
        values = self._mapped[start : start + layout.values_nbytes]
        if verify and not self._verified[layer_idx, position_idx]:
            stored = self._mapped[start + layout.values_nbytes :][:CHECKSUM_NBYTES].tobytes()
            if checksum_bytes(values) != stored:
                raise CorruptStoreError(
                    f"{self._path} (rows {self._rows.start}-{self._rows.stop - 1}): checksum of layer index "
                    f"{layer_idx}, position index {position_idx} does not match its values; restore the file"
                )
            self._verified[layer_idx, position_idx] = True
        return values.view(self._dtype).reshape(layout.shard_samples, layout.n_features)[: len(self._rows)]

    def check_identity(self, checksum: str) -> None:
        """Check that this is the shard that was committed here, from its chunks' stored checksums.

        Raises
        ------
        CorruptStoreError
            `checksum`, the journal's, is not that of this file: another shard, or a damaged chunk checksum.
        """
        layout = self._layout
        chunks = self._mapped[: layout.index_offset].reshape(-1, layout.chunk_nbytes)
        if checksum_bytes(chunks[:, layout.values_nbytes :].tobytes()).hex() != checksum:
            raise CorruptStoreError(
                f"{self._path} (rows {self._rows.start}-{self._rows.stop - 1}): not the shard that the journal "
                "committed; restore the file"
            )

    def check_values(self) -> None:
        """Check every cell against its crc32c; raises as `cell` does."""
        for layer_idx, position_idx in np.ndindex(self._layout.n_layers, self._layout.n_positions):
            self.cell(layer_idx, position_idx, verify=True)
