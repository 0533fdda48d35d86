"""The journal of a store on its storage: a file to which lines are added (format 1), or a file for each record (2)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from activation_store.errors import MEND, RESTORE, CorruptStoreError, InputError, StoreError
from activation_store.files.disk import Disk
from activation_store.files.durable import append_file, commit_file
from activation_store.files.in_flight import in_flight
from activation_store.files.storage import DRAFT, Storage
from activation_store.format.journal import (
    CLAIM,
    CREATED,
    FINISHED,
    JOURNAL,
    JournalContents,
    file_hash,
    good_lines,
    health_record,
    parse_journal,
    parse_record,
    record_nbytes,
    shard_record,
)
from activation_store.format.layout import CHECKSUM_NBYTES, Layout
from activation_store.format.spec import ARRAY
from activation_store.store.bounded import MAX_FILE_NBYTES, MAX_JSON_NBYTES, read_file

JOURNAL_PATH = f"{ARRAY}/{JOURNAL}"


@runtime_checkable
class Journal(Protocol):
    """What is committed, read and added to.

    Attributes
    ----------
    first : str
        Path below the store of the file with the first record.
    """

    first: str

    def read(self, layout: Layout, *, drop_damaged: bool = False) -> JournalContents:
        """Read all records.

        Parameters
        ----------
        layout : Layout
            Of the store.
        drop_damaged : bool
            Leave damaged records out, as if what they committed never existed.

        Raises
        ------
        CorruptStoreError
            A record is damaged, or does not belong to the store.
        """
        ...

    def take_up(self, contents: JournalContents) -> None:
        """Make durable what a killed process may have left only in memory, and void its claims."""
        ...

    def recorded(self, shard: int, layout: Layout) -> bytes | None:
        """Checksums of the cells of a shard, if somebody has committed it by now."""
        ...

    def commit(self, contents: JournalContents, shard: int, checksums: bytes) -> JournalContents:
        """Add the record of a shard that is complete and on disk.

        Raises
        ------
        StoreError
            Another process has committed other values.
        """
        ...

    def retract(self, contents: JournalContents, shards: Collection[int]) -> JournalContents:
        """Drop damaged records, and those of shards that are to be written again."""
        ...

    def finish(self, contents: JournalContents, health: dict[str, Any]) -> JournalContents:
        """Add what was found about the complete store, unless it is there."""
        ...

    def files(self, contents: JournalContents) -> list[str]:
        """Paths of its files below the store."""
        ...

    def problems(self, contents: JournalContents) -> dict[str, StoreError]:
        """Damaged files that are not read because another repeats them: path below the store -> what is wrong."""
        ...

    def content_hash(self, contents: JournalContents) -> str:
        """SHA-256 over all records, which hold the checksums of all committed values and metadata."""
        ...


def journal_of(storage: Storage, version: int) -> Journal:
    """The journal of a store of a format version."""
    return RecordFiles(storage) if version > 1 else LineFile(storage)


class RecordFiles:
    """Format 2: a folder with a file for each record, and one with all of them when the store is finished."""

    first = f"{JOURNAL_PATH}/{CREATED}"

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, layout: Layout, *, drop_damaged: bool = False) -> JournalContents:
        """See `Journal.read`."""
        damaged: list[str] = []
        if self._storage.n_bytes(_path(FINISHED)) is not None:
            try:
                return self._read_finished(layout)
            except CorruptStoreError:
                if not drop_damaged:
                    raise
                damaged.append(_path(FINISHED))
        where = self._storage.where(_path(CREATED))
        try:
            created = read_file(self._storage, _path(CREATED), MAX_JSON_NBYTES)
            contents = parse_journal(created, where, may_be_torn=False)
        except CorruptStoreError as error:
            raise CorruptStoreError(
                f"{where}, which names all other files, is missing or damaged; {RESTORE}"
            ) from error

        def attempt(shard: int) -> bytes | CorruptStoreError:
            try:
                return self._read_record(shard, layout)
            except CorruptStoreError as error:
                return error

        shards: dict[int, bytes] = {}
        recorded = self._recorded()
        for shard, found in zip(recorded, in_flight(self._storage.n_in_flight, attempt, recorded), strict=True):
            if isinstance(found, bytes):
                shards[shard] = found
            elif drop_damaged:
                damaged.append(_path(shard))
            else:
                raise found
        return replace(contents, shards=shards, damaged=tuple(damaged))

    def take_up(self, contents: JournalContents) -> None:
        """See `Journal.take_up`."""
        finished = _path(FINISHED)
        read = [finished] if contents.health else [_path(shard) for shard in contents.shards]
        self._storage.settle(read)
        for name in self._storage.names(JOURNAL_PATH):
            if name.endswith((CLAIM, DRAFT)):
                self._storage.remove(_path(name))
        self._storage.remove_drafts(ARRAY)

    def commit(self, contents: JournalContents, shard: int, checksums: bytes) -> JournalContents:
        """See `Journal.commit`."""
        record = shard_record(shard, checksums)
        try:
            self._storage.create(_path(shard), [record])
        except FileExistsError as error:
            if self._storage.read(_path(shard)) != record:
                raise StoreError(
                    f"{self._storage.where(_path(shard))}: another process has committed other values of this shard; "
                    "when no other process writes the store, run the same command again with repair=True"
                ) from error
        return replace(contents, shards=contents.shards | {shard: checksums})

    def retract(self, contents: JournalContents, shards: Collection[int]) -> JournalContents:
        """See `Journal.retract`."""
        repeated = _repeated(contents)
        for name in self.problems(contents):
            self._storage.replace(name, [repeated[name]])
        if shards or contents.damaged:
            for name in (_path(FINISHED), *contents.damaged, *map(_path, shards)):
                self._storage.remove(name)
            contents = replace(contents, health={})
        return _without(contents, shards)

    def finish(self, contents: JournalContents, health: dict[str, Any]) -> JournalContents:
        """See `Journal.finish`."""
        if contents.health != health:
            contents = replace(contents, health=health)
            self._storage.replace(_path(FINISHED), [contents.records()])
        return contents

    def files(self, contents: JournalContents) -> list[str]:
        """See `Journal.files`."""
        return [_path(CREATED), *map(_path, sorted(contents.shards)), *([_path(FINISHED)] if contents.health else [])]

    def problems(self, contents: JournalContents) -> dict[str, StoreError]:
        """See `Journal.problems`."""
        problems: dict[str, StoreError] = {}
        if contents.health:
            for name, record in _repeated(contents).items():
                if self._storage.n_bytes(name) != len(record) or self._storage.read(name) != record:
                    where = self._storage.where(name)
                    problems[name] = CorruptStoreError(f"{where} is not what was committed; {MEND}")
        return problems

    def content_hash(self, contents: JournalContents) -> str:
        """See `Journal.content_hash`."""
        return file_hash(contents.records())

    def recorded(self, shard: int, layout: Layout) -> bytes | None:
        """See `Journal.recorded`."""
        return None if self._storage.n_bytes(_path(shard)) is None else self._read_record(shard, layout)

    def _recorded(self) -> list[int]:
        """Shards of which there is a record. Drafts of killed processes and claims are there, too."""
        return sorted(int(name) for name in self._storage.names(JOURNAL_PATH) if name.isascii() and name.isdecimal())

    def _read_finished(self, layout: Layout) -> JournalContents:
        name = _path(FINISHED)
        data = read_file(self._storage, name, _most_nbytes(layout, n_lines=layout.n_shards))
        where = self._storage.where(name)
        contents = _checked(parse_journal(data, where, may_be_torn=False), layout, self._storage)
        # That record is the last one.
        if not contents.health:
            raise CorruptStoreError(f"{where} is cut off: its last records are missing; {MEND}")
        return contents

    def _read_record(self, shard: int, layout: Layout) -> bytes:
        data = read_file(self._storage, _path(shard), record_nbytes(layout.n_cells))
        checksums = parse_record(data, shard, self._storage.where(_path(shard)))
        _checked(JournalContents({}, {shard: checksums}), layout, self._storage)
        return checksums


class LineFile:
    """Format 1: one file, to which lines are added."""

    first = JOURNAL_PATH

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, layout: Layout, *, drop_damaged: bool = False) -> JournalContents:
        """See `Journal.read`."""
        where = self._storage.where(JOURNAL_PATH)
        # Every shard twice: a journal that was added to by a repair is still far below it.
        data = read_file(self._storage, JOURNAL_PATH, _most_nbytes(layout, n_lines=2 * layout.n_shards))
        damaged: tuple[str, ...] = ()
        if drop_damaged:
            data, n_damaged = good_lines(data, where)
            damaged = (JOURNAL_PATH,) * n_damaged
        return replace(_checked(parse_journal(data, where), layout, self._storage), damaged=damaged)

    def take_up(self, contents: JournalContents) -> None:
        """See `Journal.take_up`."""
        path = self._path()
        self._storage.settle(())
        # Written again: after a failed fsync, another fsync of the same pages reports success for what is not on disk.
        data = self._storage.read(JOURNAL_PATH)
        if contents.damaged:
            data, _ = good_lines(data, str(path))
        commit_file(path, [data[: contents.n_bytes]])

    def recorded(self, shard: int, layout: Layout) -> bytes | None:
        """See `Journal.recorded`: only one process writes."""
        return None

    def commit(self, contents: JournalContents, shard: int, checksums: bytes) -> JournalContents:
        """See `Journal.commit`."""
        contents = replace(contents, shards=contents.shards | {shard: checksums})
        if contents.before.get(shard) == checksums:
            return contents
        return self._append(contents, shard_record(shard, checksums))

    def retract(self, contents: JournalContents, shards: Collection[int]) -> JournalContents:
        """See `Journal.retract`: the next line of a shard will count."""
        return _without(contents, shards)

    def finish(self, contents: JournalContents, health: dict[str, Any]) -> JournalContents:
        """See `Journal.finish`."""
        if contents.health == health:
            return contents
        return self._append(replace(contents, health=health), health_record(health))

    def files(self, contents: JournalContents) -> list[str]:
        """See `Journal.files`."""
        return [JOURNAL_PATH]

    def problems(self, contents: JournalContents) -> dict[str, StoreError]:
        """See `Journal.problems`."""
        return {}

    def content_hash(self, contents: JournalContents) -> str:
        """See `Journal.content_hash`."""
        return file_hash(self._storage.read(JOURNAL_PATH))

    def _append(self, contents: JournalContents, line: bytes) -> JournalContents:
        append_file(self._path(), line, contents.n_bytes)
        return replace(contents, n_bytes=contents.n_bytes + len(line))

    def _path(self) -> Any:
        if not isinstance(self._storage, Disk):
            raise InputError(
                f"{self._storage.location} is a store of format 1, to whose journal lines are added, which an object "
                "store cannot do; copy it to a disk, go on there, and copy it back"
            )
        return self._storage.location / JOURNAL_PATH


def _path(name: str | int) -> str:
    return f"{JOURNAL_PATH}/{name}"


def _repeated(contents: JournalContents) -> dict[str, bytes]:
    """Content of the files that the last file of a finished journal repeats."""
    shards = {_path(shard): shard_record(shard, checksums) for shard, checksums in contents.shards.items()}
    return {_path(CREATED): replace(contents, shards={}, health={}).records(), **shards}


def _most_nbytes(layout: Layout, *, n_lines: int) -> int:
    return min(MAX_JSON_NBYTES + n_lines * record_nbytes(layout.n_cells), MAX_FILE_NBYTES)


def _checked(contents: JournalContents, layout: Layout, storage: Storage) -> JournalContents:
    for shard, checksums in contents.shards.items():
        if shard >= layout.n_shards or len(checksums) != layout.n_cells * CHECKSUM_NBYTES:
            raise CorruptStoreError(
                f"{storage.where(JOURNAL_PATH)}: shard {shard} does not belong to this store; restore it"
            )
    return contents


def _without(contents: JournalContents, shards: Collection[int]) -> JournalContents:
    before = {shard: checksums for shard, checksums in contents.shards.items() if shard in shards}
    kept = {shard: checksums for shard, checksums in contents.shards.items() if shard not in shards}
    return replace(contents, shards=kept, before=before)
