"""Write a store: create or resume it, collect rows into shards, commit each shard when it is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from activation_store.errors import RESTORE, CorruptStoreError, FingerprintMismatchError, InputError, StoreError
from activation_store.files.durable import (
    append_file,
    clear_folder,
    commit_file,
    fsync_folders,
    fsync_path,
    hidden_beside,
    make_folder,
    rename,
    write_tree,
)
from activation_store.files.inside import path_inside
from activation_store.files.lock import WriterLock, check_unlocked
from activation_store.format.dtypes import as_bits
from activation_store.format.journal import (
    JOURNAL,
    LOCK,
    JournalContents,
    file_hash,
    good_lines,
    header_record,
    health_record,
    parse_journal,
    shard_record,
)
from activation_store.format.spec import ARRAY, StoreSpec
from activation_store.store.documents import check_length, read_spec, require_store
from activation_store.store.integrity import Progress, damaged_files, damaged_shards
from activation_store.store.reader import ActivationStore
from activation_store.store.shards import commit_shard
from activation_store.store.skeleton import skeleton


class StoreWriter:
    """The one writer of a store. Use as a context manager: leaving it releases the lock.

    Rows may come in any order; a shard is committed when its last row is in. Memory: one shard buffer for each shard
    that is partly filled, and one more.

    Attributes
    ----------
    damage : tuple of StoreError
        What `repair` found wrong.
    changed_shards : list of int
        Damaged shards whose rewritten values differ from those first committed.
    """

    def __init__(
        self,
        path: Path,
        spec: StoreSpec,
        journal: JournalContents,
        lock: WriterLock,
        redo: frozenset[int] = frozenset(),
        damage: tuple[StoreError, ...] = (),
    ) -> None:
        self.path = path
        self.spec = spec
        self.damage = damage
        self.changed_shards: list[int] = []
        self._journal = journal
        self._lock = lock
        self._redo = set(redo)
        self._buffers: dict[int, np.ndarray] = {}
        self._filled: dict[int, np.ndarray] = {}
        self._spare: np.ndarray | None = None
        self._failed = False

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> StoreWriter:
        """Start a new store; it appears at `path` with all its metadata or not at all.

        Parameters
        ----------
        path : Path
            Where there is nothing, or an empty folder.
        spec : StoreSpec
            What the store holds.
        beside : mapping of str to ndarray [sample] or [sample, position]
            Values of the coordinates and label columns that `spec` names.

        Raises
        ------
        InputError
            Something that is not an empty folder is at `path`.
        StoreLockedError
            Another process is creating it.
        """
        draft = check_can_create(path)
        make_folder(draft / ARRAY)
        lock = WriterLock.acquire(draft / ARRAY / LOCK, path)
        with _released_on_error(lock):
            clear_folder(draft, keep=draft / ARRAY / LOCK)
            files = skeleton(spec, beside)
            header = header_record(files)
            write_tree(draft, {**files, f"{ARRAY}/{JOURNAL}": header})
            rename(draft, path)
        return cls(path, spec, parse_journal(header, str(path)), lock.moved(path / ARRAY / LOCK, path))

    @classmethod
    def resume(cls, path: Path, fingerprint: Mapping[str, Any]) -> StoreWriter:
        """Resume an existing store where its journal ends.

        Raises
        ------
        FingerprintMismatchError
            The store was started from other inputs; shows the fields that differ.
        StoreLockedError
            Another process is writing it.
        CorruptStoreError
            Its metadata or journal is damaged.
        """
        require_store(path)
        lock = WriterLock.acquire(path / ARRAY / LOCK, path)
        with _released_on_error(lock):
            spec, journal = _take_up(path, fingerprint)
            check_length(path, spec)
        return cls(path, spec, journal, lock)

    @classmethod
    def repair(
        cls,
        path: Path,
        fingerprint: Mapping[str, Any],
        beside: Mapping[str, np.ndarray],
        progress: Progress = iter,
    ) -> StoreWriter:
        """Open an existing store for repair: its damaged shards are pending, as if they were not committed.

        Damaged coordinates and labels are rewritten from `beside`, and damaged journal lines dropped, so that what
        they committed is pending, too.

        Parameters
        ----------
        path : Path
            Of the store.
        fingerprint : mapping
            Of the current inputs.
        beside : mapping of str to ndarray [sample] or [sample, position]
            As for `create`.
        progress : callable
            Wraps the shard numbers while they are checked, such as `tqdm`.

        Raises
        ------
        FingerprintMismatchError, StoreLockedError
            As `resume`.
        CorruptStoreError
            The metadata is damaged beyond what the inputs can restore.
        """
        require_store(path)
        lock = WriterLock.acquire(path / ARRAY / LOCK, path)
        with _released_on_error(lock):
            spec, journal = _take_up(path, fingerprint, drop_damaged=True)
            # What a killed repair already restored is found undamaged and not rewritten.
            fsync_folders(path)
            _check_lengths(path, spec, beside)
            damage = damaged_files(path, spec, journal)
            _restore_files(path, damage, journal, skeleton(spec, beside))
            redo = damaged_shards(path, spec, journal, progress)
        if journal.n_damaged:
            message = (
                f"{path / ARRAY / JOURNAL}: {journal.n_damaged} damaged lines dropped, what they committed is pending"
            )
            damage[JOURNAL] = CorruptStoreError(message)
        return cls(path, spec, journal, lock, frozenset(redo), (*damage.values(), *redo.values()))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A disk that failed before may fail here again: the first failure is the one to report.
        with suppress(OSError) if error is not None else nullcontext():
            self._lock.release()

    @property
    def pending_shards(self) -> list[int]:
        """Shards that are still to be written, ascending."""
        return [
            shard
            for shard in range(self.spec.layout.n_shards)
            if shard not in self._journal.shards or shard in self._redo
        ]

    @property
    def n_committed_shards(self) -> int:
        """Shards that are complete and on disk."""
        return len(self._journal.shards) - len(self._redo)

    def add(self, rows: Integer[np.ndarray, " row"], block: Shaped[np.ndarray, "row layer position feature"]) -> None:
        """Take the activations of some samples.

        Parameters
        ----------
        rows : ndarray [row]
            Sample indices, each given once.
        block : ndarray [row, layer, position, feature]
            Their activations in the store's data type.

        Raises
        ------
        InputError
            Another data type or shape, a row that the store does not have, was given before, or belongs to a committed
            shard.
        StoreError
            An earlier write failed: what is on disk is unknown until the store is opened again.
        OSError
            The disk failed; names the file.
        """
        if self._failed:
            raise StoreError(f"{self.path}: an earlier write failed, so nothing more is written; run the command again")
        if block.dtype != self.spec.numpy_dtype:
            raise InputError(f"{self.path} holds {self.spec.dtype}, the values are {block.dtype}; cast them first")
        if block.shape != (len(rows), *self.spec.shape[1:]):
            expected = [len(rows), *self.spec.shape[1:]]
            raise InputError(f"{self.path}: {len(rows)} rows need values of shape {expected}, not {list(block.shape)}")
        if len(np.unique(rows)) < len(rows):
            raise InputError(f"{self.path}: a row is given twice in {rows.tolist()[:10]}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.spec.n_samples:
            raise InputError(f"{self.path} has rows 0 to {self.spec.n_samples - 1}, not {rows.min()} to {rows.max()}")
        shards = rows // self.spec.shard_samples
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            part = block if len(chosen) == len(rows) else block[chosen]
            self._fill(shard, rows[chosen] - shard * self.spec.shard_samples, part)

    def _fill(self, shard: int, local_rows: np.ndarray, block: np.ndarray) -> None:
        if shard in self._journal.shards and shard not in self._redo:
            raise InputError(f"{self.path}: shard {shard} is committed, and shards are written once")
        n_rows = len(self.spec.layout.rows(shard))
        if shard not in self._buffers:
            if np.array_equal(local_rows, np.arange(n_rows)):
                self._commit(shard, block)
                return
            self._buffers[shard] = self._new_buffer(n_rows)
            self._filled[shard] = np.zeros(n_rows, dtype=bool)
        filled = self._filled[shard]
        if filled[local_rows].any():
            raise InputError(f"{self.path}: a row of shard {shard} is given again")
        as_bits(self._buffers[shard])[local_rows] = as_bits(block)
        filled[local_rows] = True
        if filled.all():
            del self._filled[shard]
            buffer = self._buffers.pop(shard)
            self._commit(shard, buffer)
            self._spare = buffer

    def _new_buffer(self, n_rows: int) -> np.ndarray:
        """Room for the samples of one shard [row, layer, position, feature]."""
        # The memory of the last committed shard: fresh pages cost as much as writing to them.
        buffer, self._spare = self._spare, None
        if buffer is None or len(buffer) < n_rows:
            buffer = np.empty((n_rows, *self.spec.shape[1:]), dtype=self.spec.numpy_dtype)
        return buffer[:n_rows]

    def _commit(self, shard: int, values: np.ndarray) -> None:
        # Stays set if anything below fails: a failed fsync cannot be retried.
        self._failed = True
        name = f"{ARRAY}/{self.spec.layout.shard_key(shard)}"
        path_inside(self.path, name)
        checksums = commit_shard(self.path / name, self.spec.layout, values)
        if self._journal.shards.get(shard) != checksums:
            if shard in self._redo:
                self.changed_shards.append(shard)
            self._append(shard_record(shard, checksums), shards=self._journal.shards | {shard: checksums})
        self._redo.discard(shard)
        self._failed = False

    def finish(self, health: dict[str, Any]) -> None:
        """Record findings about the complete store, unless they are already recorded.

        Raises
        ------
        OSError
            The disk failed; names the file.
        """
        if self._journal.health != health:
            self._append(health_record(health), health=health)

    def store(self) -> ActivationStore:
        """Read what is committed so far."""
        return ActivationStore(self.path, self.spec, self._journal, verify=True)

    def _append(self, line: bytes, **entries: Any) -> None:
        append_file(self.path / ARRAY / JOURNAL, line, self._journal.n_bytes)
        self._journal = replace(self._journal, n_bytes=self._journal.n_bytes + len(line), **entries)


@contextmanager
def _released_on_error(lock: WriterLock) -> Generator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            lock.release()
        raise


def check_can_create(path: Path) -> Path:
    """Folder in which a new store for `path` is prepared.

    Raises
    ------
    InputError
        Something else is at `path`, or no store can be created there.
    StoreLockedError
        Another process is creating it.
    """
    path = path.absolute()
    if (path / "zarr.json").is_file():
        require_store(path)
        check_unlocked(path / ARRAY / LOCK, path)
        raise InputError(f"{path}: another process has created a store here; run the same command again to resume it")
    if path == Path.cwd():
        raise InputError(f"{path} is the current folder; give the store a folder of its own")
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise InputError(f"{path} exists and is not a store; remove it or choose another output path")
    nearest = next(folder for folder in path.parents if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"{path} cannot be made: {nearest} is a file; choose another output path")
    draft = hidden_beside(path, "creating")
    # What is there is removed: not through a link that somebody put in its place.
    if draft.is_symlink():
        raise InputError(f"{draft} is a symbolic link where a new store is prepared; remove it")
    path_inside(draft, f"{ARRAY}/{LOCK}")
    check_unlocked(draft / ARRAY / LOCK, path)
    return draft


def is_finished(path: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a store is complete; only reads it, and raises as `StoreWriter.resume`."""
    spec, journal = read_spec(path)
    _check_fingerprint(path, dict(spec.fingerprint), dict(fingerprint))
    return bool(journal.health) and len(journal.shards) == spec.layout.n_shards


def _take_up(
    path: Path, fingerprint: Mapping[str, Any], *, drop_damaged: bool = False
) -> tuple[StoreSpec, JournalContents]:
    """Read a locked store, and make durable what a killed process may have left only in memory."""
    spec, journal = read_spec(path, drop_damaged=drop_damaged)
    _check_fingerprint(path, dict(spec.fingerprint), dict(fingerprint))
    fsync_path(path.absolute().parent)
    # Written again: after a failed fsync, another fsync of the same pages reports success for what is not on disk.
    data = (path / ARRAY / JOURNAL).read_bytes()
    if drop_damaged:
        data, _ = good_lines(data, str(path / ARRAY / JOURNAL))
    commit_file(path / ARRAY / JOURNAL, [data[: journal.n_bytes]])
    return spec, journal


def _check_lengths(path: Path, spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> None:
    """Check the number of samples against the inputs before anything of that length is rebuilt."""
    for name, values in beside.items():
        if len(values) != spec.n_samples:
            raise CorruptStoreError(
                f"{path}/{ARRAY}/zarr.json says {spec.n_samples} samples, but {name} has {len(values)}; {RESTORE}"
            )


def _restore_files(
    path: Path, damaged: Mapping[str, StoreError], journal: JournalContents, files: Mapping[str, bytes]
) -> None:
    """Rewrite damaged files, but only with the content that the journal's header lists."""
    for name, problem in damaged.items():
        if file_hash(files.get(name, b"")) != journal.files[name]:
            raise CorruptStoreError(f"{problem} (these inputs and versions do not reproduce it)")
        path_inside(path, name)
        make_folder((path / name).parent)
        commit_file(path / name, [files[name]])


def _check_fingerprint(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    # Through JSON, because the stored one came from there: tuples are lists.
    given = json.loads(json.dumps(given))
    # The model's name is only a spelling; its weights identify it.
    keys = [key for key in {**stored, **given} if key != "model"]
    differing = [key for key in keys if stored.get(key) != given.get(key)]
    if differing:
        fields = "; ".join(
            f"{key}: {_brief(stored.get(key))} in the store, {_brief(given.get(key))} now" for key in differing
        )
        error = FingerprintMismatchError(
            f"{path} was started from other inputs ({fields}); choose another output path, or remove it to start over"
        )
        error.differences = fields
        raise error


def _brief(value: Any) -> str:
    """A value for a message; hashes are shortened."""
    text = repr(value)
    return f"{text[:13]}...'" if re.fullmatch(r"'[0-9a-f]{40,}'", text) else text
