"""Write a store: create or resume it, collect rows into shards, commit each shard when it is complete."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from activation_store.errors import RESTORE, CorruptStoreError, FingerprintMismatchError, InputError, StoreError
from activation_store.files.storage import Location, Lock, Storage, open_storage
from activation_store.format.dtypes import as_bits
from activation_store.format.journal import LOCK, JournalContents, file_hash, header_record, parse_journal
from activation_store.format.spec import ARRAY, StoreSpec
from activation_store.store.documents import check_length, read_spec, require_store
from activation_store.store.integrity import Progress, damaged_files, damaged_records, damaged_shards
from activation_store.store.journals import journal_of
from activation_store.store.reader import ActivationStore
from activation_store.store.shards import shard_checksums, write_shard
from activation_store.store.skeleton import skeleton

LOCK_PATH = f"{ARRAY}/{LOCK}"


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
        storage: Storage,
        spec: StoreSpec,
        journal: JournalContents,
        lock: Lock,
        damage: tuple[StoreError, ...] = (),
    ) -> None:
        self.spec = spec
        self.damage = damage
        self.changed_shards: list[int] = []
        self._storage = storage
        self._contents = journal
        self._journal = journal_of(storage, spec.version)
        self._lock = lock
        self._buffers: dict[int, np.ndarray] = {}
        self._filled: dict[int, np.ndarray] = {}
        self._spare: np.ndarray | None = None
        self._failed = False

    @classmethod
    def create(cls, location: Location, spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> StoreWriter:
        """Start a new store; it appears with all its metadata or not at all.

        Parameters
        ----------
        location : Path or str
            Where there is nothing, or an empty folder.
        spec : StoreSpec
            What the store holds.
        beside : mapping of str to ndarray [sample] or [sample, position]
            Values of the coordinates and label columns that `spec` names.

        Raises
        ------
        InputError
            Something that is not an empty folder is there.
        StoreLockedError
            Another process is creating it.
        """
        storage = open_storage(location)
        check_can_create(storage)
        files, first = skeleton(spec, beside), journal_of(storage, spec.version).first
        header = header_record(files)
        lock = storage.establish({**files, first: header}, last=first, lock=LOCK_PATH)
        return cls(storage, spec, parse_journal(header, str(location)), lock)

    @classmethod
    def resume(cls, location: Location, fingerprint: Mapping[str, Any]) -> StoreWriter:
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
        storage = open_storage(location)
        require_store(storage)
        lock = storage.acquire(LOCK_PATH)
        with released_on_error(lock):
            spec, contents = _take_up(storage, fingerprint)
            check_length(storage, spec)
        return cls(storage, spec, contents, lock)

    @classmethod
    def repair(
        cls,
        location: Location,
        fingerprint: Mapping[str, Any],
        beside: Mapping[str, np.ndarray],
        progress: Progress = iter,
    ) -> StoreWriter:
        """Open an existing store for repair: its damaged shards are pending, as if they were not committed.

        Damaged coordinates and labels are rewritten from `beside`, and damaged records of the journal dropped, so that
        what they committed is pending, too.

        Parameters
        ----------
        location : Path or str
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
        storage = open_storage(location)
        require_store(storage)
        lock = storage.acquire(LOCK_PATH)
        with released_on_error(lock):
            spec, contents = _take_up(storage, fingerprint, drop_damaged=True)
            # What a killed repair already restored is found undamaged and not rewritten.
            storage.settle_folders()
            _check_lengths(storage, spec, beside)
            files = damaged_files(storage, spec, contents)
            lock.check()
            _restore_files(storage, files, contents, skeleton(spec, beside))
            records = damaged_records(storage, spec, contents)
            shards = damaged_shards(storage, spec, contents, progress)
            damage = [*files.values(), *records.values(), *_dropped(storage, contents), *shards.values()]
            # Every byte was read meanwhile.
            lock.check()
            contents = journal_of(storage, spec.version).retract(contents, shards)
        return cls(storage, spec, contents, lock, tuple(damage))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A disk that failed before may fail here again: the first failure is the one to report.
        with suppress(OSError) if error is not None else nullcontext():
            self._lock.release()

    @property
    def path(self) -> Location:
        """Where the store is."""
        return self._storage.location

    @property
    def storage(self) -> Storage:
        """Its files."""
        return self._storage

    @property
    def pending_shards(self) -> list[int]:
        """Shards that are still to be written, ascending."""
        return [shard for shard in range(self.spec.layout.n_shards) if shard not in self._contents.shards]

    @property
    def n_committed_shards(self) -> int:
        """Shards that are complete and on disk."""
        return len(self._contents.shards)

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
        if shard in self._contents.shards:
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
        layout = self.spec.layout
        if self._journal.recorded(shard, layout) is None:
            checksums = write_shard(self._storage, shard_path(self.spec, shard), layout, values, self._lock)
        else:
            # By another process: its values stay.
            checksums = b"".join(shard_checksums(layout, values))
        self._lock.check()
        self._contents = self._journal.commit(self._contents, shard, checksums)
        self.note(shard, checksums)
        self._failed = False

    def checksums(self, shard: int) -> bytes:
        """crc32c of each cell of a shard that this writer has committed, 4 bytes each, in the order of the layout."""
        return self._contents.shards[shard]

    def note(self, shard: int, checksums: bytes) -> None:
        """Take notice of a shard that another process has committed (see `activation_store.store.claims`)."""
        self._contents = replace(self._contents, shards=self._contents.shards | {shard: checksums})
        if checksums != self._contents.before.get(shard, checksums):
            self.changed_shards.append(shard)

    def finish(self, health: dict[str, Any]) -> None:
        """Record findings about the complete store, unless they are already recorded.

        Raises
        ------
        StoreLockedError
            Another writer has taken over.
        OSError
            The disk failed; names the file.
        """
        self._lock.check()
        self._contents = self._journal.finish(self._contents, health)

    def store(self) -> ActivationStore:
        """Read what is committed so far."""
        return ActivationStore(self._storage, self.spec, self._contents, verify=True)


@contextmanager
def released_on_error(lock: Lock) -> Generator[None]:
    """Let go of a lock if the block fails; that is the failure to report."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            lock.release()
        raise


def shard_path(spec: StoreSpec, shard: int) -> str:
    """Path of a shard's file below the store."""
    return f"{ARRAY}/{spec.layout.shard_key(shard)}"


def check_can_create(storage: Storage) -> None:
    """Refuse a place where no new store can be written.

    Raises
    ------
    InputError
        Something else is there, or no store can be created there.
    StoreLockedError
        Another process is creating it.
    """
    if storage.n_bytes("zarr.json") is not None and storage.maps:
        require_store(storage)
        storage.check_unlocked(LOCK_PATH)
        raise InputError(
            f"{storage.location}: another process has created a store here; run the same command again to resume it"
        )
    storage.check_vacant()
    storage.check_unlocked(LOCK_PATH)


def is_finished(location: Location, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a store is complete; only reads it, and raises as `StoreWriter.resume`."""
    storage = open_storage(location)
    spec, contents = read_spec(storage)
    _check_fingerprint(storage, dict(spec.fingerprint), dict(fingerprint))
    return bool(contents.health) and len(contents.shards) == spec.layout.n_shards


def _take_up(
    storage: Storage, fingerprint: Mapping[str, Any], *, drop_damaged: bool = False
) -> tuple[StoreSpec, JournalContents]:
    """Read a locked store, and make durable what a killed process may have left only in memory."""
    spec, contents = read_spec(storage, drop_damaged=drop_damaged)
    _check_fingerprint(storage, dict(spec.fingerprint), dict(fingerprint))
    journal_of(storage, spec.version).take_up(contents)
    return spec, contents


def _dropped(storage: Storage, contents: JournalContents) -> list[StoreError]:
    """What is said of damaged records."""
    return [
        CorruptStoreError(
            f"{storage.where(name)}: {count} damaged record{'s' * (count > 1)} dropped; what was committed there is "
            "pending"
        )
        for name, count in Counter(contents.damaged).items()
    ]


def _check_lengths(storage: Storage, spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> None:
    """Check the number of samples against the inputs before anything of that length is rebuilt."""
    for name, values in beside.items():
        if len(values) != spec.n_samples:
            raise CorruptStoreError(
                f"{storage.where(f'{ARRAY}/zarr.json')} says {spec.n_samples} samples, but {name} has {len(values)}; "
                f"{RESTORE}"
            )


def _restore_files(
    storage: Storage, damaged: Mapping[str, StoreError], contents: JournalContents, files: Mapping[str, bytes]
) -> None:
    """Rewrite damaged files, but only with the content that the journal's header lists."""
    for name, problem in damaged.items():
        if file_hash(files.get(name, b"")) != contents.files[name]:
            raise CorruptStoreError(f"{problem} (these inputs and versions do not reproduce it)")
        storage.replace(name, [files[name]])


def _check_fingerprint(storage: Storage, stored: dict[str, Any], given: dict[str, Any]) -> None:
    # Through JSON, because the stored one came from there: tuples are lists.
    given = json.loads(json.dumps(given))
    # The model's name is only a spelling; its weights identify it.
    keys = [key for key in {**stored, **given} if key != "model"]
    differing = [key for key in keys if stored.get(key) != given.get(key)]
    if differing:
        fields = "; ".join(
            f"{key}: {_brief(stored.get(key))} in the store, {_brief(given.get(key))} now" for key in differing
        )
        pin = ", or name the revision in the store after an @" if "dataset_revisions" in differing else ""
        error = FingerprintMismatchError(
            f"{storage.location} was started from other inputs ({fields}); choose another output path, or remove it to "
            f"start over{pin}"
        )
        error.differences = fields
        raise error


def _brief(value: Any) -> str:
    """A value for a message; hashes are shortened."""
    text = repr(value)
    return f"{text[:13]}...'" if re.fullmatch(r"'[0-9a-f]{40,}'", text) else text
