"""What is written and read: sizes, values, and the store's metadata as every contender uses it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr

from activation_store.format.dtypes import numpy_dtype
from activation_store.format.layout import balanced_shard_samples
from activation_store.format.spec import ARRAY, StoreSpec, encode_json

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Size:
    """How much is written and read, and how often.

    Parameters
    ----------
    n_layers, n_positions, n_features : int
        Axes after the sample axis.
    shard_nbytes : int
        About the size of one shard.
    n_shards : int
        Of the store that is read.
    n_rounds, n_slow_rounds : int
        Rounds that are counted, of the writes and cells and of the longer reads.
    slice_samples, n_slices : int
        Length and number of the slices by sample in one round.
    """

    n_layers: int
    n_positions: int
    n_features: int
    shard_nbytes: int
    n_shards: int
    n_rounds: int
    n_slow_rounds: int
    slice_samples: int
    n_slices: int

    def describe(self) -> dict[str, int]:
        """What a reader of the figures must know."""
        return asdict(self)

    @property
    def disk_nbytes(self) -> int:
        """Room that is needed at any time: the data in three forms, and a shard of each of four writers."""
        return (3 * self.n_shards + 4) * self.shard_nbytes

    def spec(self, dtype: str, n_shards: int) -> StoreSpec:
        """Spec of a store of `n_shards` whole shards."""
        sample_nbytes = self.n_layers * self.n_positions * self.n_features * numpy_dtype(dtype).itemsize
        shard_samples = balanced_shard_samples(self.shard_nbytes // sample_nbytes, sample_nbytes, self.shard_nbytes)
        return StoreSpec(
            n_samples=shard_samples * n_shards,
            layers=tuple(range(self.n_layers)),
            positions=tuple(range(-self.n_positions, 0)),
            n_features=self.n_features,
            dtype=dtype,
            shard_samples=shard_samples,
            coordinates=(),
            label_columns=(),
            fingerprint={},
            provenance={},
        )


# The activations of SmolLM2-135M: embeddings and 30 blocks, 6 post-instruction tokens.
FULL = Size(
    n_layers=31,
    n_positions=6,
    n_features=576,
    shard_nbytes=240 * 2**20,
    n_shards=4,
    n_rounds=15,
    n_slow_rounds=3,
    slice_samples=64,
    n_slices=2,
)
QUICK = Size(
    n_layers=8,
    n_positions=6,
    n_features=576,
    shard_nbytes=16 * 2**20,
    n_shards=2,
    n_rounds=3,
    n_slow_rounds=2,
    slice_samples=16,
    n_slices=2,
)


def make_values(spec: StoreSpec) -> np.ndarray:
    """Random activations [sample, layer, position, feature], laid out as a model hands them over."""
    rng = np.random.default_rng(0)
    values = np.empty(spec.shape, dtype=spec.numpy_dtype)
    for row in range(spec.n_samples):
        values[row] = rng.standard_normal(spec.shape[1:], dtype=np.float32)
    return values


def cells_of(block: np.ndarray) -> np.ndarray:
    """[row, layer, position, feature] as a shard has it: [layer, position, row, feature]."""
    return np.ascontiguousarray(block.transpose(1, 2, 0, 3))


def make_array_folder(folder: Path, spec: StoreSpec) -> Path:
    """Put the array's Zarr metadata, the same as in our store, into a new folder."""
    folder.mkdir()
    (folder / "zarr.json").write_bytes(encode_json(spec.array_metadata()))
    return folder


def open_zarr_python(folder: Path) -> zarr.Array[Any]:
    """Open an array with zarr-python, spared the search for chunks that hold only the fill value."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(folder, mode="r+")


def open_tensorstore(folder: Path) -> Any:
    """Open an array with TensorStore; it fsyncs what it writes."""
    kvstore = {"driver": "file", "path": f"{folder}/", "file_io_sync": True}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()


def array_folder(store: Path) -> Path:
    """Folder of the activations in one of our stores."""
    return store / ARRAY
