"""What in a store is undamaged: its committed shards, each checked as it is mapped, and the files next to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

from activation_store.errors import MissingShardError, StoreError
from activation_store.files.inside import path_inside
from activation_store.format.journal import JournalContents
from activation_store.format.spec import ARRAY, StoreSpec
from activation_store.store.documents import check_unchanged
from activation_store.store.shards import Shard, check_shard_length

Progress = Callable[[Iterable[int]], Iterable[int]]


def open_shard(path: Path, spec: StoreSpec, journal: JournalContents, shard: int) -> Shard:
    """Map a committed shard of the store at `path`.

    Raises
    ------
    MissingShardError
        It was never committed, or its file is gone.
    CorruptStoreError
        Its file has another length, its index is damaged, or it is outside the store.
    """
    rows, name = spec.layout.rows(shard), f"{ARRAY}/{spec.layout.shard_key(shard)}"
    if shard not in journal.shards:
        raise never_committed(path / name, rows)
    # Following links takes longer than reading a small shard, and stores rarely have any.
    if any(map(os.path.islink, accumulate(name.split("/"), "{}/{}".format, initial=str(path)))):
        path_inside(path, name)
    return Shard.map(f"{path}/{name}", spec.layout, rows, spec.numpy_dtype, journal.shards[shard])


def look_at_shard(path: Path, spec: StoreSpec, journal: JournalContents, shard: int) -> None:
    """Raise if a shard was never committed or its file has another length; the file is not opened."""
    rows, file = spec.layout.rows(shard), f"{path}/{ARRAY}/{spec.layout.shard_key(shard)}"
    if shard not in journal.shards:
        raise never_committed(Path(file), rows)
    check_shard_length(file, spec.layout, rows)


def never_committed(file: Path, rows: range) -> MissingShardError:
    """The error for a shard that is not in the journal."""
    return MissingShardError(
        f"{file} (rows {rows.start}-{rows.stop - 1}) was never committed; run the same extract again to resume"
    )


def damaged_files(path: Path, spec: StoreSpec, journal: JournalContents) -> dict[str, StoreError]:
    """Files written when the store was created that have changed: name -> what is wrong."""
    problems: dict[str, StoreError] = {}
    for name in journal.files:
        try:
            check_unchanged(path, name, spec, journal)
        except StoreError as error:
            problems[name] = error
    return problems


def damaged_shards(
    path: Path, spec: StoreSpec, journal: JournalContents, progress: Progress = iter
) -> dict[int, StoreError]:
    """Committed shards that have changed: shard -> what is wrong. Reads every byte.

    Parameters
    ----------
    path, spec, journal
        Of the store.
    progress : callable
        Wraps the shard numbers while they are worked on, such as `tqdm`.
    """
    problems: dict[int, StoreError] = {}
    for shard in progress(sorted(journal.shards)):
        try:
            open_shard(path, spec, journal, shard).check_every_byte()
        except StoreError as error:
            problems[shard] = error
    return problems
