"""Bytes that changed on the disk: every byte flipped, every file truncated to every length, or gone.

zarr-python reads the same damaged stores for comparison.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from activation_store.errors import StoreError
from activation_store.files.storage import Location
from activation_store.format.spec import ARRAY
from activation_store.store.reader import ActivationStore
from benchmarks.faults.aftermath import difference
from benchmarks.faults.counts import Counts
from benchmarks.faults.disk import Tree
from benchmarks.faults.job import STORE, Job, same_bits, scratch, tree, write_tree
from benchmarks.faults.scenarios import FINISHED_PATH

MASKS = (0x01, 0x80, 0xFF)


@dataclass(frozen=True)
class Damage:
    """One file as it is found.

    Parameters
    ----------
    path : str
        Below the root.
    what : str
        Said in messages.
    content : bytes, optional
        None if the file is gone.
    """

    path: str
    what: str
    content: bytes | None


def flips(job: Job, path: str, masks: Iterable[int], every: int = 1) -> Iterator[Damage]:
    """Every byte of a file flipped in turn, with each mask."""
    whole = job.reference[path] or b""
    for mask in masks:
        for offset in range(0, len(whole), every):
            content = bytearray(whole)
            content[offset] ^= mask
            yield Damage(path, f"{path}: byte {offset} ^ {mask:#04x}", bytes(content))


def lengths(job: Job, path: str, every: int = 1) -> Iterator[Damage]:
    """A file cut off at every length, a byte longer, and gone."""
    whole = job.reference[path] or b""
    for length in range(0, len(whole), every):
        yield Damage(path, f"{path}: cut off at {length} of {len(whole)}", whole[:length])
    yield Damage(path, f"{path}: a byte longer", whole + b"\0")
    yield Damage(path, f"{path}: gone", None)


def files(job: Job) -> list[str]:
    """Every file of the finished store."""
    return [path for path, content in job.reference.items() if content is not None]


def damaged(job: Job, damages: Iterable[Damage], *, plain: bool) -> Counts:
    """Read the store with each damage.

    Parameters
    ----------
    job : Job
        That wrote it.
    damages : iterable of Damage
        One at a time.
    plain : bool
        Read it with zarr-python alone as well.
    """
    counts = Counts()
    with scratch() as root:
        write_tree(root, job.reference)
        plain_store = PlainStore(job.reference)
        for damage in damages:
            _set(root / damage.path, damage.content)
            _judge(counts, job, root, damage)
            if plain:
                _judge_plain(counts, job, plain_store.damaged(damage))
            _set(root / damage.path, job.reference[damage.path])
    return counts


def _set(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def _judge(counts: Counts, job: Job, root: Path, damage: Damage) -> None:
    counts.cases += 1
    counts.fired += 1
    outcome = read_everything(job, root / STORE)
    _count(counts, outcome)
    counts.expect(outcome != "wrong", f"{damage.what}: read as other values")
    noticed = is_reported(root / STORE)
    counts.unnoticed += not noticed
    counts.expect(noticed or harmless(damage), f"{damage.what}: verify finds nothing")


def harmless(damage: Damage) -> bool:
    """Whether a damage takes nothing from the store, so that `verify` may pass over it.

    The lock file holds nothing. Without the last file of the journal the store is one that was killed before it wrote
    that: the records hold the same.
    """
    return damage.path.endswith("/writer.lock") or (damage.path == FINISHED_PATH and damage.content is None)


def is_reported(path: Location) -> bool:
    """Whether opening the store or `verify` says that something is wrong."""
    try:
        return bool(ActivationStore.open(path).verify())
    except StoreError:
        return True


def read_everything(job: Job, path: Location) -> str:
    """Read all shards, cells, coordinates and labels: "right", "refused" or "wrong".

    What can be read must be right even if something else cannot: one wrong value makes the whole wrong.
    """
    try:
        store = ActivationStore.open(path)
    except StoreError:
        return "refused"
    return _verdict([_attempt(read, expected) for read, expected in _reads(job, store)])


def _reads(job: Job, store: ActivationStore) -> Iterator[tuple[Callable[[], np.ndarray], np.ndarray]]:
    yield lambda: np.array(store.shape), np.array(job.spec.shape)
    for shard in range(job.n_shards):
        rows = job.spec.layout.rows(shard)
        yield lambda rows=rows: store[rows.start : rows.stop], job.values[rows.start : rows.stop]
    for layer_idx, position_idx in np.ndindex(job.spec.shape[1:3]):
        layer, position = job.spec.layers[layer_idx], job.spec.positions[position_idx]
        expected = job.values[:, layer_idx, position_idx]
        yield partial(store.cell, layer, position), expected
    for name, expected in coordinates(job).items():
        if name in job.spec.label_columns:
            yield partial(_label, store, name), expected
        else:
            yield partial(store.coordinate, name), expected


def coordinates(job: Job) -> dict[str, np.ndarray]:
    """Every array next to the activations."""
    axes = {
        "sample": np.arange(job.spec.n_samples),
        "layer": np.array(job.spec.layers, dtype=np.int64),
        "position": np.array(job.spec.positions, dtype=np.int64),
    }
    return {**axes, **job.beside}


def _attempt(read: Callable[[], np.ndarray], expected: np.ndarray) -> str:
    try:
        found = read()
    except StoreError:
        return "refused"
    return "right" if same_bits(found, expected) else "wrong"


def _verdict(outcomes: Iterable[str]) -> str:
    return next((kind for kind in ("wrong", "refused") if kind in outcomes), "right")


def _count(counts: Counts, outcome: str, prefix: str = "") -> None:
    name = prefix + outcome
    setattr(counts, name, getattr(counts, name) + 1)


class PlainStore:
    """The store's files in memory, for zarr-python: thousands of reads from files would take minutes."""

    def __init__(self, content: Tree) -> None:
        self._files: dict[str, Buffer] = {
            path.removeprefix(f"{STORE}/"): Buffer.from_bytes(data)
            for path, data in content.items()
            if data is not None
        }

    def damaged(self, damage: Damage) -> Mapping[str, Buffer]:
        """The files with one of them damaged."""
        name = damage.path.removeprefix(f"{STORE}/")
        if damage.content is None:
            return {path: data for path, data in self._files.items() if path != name}
        return {**self._files, name: Buffer.from_bytes(damage.content)}


def _judge_plain(counts: Counts, job: Job, content: Mapping[str, Buffer]) -> None:
    arrays = {ARRAY: job.values, **coordinates(job)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            group = zarr.open_group(MemoryStore(dict(content)), mode="r")
        except Exception:
            # zarr-python has no error of its own for damage: any that it raises counts for it.
            outcomes = ["refused"]
        else:
            outcomes = [_attempt_plain(group, name, expected) for name, expected in arrays.items()]
    _count(counts, _verdict(outcomes), "plain_")


def _label(store: ActivationStore, name: str) -> np.ndarray:
    return store.labels[name].to_numpy()


def _attempt_plain(group: zarr.Group, name: str, expected: np.ndarray) -> str:
    try:
        found = np.asarray(cast("zarr.Array[Any]", group[name])[...])
    except Exception:
        return "refused"
    return "right" if same_bits(found, expected) else "wrong"


def mended(job: Job, damages: Iterable[Damage]) -> Counts:
    """Repair the store after each damage: it is as it was, byte for byte, or it is said why not."""
    counts = Counts()
    for damage in damages:
        start = {path: content for path, content in job.reference.items() if path != damage.path}
        if damage.content is not None:
            start[damage.path] = damage.content
        counts += _mended_once(replace(job, start=start, repairing=True), job.reference, damage)
    return counts


def _mended_once(job: Job, expected: Tree, damage: Damage) -> Counts:
    counts = Counts(cases=1, fired=1)
    with job.begun() as root:
        try:
            job.run(root)
        except StoreError:
            counts.refused += 1
            counts.expect(not must_mend(damage.path), f"{damage.what}: repair refused")
            return counts
        found = tree(root)
    counts.reruns += 1
    counts.identical += found == expected
    counts.expect(found == expected, f"{damage.what}: after repair other than it was: {difference(found, expected)}")
    return counts


def must_mend(path: str) -> bool:
    """Whether damage to this file can always be repaired: not if it defines the store."""
    return path not in (f"{STORE}/zarr.json", f"{STORE}/{ARRAY}/zarr.json")
