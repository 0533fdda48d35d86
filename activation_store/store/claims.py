"""One shard, one owner: several processes write the shards of a store, each those that it has claimed."""

from __future__ import annotations

from activation_store.errors import InputError, StoreLockedError
from activation_store.files.storage import Storage
from activation_store.format.journal import CLAIM, JournalContents
from activation_store.format.spec import StoreSpec
from activation_store.store.journals import JOURNAL_PATH, journal_of
from activation_store.store.writer import StoreWriter, shard_path


class Claim:
    """The right to write one shard; takes the place of the writer's lock.

    It ends with the process that holds the lock: the next one to take up the store removes all claims, and so does this
    one with those of a worker that died.
    """

    def __init__(self, storage: Storage, shard: int, owner: str) -> None:
        self._storage, self._name, self._owner = storage, _name(shard), owner

    @classmethod
    def take(cls, storage: Storage, shard: int, owner: str) -> Claim:
        """Become the owner.

        Raises
        ------
        StoreLockedError
            Another process is.
        """
        claim = cls(storage, shard, owner)
        try:
            storage.claim(claim._name, owner)
        except FileExistsError as error:
            raise StoreLockedError(
                f"{storage.where(claim._name)}: another process writes this shard; wait for it or stop it"
            ) from error
        return claim

    def check(self) -> None:
        """Raise `StoreLockedError` unless this is still the owner."""
        try:
            found = self._storage.read(self._name).decode(errors="replace")
        except FileNotFoundError:
            found = ""
        if found != self._owner:
            raise StoreLockedError(
                f"{self._storage.where(self._name)}: another process has taken this shard over, as happens when this "
                "one is given up for dead; nothing was lost"
            )

    def release(self) -> None:
        """Give it up; another's stays."""
        try:
            self.check()
        except StoreLockedError:
            return
        self._storage.remove(self._name)


def writer_of_shard(storage: Storage, spec: StoreSpec, shard: int, owner: str) -> StoreWriter:
    """A writer for one shard of a store that another process has created and locked.

    Parameters
    ----------
    storage : Storage
        Of the store.
    spec : StoreSpec
        Of the store.
    shard : int
        Not committed.
    owner : str
        Who writes it: another text for every process.

    Raises
    ------
    StoreLockedError
        Another process writes the shard.
    """
    return StoreWriter(storage.of_owner(owner), spec, JournalContents({}), Claim.take(storage, shard, owner))


def check_can_share(spec: StoreSpec, where: str) -> None:
    """Refuse a store that only one process can write."""
    if spec.version < 2:
        raise InputError(
            f"{where} is of store format 1, to which only one process can write; finish it without workers",
            argument="workers",
        )


def void_claim(storage: Storage, spec: StoreSpec, shard: int) -> None:
    """Take a shard from a worker that died, and remove what it was writing."""
    storage.remove(_name(shard))
    storage.remove_drafts(shard_path(spec, shard).rpartition("/")[0])
    storage.remove_drafts(JOURNAL_PATH, str(shard))


def committed_checksums(storage: Storage, spec: StoreSpec, shard: int) -> bytes | None:
    """What a worker has committed of a shard; None if nothing."""
    return journal_of(storage, spec.version).recorded(shard, spec.layout)


def _name(shard: int) -> str:
    return f"{JOURNAL_PATH}/{shard}{CLAIM}"
