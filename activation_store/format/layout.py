"""Where every byte of the activations is. Pure arithmetic, no I/O.

One shard file holds ``shard_samples`` samples of every cell. Inside it, one cell (layer, position) is one inner chunk:
raw little-endian values ``[sample, feature]`` followed by their crc32c. After the chunks comes the index that Zarr's
``sharding_indexed`` codec wants (an (offset, nbytes) pair of uint64 for each chunk, then the crc32c of the pairs). No
chunk is compressed, so the index is known before anything is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import google_crc32c
import numpy as np

CHECKSUM_NBYTES = 4
TARGET_SHARD_NBYTES = 256 * 2**20


@dataclass(frozen=True)
class Layout:
    """Shape of the activations and how samples are cut into shards.

    Parameters
    ----------
    n_samples, n_layers, n_positions, n_features : int
        Shape of the array, in axis order.
    itemsize : int
        Bytes of one value.
    shard_samples : int
        Samples of one shard; the last shard is padded with NaN up to it.
    """

    n_samples: int
    n_layers: int
    n_positions: int
    n_features: int
    itemsize: int
    shard_samples: int

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_samples / self.shard_samples)

    @property
    def n_cells(self) -> int:
        """Cells, which are the inner chunks of every shard."""
        return self.n_layers * self.n_positions

    def rows(self, shard: int) -> range:
        """Sample indices of one shard, in dataset order."""
        return range(shard * self.shard_samples, min((shard + 1) * self.shard_samples, self.n_samples))

    def shard_key(self, shard: int) -> str:
        """Zarr's default chunk key of one shard, below the array's folder."""
        return f"c/{shard}/0/0/0"

    @property
    def values_nbytes(self) -> int:
        """Bytes of one inner chunk's values, its checksum left out."""
        return self.shard_samples * self.n_features * self.itemsize

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of one inner chunk in the file."""
        return self.values_nbytes + CHECKSUM_NBYTES

    def chunk_offset(self, layer_idx: int, position_idx: int) -> int:
        """Offset of a cell's first value in its shard file, in bytes."""
        return (layer_idx * self.n_positions + position_idx) * self.chunk_nbytes

    @property
    def index_offset(self) -> int:
        return self.n_cells * self.chunk_nbytes

    @property
    def shard_nbytes(self) -> int:
        """Bytes of one shard file, its index included."""
        return self.index_offset + self.n_cells * 16 + CHECKSUM_NBYTES

    @property
    def store_nbytes(self) -> int:
        """Bytes of all shard files."""
        return self.n_shards * self.shard_nbytes

    def index(self) -> bytes:
        """Encoded shard index, its checksum included."""
        return _index(self.n_cells, self.chunk_nbytes)


@lru_cache(maxsize=8)
def _index(n_cells: int, chunk_nbytes: int) -> bytes:
    """Every shard of a store has the same."""
    pairs = np.empty((n_cells, 2), dtype="<u8")
    pairs[:, 0] = np.arange(n_cells, dtype="<u8") * chunk_nbytes
    pairs[:, 1] = chunk_nbytes
    return with_checksum(pairs.tobytes())


def with_checksum(data: bytes) -> bytes:
    """Append the crc32c of `data`, little-endian, as Zarr's ``crc32c`` codec does."""
    return data + checksum_bytes(data)


def checksum_bytes(data: bytes | np.ndarray) -> bytes:
    """crc32c of `data` as the four little-endian bytes that Zarr stores."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_NBYTES, "little")


def balanced_shard_samples(n_samples: int, sample_nbytes: int, target_nbytes: int = TARGET_SHARD_NBYTES) -> int:
    """Samples per shard: shards of at most about `target_nbytes`, cut evenly so that the last is not mostly padding."""
    most = max(1, target_nbytes // sample_nbytes)
    n_shards = math.ceil(n_samples / most)
    return math.ceil(n_samples / n_shards)
