"""What in a store is undamaged: its committed shards, each checked as it is mapped, and the files next to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from activation_store.errors import MissingShardError, StoreError
from activation_store.files.in_flight import in_flight
from activation_store.files.storage import Storage
from activation_store.format.journal import JournalContents
from activation_store.format.spec import ARRAY, StoreSpec
from activation_store.store.documents import check_unchanged
from activation_store.store.journals import journal_of
from activation_store.store.shards import Shard, check_shard_length

Progress = Callable[[Iterable[int]], Iterable[int]]


def open_shard(storage: Storage, spec: StoreSpec, journal: JournalContents, shard: int) -> Shard:
    """Open a committed shard.

    Raises
    ------
    MissingShardError
        It was never committed, or its file is gone.
    CorruptStoreError
        Its file is mapped and has another length or a damaged index; it is outside the store.
    """
    rows, name = spec.layout.rows(shard), f"{ARRAY}/{spec.layout.shard_key(shard)}"
    if shard not in journal.shards:
        raise never_committed(storage.where(name), rows)
    return Shard.open(storage, name, spec.layout, rows, spec.numpy_dtype, journal.shards[shard])


def look_at_shard(storage: Storage, spec: StoreSpec, journal: JournalContents, shard: int) -> None:
    """Raise if a shard was never committed or its file has another length; the file is not opened."""
    rows, name = spec.layout.rows(shard), f"{ARRAY}/{spec.layout.shard_key(shard)}"
    if shard not in journal.shards:
        raise never_committed(storage.where(name), rows)
    check_shard_length(storage, name, spec.layout, rows)


def never_committed(where: str, rows: range) -> MissingShardError:
    """The error for a shard that is not in the journal."""
    return MissingShardError(
        f"{where} (rows {rows.start}-{rows.stop - 1}) was never committed; run the same extract again to resume"
    )


def damaged_files(storage: Storage, spec: StoreSpec, journal: JournalContents) -> dict[str, StoreError]:
    """Files written when the store was created that have changed: name -> what is wrong."""

    def problem(name: str) -> StoreError | None:
        try:
            check_unchanged(storage, name, spec, journal)
        except StoreError as error:
            return error
        return None

    found = in_flight(storage.n_in_flight, problem, journal.files)
    return {name: error for name, error in zip(journal.files, found, strict=True) if error is not None}


def damaged_records(storage: Storage, spec: StoreSpec, journal: JournalContents) -> dict[str, StoreError]:
    """Files of the journal that are not read, because another repeats them, and have changed."""
    return journal_of(storage, spec.version).problems(journal)


def damaged_shards(
    storage: Storage, spec: StoreSpec, journal: JournalContents, progress: Progress = iter
) -> dict[int, StoreError]:
    """Committed shards that have changed: shard -> what is wrong. Reads every byte.

    Parameters
    ----------
    storage, spec, journal
        Of the store.
    progress : callable
        Wraps the shard numbers while they are worked on, such as `tqdm`.
    """
    problems: dict[int, StoreError] = {}
    for shard in progress(sorted(journal.shards)):
        try:
            open_shard(storage, spec, journal, shard).check_every_byte()
        except StoreError as error:
            problems[shard] = error
    return problems
