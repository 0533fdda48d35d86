"""The work that is interrupted: create a small store or take it up again, and fill it. And what is right to read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from activation_store.errors import StoreError
from activation_store.files.storage import Location
from activation_store.format.spec import StoreSpec
from activation_store.store.documents import is_store
from activation_store.store.reader import ActivationStore
from activation_store.store.skeleton import skeleton
from activation_store.store.writer import StoreWriter
from benchmarks.faults.counts import Counts
from benchmarks.faults.disk import Tree

# The folder above the store is the job's to make, too.
STORE = "runs/s.zarr"
HEALTH = {"constant_cells": [], "zero_cells": [], "repeated_prompts": None}


def ignore(shard: int) -> None:
    """Take no note of an acknowledgement."""


def store_at(root: Location) -> Location:
    """The store below a folder or an address."""
    return root / STORE if isinstance(root, Path) else f"{root}/{STORE}"


@dataclass(frozen=True)
class Job:
    """An extraction without a model: known values, written shard by shard.

    Parameters
    ----------
    spec : StoreSpec
        Of the store.
    start : Tree
        What is there before; nothing by default.
    repairing : bool
        Take an existing store up with `StoreWriter.repair`.
    seed : int
        Of the values; of labels, too.
    """

    spec: StoreSpec
    start: Tree = field(default_factory=dict)
    repairing: bool = False
    seed: int = 0

    @cached_property
    def values(self) -> np.ndarray:
        """[sample, layer, position, feature], every value another one."""
        return np.random.default_rng(self.seed).standard_normal(self.spec.shape).astype(self.spec.numpy_dtype)

    @cached_property
    def beside(self) -> dict[str, np.ndarray]:
        """Coordinates and labels."""
        n_samples = self.spec.n_samples
        everything = {
            "n_tokens": np.arange(5, 5 + n_samples, dtype=np.int32),
            "question": np.array([f"é{row}" for row in range(n_samples)], dtype=object),
            "success_rate": np.linspace(0, 1, n_samples) + self.seed,
        }
        return {name: everything[name] for name in (*self.spec.coordinates, *self.spec.label_columns)}

    @cached_property
    def skeleton(self) -> dict[str, bytes]:
        """Files of the store but its shards."""
        return skeleton(self.spec, self.beside)

    @property
    def n_shards(self) -> int:
        return self.spec.layout.n_shards

    def run(self, root: Location, acknowledge: Callable[[int], None] = ignore) -> None:
        """Do the job below `root`, or what is left of it.

        Parameters
        ----------
        root : Path or str
            Folder or address of everything.
        acknowledge : callable
            Told every shard that can be relied on from then on: those that a resumed writer finds committed, and each
            when `add` has returned.
        """
        # The files are a function of the inputs; that zarr-python encodes them anew each time is no part of the test.
        known = mock.patch("activation_store.store.writer.skeleton", return_value=self.skeleton)
        with known, self.writer(root) as writer:
            pending = writer.pending_shards
            for shard in sorted(set(range(self.n_shards)) - set(pending)):
                acknowledge(shard)
            for shard in pending:
                for rows in np.array_split(np.array(self.spec.layout.rows(shard))[::-1], 2):
                    writer.add(rows, self.values[rows])
                acknowledge(shard)
            writer.finish(HEALTH)

    def writer(self, root: Location) -> StoreWriter:
        """Writer of the store below `root`, created or taken up."""
        path = store_at(root)
        if not is_store(path):
            return StoreWriter.create(path, self.spec, self.beside)
        if self.repairing:
            return StoreWriter.repair(path, self.spec.fingerprint, self.beside)
        return StoreWriter.resume(path, dict(self.spec.fingerprint))

    @cached_property
    def reference(self) -> Tree:
        """What an uninterrupted run leaves."""
        with self.begun() as root:
            self.run(root)
            return tree(root)

    @contextmanager
    def begun(self, *, real_disk: bool = False) -> Generator[Any]:
        """Folder in which the job can be run."""
        with scratch(real_disk=real_disk) as root:
            write_tree(root, self.start)
            yield root

    def tree(self, root: Location) -> Tree:
        """Everything below `root`."""
        assert isinstance(root, Path)
        return tree(root)

    def look(self, root: Location, acknowledged: Collection[int], what: str) -> Counts:
        """Read every shard: those that were acknowledged must be there, and what can be read must be right."""
        counts = Counts(cases=1)
        try:
            store = ActivationStore.open(store_at(root))
        except StoreError:
            store = None
        for shard in range(self.n_shards):
            rows = self.spec.layout.rows(shard)
            found = None if store is None else attempted(lambda rows=rows: store[rows.start : rows.stop])
            self._judge(counts, shard, found, shard in acknowledged, what)
        if self.repairing and acknowledged:
            self._judge_mended(counts, root, what)
        return counts

    def _judge_mended(self, counts: Counts, root: Location, what: str) -> None:
        """A repair restores the files beside the shards before it acknowledges any."""
        found = self.tree(root)
        for name, content in self.skeleton.items():
            whole = found.get(f"{STORE}/{name}") == content
            counts.lost += not whole
            counts.expect(whole, f"{what}: {name} was mended and is damaged again")

    def _judge(self, counts: Counts, shard: int, found: np.ndarray | None, acknowledged: bool, what: str) -> None:
        rows = self.spec.layout.rows(shard)
        if found is None:
            counts.refused += 1
            counts.lost += acknowledged
            counts.expect(not acknowledged, f"{what}: shard {shard} was acknowledged and is lost")
        elif same_bits(found, self.values[rows.start : rows.stop]):
            counts.right += 1
        else:
            counts.wrong += 1
            counts.expect(False, f"{what}: shard {shard} is read as other values")


def small_job(dtype: str = "float32") -> Job:
    """Three shards of two layers and two positions, the last of them not full."""
    spec = StoreSpec(
        n_samples=5,
        layers=(0, 3),
        positions=(-2, -1),
        n_features=3,
        dtype=dtype,
        shard_samples=2,
        coordinates=("question",),
        label_columns=("success_rate",),
        fingerprint={"model": "m", "dataset": "d"},
        provenance={},
    )
    return Job(spec)


def large_job() -> Job:
    """A job that takes long enough to be killed from outside: 12 shards of 256 KiB."""
    small = small_job().spec
    return Job(replace(small, n_samples=95, n_features=2048, shard_samples=8))


def attempted(read: Callable[[], np.ndarray]) -> np.ndarray | None:
    """What is read, or None where that is refused with an error of ours. Any other error is not caught."""
    try:
        return read()
    except StoreError:
        return None


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether shape, type and every bit agree."""
    if found.dtype == object or expected.dtype == object:
        return found.shape == expected.shape and found.tolist() == expected.tolist()
    return (
        found.shape == expected.shape
        and found.dtype == expected.dtype
        and np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    )


def tree(root: Path) -> Tree:
    """Everything below a folder: path -> content, None for a folder."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def write_tree(root: Path, content: Tree) -> None:
    """Make a folder hold just this."""
    for path in root.iterdir():
        shutil.rmtree(path)
    for name, data in content.items():
        path = root / name
        if data is None:
            path.mkdir(exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@contextmanager
def scratch(*, real_disk: bool = False) -> Generator[Path]:
    """Empty folder, in memory unless the disk is the point."""
    memory = Path("/dev/shm")
    base = None if real_disk or not memory.is_dir() else memory
    with tempfile.TemporaryDirectory(prefix="probesweep-faults-", dir=base) as folder:
        yield Path(folder)
