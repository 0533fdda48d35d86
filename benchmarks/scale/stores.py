"""Stores on an object store of this machine."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np

from activation_store.format.spec import StoreSpec
from activation_store.store.writer import StoreWriter
from benchmarks.shared.objects import seaweedfs

BUCKET = "scale"
LABEL = "success_rate"


@dataclass(frozen=True)
class Size:
    """Shape of a store.

    Parameters
    ----------
    n_shards, shard_samples, n_layers, n_positions, n_features : int
        Of float32 values.
    """

    n_shards: int
    shard_samples: int
    n_layers: int
    n_positions: int
    n_features: int

    @property
    def spec(self) -> StoreSpec:
        """Of such a store."""
        return StoreSpec(
            n_samples=self.n_shards * self.shard_samples,
            layers=tuple(range(self.n_layers)),
            positions=tuple(range(-self.n_positions, 0)),
            n_features=self.n_features,
            dtype="float32",
            shard_samples=self.shard_samples,
            coordinates=(),
            label_columns=(LABEL,),
            fingerprint={"model": "none"},
            provenance={},
        )

    @property
    def cell_nbytes(self) -> int:
        """Bytes of a cell."""
        return 4 * self.n_shards * self.shard_samples * self.n_features

    @property
    def nbytes(self) -> int:
        """Bytes of all cells."""
        return self.cell_nbytes * self.n_layers * self.n_positions


def shard_values(size: Size, shard: int) -> np.ndarray:
    """Random values [row, layer, position, feature] of a shard."""
    shape = (size.shard_samples, size.n_layers, size.n_positions, size.n_features)
    return np.random.default_rng(shard).standard_normal(shape, dtype=np.float32)


def write_store(address: str, size: Size) -> None:
    """Write a store of random values; a shard of it is in memory at a time."""
    spec = size.spec
    labels = np.random.default_rng(1).uniform(size=spec.n_samples)
    with StoreWriter.create(address, spec, {LABEL: labels}) as writer:
        for shard in range(size.n_shards):
            writer.add(np.array(spec.layout.rows(shard)), shard_values(size, shard))
        writer.finish({"constant_cells": [], "zero_cells": [], "repeated_prompts": None})


@contextmanager
def bucket() -> Generator[str]:
    """Address of an empty bucket of a new server, which the environment says how to reach."""
    with seaweedfs() as server, mock.patch.dict("os.environ", server.env):
        yield server.make_bucket(BUCKET)
