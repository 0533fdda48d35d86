"""Durable writes of whole shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from activation_store.format.dtypes import as_bits
from activation_store.format.spec import StoreSpec
from activation_store.store.writer import StoreWriter
from benchmarks.shared.measure import Contender, Table, Target, Timings, check_equal, interleave
from benchmarks.store.data import (
    Size,
    array_folder,
    make_array_folder,
    open_tensorstore,
    open_zarr_python,
)

OURS, PLAIN = "ours", "plain file + fsync"
ZARR, TENSORSTORE = "zarr-python + fsync", "TensorStore + fsync"


def measure_writes(folder: Path, size: Size, dtype: str, values: np.ndarray) -> Timings:
    """Time one shard per round and contender.

    Parameters
    ----------
    folder : Path
        Empty; each contender writes below it. A shard is removed when it has been checked.
    size : Size
        Of the run.
    dtype : str
        Of the values.
    values : ndarray [sample, layer, position, feature]
        Shards of it are written in turn.
    """
    spec = size.spec(dtype, 1 + size.n_rounds)
    shards = _Shards(spec, values)
    contenders = [
        _ours(folder / "ours", spec, shards),
        _plain(folder / "plain", shards),
        _zarr_python(folder / "zarr_python", spec, shards),
        _tensorstore(folder / "tensorstore", spec, shards),
    ]
    return interleave(contenders, n_rounds=size.n_rounds, n_bytes=shards.block(0).nbytes)


def write_table(timings: Timings, dtype: str) -> Table:
    title = f"{dtype}: durable write of a shard of {timings.n_bytes / 1e6:.0f} MB"
    return timings.table(title, {"x plain": PLAIN, "x zarr-python": ZARR})


def write_targets(timings: Timings, dtype: str) -> list[Target]:
    return [
        Target(f"{dtype}: write, ours / plain file + fsync", 0.9, timings.ratio(OURS, PLAIN)),
        Target(f"{dtype}: write, ours / zarr-python", 3.0, timings.ratio(OURS, ZARR)),
    ]


class _Shards:
    """Which samples are written in which round, and with what values."""

    def __init__(self, spec: StoreSpec, values: np.ndarray) -> None:
        self._spec = spec
        self._values = values

    def rows(self, round_idx: int) -> np.ndarray:
        """Samples of the round's shard."""
        return np.asarray(self._spec.layout.rows(round_idx))

    def block(self, round_idx: int) -> np.ndarray:
        """Their values [row, layer, position, feature], C-contiguous."""
        start = round_idx * self._spec.shard_samples % len(self._values)
        return self._values[start : start + self._spec.shard_samples]

    def check(self, array: Path, round_idx: int) -> None:
        """Read the round's shard of a Zarr array back, with a library of others, and remove it."""
        rows = self._spec.layout.rows(round_idx)
        found = open_tensorstore(array)[rows.start : rows.stop].read().result()
        check_equal(found, self.block(round_idx), f"{array}, samples {rows.start}-{rows.stop - 1},")
        (array / self._spec.layout.shard_key(round_idx)).unlink()


def _ours(folder: Path, spec: StoreSpec, shards: _Shards) -> Contender:
    writer = StoreWriter.create(folder, spec, {})

    def prepare(round_idx: int) -> Callable[[], object]:
        rows, block = shards.rows(round_idx), shards.block(round_idx)
        return _settled(lambda: writer.add(rows, block))

    def check(round_idx: int) -> None:
        shards.check(array_folder(folder), round_idx)
        if round_idx == spec.layout.n_shards - 1:
            writer.__exit__(None, None, None)

    return Contender(OURS, prepare, check)


def _plain(folder: Path, shards: _Shards) -> Contender:
    folder.mkdir()

    def prepare(round_idx: int) -> Callable[[], object]:
        data = as_bits(shards.block(round_idx)).data
        return _settled(lambda: _write_plain(folder / f"{round_idx}", data))

    def check(round_idx: int) -> None:
        block, path = shards.block(round_idx), folder / f"{round_idx}"
        check_equal(np.fromfile(path, dtype=block.dtype).reshape(block.shape), block, str(path))
        path.unlink()

    return Contender(PLAIN, prepare, check)


def _write_plain(path: Path, data: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        if file.write(data) != data.nbytes:
            raise OSError(f"{path}: the system took only a part of one write")
        os.fsync(file.fileno())


def _zarr_python(folder: Path, spec: StoreSpec, shards: _Shards) -> Contender:
    array = open_zarr_python(make_array_folder(folder, spec))

    def write(round_idx: int) -> None:
        rows = spec.layout.rows(round_idx)
        array[rows.start : rows.stop] = shards.block(round_idx)
        with (folder / spec.layout.shard_key(round_idx)).open("rb") as file:
            os.fsync(file.fileno())

    return Contender(
        ZARR,
        lambda round_idx: _settled(lambda: write(round_idx)),
        lambda round_idx: shards.check(folder, round_idx),
    )


def _tensorstore(folder: Path, spec: StoreSpec, shards: _Shards) -> Contender:
    array = open_tensorstore(make_array_folder(folder, spec))

    def write(round_idx: int) -> None:
        rows = spec.layout.rows(round_idx)
        array[rows.start : rows.stop].write(shards.block(round_idx)).result()

    return Contender(
        TENSORSTORE,
        lambda round_idx: _settled(lambda: write(round_idx)),
        lambda round_idx: shards.check(folder, round_idx),
    )


def _settled(action: Callable[[], object]) -> Callable[[], object]:
    """The action, once nothing that others wrote waits for the disk any more."""
    os.sync()
    return action
