"""Reads of cells and of samples, with all files in the page cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from activation_store.format.dtypes import as_bits
from activation_store.format.spec import StoreSpec
from activation_store.store.reader import ActivationStore
from activation_store.store.writer import StoreWriter
from benchmarks.shared.measure import Contender, Table, Target, Timings, check_equal, interleave
from benchmarks.store.data import Size, array_folder, cells_of, open_tensorstore, open_zarr_python

UNVERIFIED, FIRST_TOUCH, VERIFIED = "ours, unverified", "ours, first touch verified", "ours, verified before"
ZARR, ZARR_SHARDS, TENSORSTORE = "zarr-python", "zarr-python, shard by shard", "TensorStore"
RUNS, RUNS_MAPPED, SAMPLE_MAJOR = "memmap, cell-major", "memmap, cell-major, mapped before", "memmap, sample-major"

Key = tuple[int, int]  # layer index and position index of a cell, or first sample and the one after the last
Keys = Sequence[Key]


@dataclass(frozen=True)
class Files:
    """The same activations in three forms, and the values that went in."""

    spec: StoreSpec
    values: np.ndarray
    store: Path
    cell_major: tuple[Path, ...]
    sample_major: Path

    @classmethod
    def write(cls, folder: Path, spec: StoreSpec, values: np.ndarray) -> Files:
        """Write our store, a .npy [layer, position, sample, feature] per shard, and one .npy as `values` lies."""
        files = cls(
            spec=spec,
            values=values,
            store=folder / "store.zarr",
            cell_major=tuple(folder / f"cell_major_{shard}.npy" for shard in range(spec.layout.n_shards)),
            sample_major=folder / "sample_major.npy",
        )
        with StoreWriter.create(files.store, spec, {}) as writer:
            for shard, path in enumerate(files.cell_major):
                rows = np.asarray(spec.layout.rows(shard))
                writer.add(rows, values[rows])
                np.save(path, as_bits(cells_of(values[rows])))
        np.save(files.sample_major, as_bits(values))
        return files

    @property
    def cell_keys(self) -> list[Key]:
        """All cells as they lie on disk."""
        return list(np.ndindex(self.spec.shape[1:3]))

    @property
    def shard_keys(self) -> list[Key]:
        """First sample of each shard and the one after its last."""
        spans = map(self.spec.layout.rows, range(self.spec.layout.n_shards))
        return [(rows.start, rows.stop) for rows in spans]

    def expected_cell(self, layer_idx: int, position_idx: int) -> np.ndarray:
        return np.ascontiguousarray(self.values[:, layer_idx, position_idx])

    def expected_samples(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]

    def map_cell_major(self) -> list[np.ndarray]:
        """A view [layer, position, sample, feature] of each shard."""
        return [np.load(path, mmap_mode="r").view(self.spec.numpy_dtype) for path in self.cell_major]

    def map_sample_major(self) -> np.ndarray:
        """View [sample, layer, position, feature]."""
        return np.load(self.sample_major, mmap_mode="r").view(self.spec.numpy_dtype)


@dataclass(frozen=True)
class Reader:
    """A contender that reads.

    Parameters
    ----------
    name : str
        As the tables have it.
    open : callable
        Opens the files, untimed, and returns what is timed: a function from keys to a new array for each of them.
    keys : callable
        Takes the round, returns what is read in it.
    expected : callable
        Takes a key, returns the values.
    """

    name: str
    open: Callable[[], Callable[[Keys], Iterable[np.ndarray]]]
    keys: Callable[[int], Keys]
    expected: Callable[[int, int], np.ndarray]

    def contender(self) -> Contender:
        def prepare(round_idx: int) -> Callable[[], object]:
            read, keys = self.open(), self.keys(round_idx)
            return lambda: _exhaust(read(keys))

        return Contender(self.name, prepare, self.check)

    def check(self, round_idx: int) -> None:
        """Compare everything that the warm-up round read, read again; later rounds read the same way."""
        if round_idx > 0:
            return
        keys = self.keys(round_idx)
        for key, found in zip(keys, self.open()(keys), strict=True):
            check_equal(found, self.expected(*key), f"{self.name}: {key}")


def _exhaust(arrays: Iterable[np.ndarray]) -> None:
    for _ in arrays:
        pass


def measure_cells(files: Files, size: Size) -> Timings:
    """Time all cells, in an order drawn again for every round."""
    verified = ActivationStore.open(files.store)
    mapped = files.map_cell_major()
    openers = {
        UNVERIFIED: lambda: _each(_our_cell(ActivationStore.open(files.store, verify=False))),
        FIRST_TOUCH: lambda: _each(_our_cell(ActivationStore.open(files.store))),
        VERIFIED: lambda: _each(_our_cell(verified)),
        ZARR: lambda: _zarr_cells(files),
        TENSORSTORE: lambda: _tensorstore_cells(files),
        RUNS: lambda: _each(_copied_run(files.map_cell_major())),
        RUNS_MAPPED: lambda: _each(_copied_run(mapped)),
        SAMPLE_MAJOR: lambda: _each(_copied_rows(files.map_sample_major())),
    }

    def shuffled(round_idx: int) -> Keys:
        order = np.random.default_rng(round_idx).permutation(len(files.cell_keys))
        return [files.cell_keys[index] for index in order]

    readers = [Reader(name, opener, shuffled, files.expected_cell) for name, opener in openers.items()]
    return _interleave(readers, size.n_rounds, files.values.nbytes)


def measure_sequence(files: Files, size: Size) -> Timings:
    """Time the whole store, read in the order of its cells; by zarr-python also shard by shard, its own best way."""

    def cells(_: int) -> Keys:
        return files.cell_keys

    readers = [
        Reader(UNVERIFIED, lambda: _our_sequence(files, verify=False), cells, files.expected_cell),
        Reader(FIRST_TOUCH, lambda: _our_sequence(files, verify=True), cells, files.expected_cell),
        Reader(ZARR, lambda: _zarr_cells(files), cells, files.expected_cell),
        Reader(ZARR_SHARDS, lambda: _zarr_samples(files), lambda _: files.shard_keys, files.expected_samples),
    ]
    return _interleave(readers, size.n_slow_rounds, files.values.nbytes)


def measure_slices(files: Files, size: Size) -> Timings:
    """Time runs of consecutive samples, others in every round."""

    def slices(round_idx: int) -> Keys:
        last = files.spec.n_samples - size.slice_samples
        starts = np.random.default_rng(round_idx).integers(0, last, size.n_slices, endpoint=True)
        return [(start, start + size.slice_samples) for start in starts.tolist()]

    openers = {
        UNVERIFIED: lambda: _our_samples(files, verify=False),
        FIRST_TOUCH: lambda: _our_samples(files, verify=True),
        ZARR: lambda: _zarr_samples(files),
        SAMPLE_MAJOR: lambda: _copied_samples(files.map_sample_major()),
    }
    readers = [Reader(name, opener, slices, files.expected_samples) for name, opener in openers.items()]
    return _interleave(readers, size.n_slow_rounds, files.values[0].nbytes * size.slice_samples * size.n_slices)


def _interleave(readers: Sequence[Reader], n_rounds: int, n_bytes: int) -> Timings:
    return interleave([reader.contender() for reader in readers], n_rounds=n_rounds, n_bytes=n_bytes)


def _each(read: Callable[[int, int], np.ndarray]) -> Callable[[Keys], Iterable[np.ndarray]]:
    return lambda keys: (read(*key) for key in keys)


def _our_cell(store: ActivationStore) -> Callable[[int, int], np.ndarray]:
    return lambda layer_idx, position_idx: store.cell(store.layers[layer_idx], store.positions[position_idx])


def _our_sequence(files: Files, *, verify: bool) -> Callable[[Keys], Iterable[np.ndarray]]:
    store = ActivationStore.open(files.store, verify=verify)
    return lambda _: (values for _, values in store.cells())


def _our_samples(files: Files, *, verify: bool) -> Callable[[Keys], Iterable[np.ndarray]]:
    store = ActivationStore.open(files.store, verify=verify)
    return _each(lambda start, stop: store[start:stop])


def _zarr_cells(files: Files) -> Callable[[Keys], Iterable[np.ndarray]]:
    array = open_zarr_python(array_folder(files.store))
    return _each(lambda layer_idx, position_idx: np.asarray(array[:, layer_idx, position_idx]))


def _zarr_samples(files: Files) -> Callable[[Keys], Iterable[np.ndarray]]:
    array = open_zarr_python(array_folder(files.store))
    return _each(lambda start, stop: np.asarray(array[start:stop]))


def _tensorstore_cells(files: Files) -> Callable[[Keys], Iterable[np.ndarray]]:
    array = open_tensorstore(array_folder(files.store))
    return _each(lambda layer_idx, position_idx: array[:, layer_idx, position_idx].read().result())


def _copied_run(shards: Sequence[np.ndarray]) -> Callable[[int, int], np.ndarray]:
    return lambda layer_idx, position_idx: np.concatenate([shard[layer_idx, position_idx] for shard in shards])


def _copied_rows(values: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda layer_idx, position_idx: np.array(values[:, layer_idx, position_idx])


def _copied_samples(values: np.ndarray) -> Callable[[Keys], Iterable[np.ndarray]]:
    return _each(lambda start, stop: np.array(values[start:stop]))


def cell_table(timings: Timings, dtype: str, spec: StoreSpec) -> Table:
    n_cells = spec.shape[1] * spec.shape[2]
    title = f"{dtype}: read of {n_cells} cells of {timings.n_bytes / n_cells / 1e6:.1f} MB in random order, cache warm"
    return timings.table(title, {"x zarr-python": ZARR, "x cell-major memmap": RUNS})


def sequence_table(timings: Timings, dtype: str) -> Table:
    title = f"{dtype}: sequential read of all {timings.n_bytes / 1e6:.0f} MB, .cells()"
    return timings.table(title, {"x zarr-python": ZARR, "x zarr-python by shards": ZARR_SHARDS})


def slice_table(timings: Timings, dtype: str, size: Size) -> Table:
    title = f"{dtype}: {size.n_slices} slices of {size.slice_samples} samples, store[a:b]"
    return timings.table(title, {"x zarr-python": ZARR, "x sample-major memmap": SAMPLE_MAJOR})


def read_targets(timings: Timings, dtype: str) -> list[Target]:
    return [
        Target(f"{dtype}: cells, ours unverified / zarr-python", 8.0, timings.ratio(UNVERIFIED, ZARR)),
        Target(f"{dtype}: cells, ours first touch / zarr-python", 4.0, timings.ratio(FIRST_TOUCH, ZARR)),
        Target(f"{dtype}: cells, ours unverified / cell-major memmap", 0.8, timings.ratio(UNVERIFIED, RUNS)),
    ]
