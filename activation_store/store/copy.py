"""Copy a store to another place, checked on the way and where it was written; a copy that broke off is taken up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from activation_store.errors import CorruptStoreError, InputError, StoreError
from activation_store.files.storage import Location, Lock, Storage, open_storage
from activation_store.format.journal import JournalContents, parse_journal
from activation_store.format.spec import StoreSpec
from activation_store.store.bounded import MAX_FILE_NBYTES
from activation_store.store.documents import checked_bytes, is_store, read_spec
from activation_store.store.integrity import Progress, damaged_files, look_at_shard
from activation_store.store.journals import JOURNAL_PATH, journal_of
from activation_store.store.shards import checked_pieces
from activation_store.store.writer import LOCK_PATH, check_can_create, released_on_error, shard_path
from probesweep_errors import naming


def copy_store(
    source: Storage, spec: StoreSpec, journal: JournalContents, target: Location, progress: Progress = iter
) -> None:
    """Copy what a journal says is committed. Until all of it is there, the target is an unfinished store.

    What was written is read back, from a disk as from an object store: no answer of a server says the same for all of
    them. Not every one is sent a checksum, and an ETag is not always one.

    Parameters
    ----------
    source, spec, journal
        Of the store; it may be written meanwhile.
    target : Path or str
        Where there is nothing, an empty folder, or an earlier copy of the same store.
    progress : callable
        Wraps the shard numbers while they are copied, such as `tqdm`.

    Raises
    ------
    InputError
        The target is something else.
    StoreLockedError
        Another process writes it.
    StoreError
        Bytes of the store are not those that were committed, or what was written is not what is read back.
    """
    storage = open_storage(target)
    lines = _lines(source, spec, journal)
    _check_apart(source.location, storage.location)
    with _begun(source, spec, journal, storage) as (done, lock):
        for shard in progress(sorted(journal.shards)):
            if not _is_there(storage, spec, journal, done, shard):
                _copy_shard(source, storage, spec, journal, shard, lock)
            lock.check()
            if spec.version > 1:
                done = journal_of(storage, spec.version).commit(done, shard, journal.shards[shard])
        lock.check()
        if spec.version > 1 and journal.health:
            journal_of(storage, spec.version).finish(done, dict(journal.health))
        elif spec.version == 1 and storage.read(JOURNAL_PATH) != lines:
            storage.replace(JOURNAL_PATH, [lines])


def _lines(source: Storage, spec: StoreSpec, journal: JournalContents) -> bytes:
    """The journal of a store of format 1, which can say the same in several ways: results know stores by its bytes."""
    if spec.version > 1:
        return b""
    lines = source.read(JOURNAL_PATH)[: journal.n_bytes]
    if parse_journal(lines, source.where(JOURNAL_PATH)).shards != journal.shards:
        raise StoreError(f"{source.location} was repaired in the meantime; run the same command again")
    return lines


def _check_apart(source: Location, target: Location) -> None:
    if isinstance(source, Path) and isinstance(target, Path):
        inside = target.resolve().is_relative_to(source.resolve())
    else:
        inside = f"{target}/".startswith(f"{source}/")
    if inside:
        raise InputError(
            f"{target} is the store that is copied, or in it; choose another target=...", argument="target"
        )


@contextmanager
def _begun(
    source: Storage, spec: StoreSpec, journal: JournalContents, target: Storage
) -> Generator[tuple[JournalContents, Lock]]:
    """Hand out what is committed at the target and the lock of its writer; all files next to the shards are there."""
    if is_store(target.location):
        lock = target.acquire(LOCK_PATH)
        with released_on_error(lock):
            done = _take_up(source, spec, journal, target)
    else:
        with naming("target"):
            check_can_create(target)
        files = {name: checked_bytes(source, name, journal, MAX_FILE_NBYTES) for name in journal.files}
        done, first = JournalContents(journal.files), journal_of(target, spec.version).first
        lock = target.establish({**files, first: done.records()}, last=first, lock=LOCK_PATH)
    with released_on_error(lock):
        for name in damaged_files(target, spec, journal):
            target.replace(name, [checked_bytes(source, name, journal, MAX_FILE_NBYTES)])
            checked_bytes(target, name, journal, MAX_FILE_NBYTES)
        yield done, lock
    lock.release()


def _take_up(source: Storage, spec: StoreSpec, journal: JournalContents, target: Storage) -> JournalContents:
    """What is committed in an earlier copy, which is locked."""
    there, done = read_spec(target)
    if there.version != spec.version or done.files != journal.files:
        raise InputError(
            f"{target.location} is another store; remove it or choose another target=...", argument="target"
        )
    newer = [shard for shard, checksums in done.shards.items() if journal.shards.get(shard) != checksums]
    if newer or (done.health and done.health != journal.health):
        what = f"shard {newer[0]}" if newer else "its end"
        raise InputError(
            f"{target.location} was written since it was copied ({what} is not that of {source.location}); choose "
            "another target=..., or copy in the other direction",
            argument="target",
        )
    # Shards that a killed process already wrote are found and not written again.
    target.settle_folders()
    if spec.version > 1:
        journal_of(target, spec.version).take_up(done)
    else:
        target.settle([JOURNAL_PATH])
    return done


def _is_there(target: Storage, spec: StoreSpec, journal: JournalContents, done: JournalContents, shard: int) -> bool:
    """Whether a shard need not be sent again: it was read back before it was committed, or is now."""
    try:
        if shard in done.shards:
            look_at_shard(target, spec, done, shard)
        else:
            _read(target, spec, journal, shard)
    except StoreError:
        return False
    return True


def _copy_shard(
    source: Storage, target: Storage, spec: StoreSpec, journal: JournalContents, shard: int, lock: Lock
) -> None:
    name = shard_path(spec, shard)
    rows, checksums = spec.layout.rows(shard), journal.shards[shard]
    target.write_uncommitted(name, lambda: checked_pieces(source, name, spec.layout, rows, checksums), lock)
    try:
        _read(target, spec, journal, shard)
    except StoreError as error:
        raise CorruptStoreError(
            f"{target.where(name)}: what was written is not what is read back; run the same command again"
        ) from error


def _read(storage: Storage, spec: StoreSpec, journal: JournalContents, shard: int) -> None:
    """Read a shard and compare it with the journal."""
    for _ in checked_pieces(
        storage, shard_path(spec, shard), spec.layout, spec.layout.rows(shard), journal.shards[shard]
    ):
        pass
