"""Write a store: create it or take it up again, collect rows into shards, commit each shard when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from activation_store.durable import fsync_folder, make_folder, write_file
from activation_store.errors import FingerprintMismatchError, InputError
from activation_store.journal import (
    JOURNAL,
    LOCK,
    JournalContents,
    acquire_lock,
    append,
    header_record,
    read_journal,
    release_lock,
    shard_record,
)
from activation_store.metadata import read_spec, skeleton
from activation_store.shards import commit_shard
from activation_store.spec import ARRAY, StoreSpec


class StoreWriter:
    """The one writer of a store. Use as a context manager: leaving it releases the lock.

    Rows may come in any order; a shard is committed when its last row is in. Memory: one shard buffer for each shard
    that has some but not all of its rows.
    """

    def __init__(self, path: Path, spec: StoreSpec, journal: JournalContents, lock: BufferedRandom) -> None:
        self.path = path
        self.spec = spec
        self._journal = journal
        self._lock = lock
        self._buffers: dict[int, np.ndarray] = {}
        self._filled: dict[int, np.ndarray] = {}

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> StoreWriter:
        """Start a new store; it appears at `path` with all its metadata or not at all.

        Raises
        ------
        InputError
            Something that is not an empty folder is at `path`.
        StoreLockedError
            Another process is creating it.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is not a store; remove it or choose another output path")
        make_folder(path.parent)
        draft = path.with_name(f".{path.name}.creating")
        (draft / ARRAY).mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(draft / ARRAY / LOCK)
        _clear_draft(draft)
        files = skeleton(spec, beside)
        for name, data in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(draft / name, [data])
        write_file(draft / ARRAY / JOURNAL, [header_record(files)])
        for folder, _, _ in os.walk(draft):
            fsync_folder(Path(folder))
        draft.replace(path)
        fsync_folder(path.parent)
        return cls(path, spec, read_journal(path / ARRAY / JOURNAL), lock)

    @classmethod
    def resume(cls, path: Path, fingerprint: dict[str, Any]) -> StoreWriter:
        """Take up an existing store where its journal ends.

        Raises
        ------
        FingerprintMismatchError
            The store was started from other inputs; shows the fields that differ.
        StoreLockedError
            Another process is writing it.
        CorruptStoreError
            Its metadata or journal is damaged.
        """
        spec, _ = read_spec(path)
        _check_fingerprint(path, dict(spec.fingerprint), fingerprint)
        lock = acquire_lock(path / ARRAY / LOCK)
        return cls(path, spec, read_journal(path / ARRAY / JOURNAL), lock)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        release_lock(self._lock)

    @property
    def pending_shards(self) -> list[int]:
        """Shards that are not committed yet, ascending."""
        return [shard for shard in range(self.spec.layout.n_shards) if shard not in self._journal.shards]

    def add(self, rows: Integer[np.ndarray, " row"], block: Shaped[np.ndarray, "row layer position feature"]) -> None:
        """Take the activations of some samples.

        Parameters
        ----------
        rows : ndarray [row]
            Sample indices, each given once.
        block : ndarray [row, layer, position, feature]
            Their activations in the store's data type.
        """
        if block.dtype != self.spec.numpy_dtype:
            raise InputError(f"{self.path} holds {self.spec.dtype}, the values are {block.dtype}; cast them first")
        shards = rows // self.spec.shard_samples
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            self._fill(shard, rows[chosen] - shard * self.spec.shard_samples, block[chosen])

    def _fill(self, shard: int, local_rows: np.ndarray, block: np.ndarray) -> None:
        if shard in self._journal.shards:
            raise InputError(f"{self.path}: shard {shard} is committed, and shards are written once")
        if shard not in self._buffers:
            _, n_layers, n_positions, n_features = self.spec.shape
            shape = (n_layers, n_positions, self.spec.shard_samples, n_features)
            self._buffers[shard] = np.full(shape, np.nan, dtype=self.spec.numpy_dtype)
            self._filled[shard] = np.zeros(len(self.spec.layout.rows(shard)), dtype=bool)
        filled = self._filled[shard]
        assert not filled[local_rows].any(), "a row was given twice"
        self._buffers[shard][:, :, local_rows] = block.transpose(1, 2, 0, 3)
        filled[local_rows] = True
        if filled.all():
            self._commit(shard)

    def _commit(self, shard: int) -> None:
        layout = self.spec.layout
        checksum = commit_shard(self.path / ARRAY / layout.shard_key(shard), layout, self._buffers.pop(shard))
        del self._filled[shard]
        line = shard_record(shard, checksum)
        append(self.path / ARRAY / JOURNAL, line, self._journal.n_bytes)
        self._journal = JournalContents(
            files=self._journal.files,
            shards=self._journal.shards | {shard: checksum},
            n_bytes=self._journal.n_bytes + len(line),
        )


def _clear_draft(draft: Path) -> None:
    """Remove what a killed creation left, all but the lock that is held."""
    for entry in [*draft.iterdir(), *(draft / ARRAY).iterdir()]:
        if entry.is_dir() and entry.name != ARRAY:
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name != LOCK:
            entry.unlink()


def _check_fingerprint(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    # Through JSON, because the stored one came from there: tuples are lists.
    given = json.loads(json.dumps(given))
    # The model's name is how it was spelt; its weights say what it is.
    keys = [key for key in {**stored, **given} if key != "model"]
    differing = [key for key in keys if stored.get(key) != given.get(key)]
    if differing:
        fields = "; ".join(f"{key}: {stored.get(key)!r} in the store, {given.get(key)!r} now" for key in differing)
        raise FingerprintMismatchError(
            f"{path} was started from other inputs ({fields}); choose another output path, or remove it to start anew"
        )
