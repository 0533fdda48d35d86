"""Files of a store, read only if they are no longer than they can be: stores may come from strangers."""

from __future__ import annotations

from activation_store.errors import MEND, RESTORE, CorruptStoreError
from activation_store.files.storage import Storage
from activation_store.format.spec import ARRAY

MAX_JSON_NBYTES = 64 * 2**20
MAX_FILE_NBYTES = 4 * 2**30


def read_file(storage: Storage, name: str, max_nbytes: int) -> bytes:
    """All of a file.

    Raises
    ------
    CorruptStoreError
        It is missing, larger than `max_nbytes`, or outside the store.
    """
    check_size(storage, name, max_nbytes)
    return storage.read(name)


def check_size(storage: Storage, name: str, max_nbytes: int) -> int:
    """Length of a file; raises as `read_file`."""
    n_bytes = storage.n_bytes(name)
    if n_bytes is None:
        raise CorruptStoreError(f"{storage.where(name)} is missing; {mend(name)}")
    if n_bytes > max_nbytes:
        raise CorruptStoreError(
            f"{storage.where(name)} is {n_bytes} bytes long, at most {max_nbytes} are expected; {mend(name)}"
        )
    return n_bytes


def mend(name: str) -> str:
    """What to do about a damaged file: a repair starts from the two documents that define the store."""
    return RESTORE if name in ("zarr.json", f"{ARRAY}/zarr.json") else MEND
