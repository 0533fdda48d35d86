"""The files of a store as objects below a prefix of an object store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from activation_store.errors import InputError
from activation_store.files.lease import Lease, check_free
from activation_store.files.requests import Requests, connect
from activation_store.files.storage import Lock, Piece

_ROOT = "zarr.json"
_FOLDER = "activations"
_LOCK = "writer.lock"
# Only so many objects are looked at where a new store is to be: the address may be that of a bucket full of others.
_MOST_REMAINS = 10_000


class Bucket:
    """`Storage` below an address such as ``s3://bucket/folder/train.zarr``.

    Credentials, region and endpoint come from obstore's environment variables (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ...), so that a copy of a `Bucket` in another process needs those, too.

    Parameters
    ----------
    address : str
        Of the root.

    Raises
    ------
    InputError
        The address is not one, or obstore is not installed.
    """

    # A range has the latency of a request: eight at once keep a connection of 10 Gb/s busy with cells of a few MiB.
    n_in_flight = 8
    maps = False

    def __init__(self, address: str) -> None:
        self.location = address
        self._requests = Requests(address)

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (self.location,)

    def __repr__(self) -> str:
        return f"Bucket({self.location!r})"

    def where(self, name: str) -> str:
        """Full name of an object, for messages."""
        return self._requests.where(name)

    def exists(self) -> bool:
        """Whether there is anything below the address."""
        return bool(self._requests.below(1))

    def n_bytes(self, name: str) -> int | None:
        """Length of an object; None where there is none."""
        return self._requests.n_bytes(name)

    def read(self, name: str) -> bytes:
        """All of an object."""
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        """All of an object, in parts of the same content: one that is replaced meanwhile raises `OSError`."""
        return self._requests.pieces(name)

    def open(self, name: str) -> ObjectContents:
        """Parts of an object; asks nothing yet."""
        return ObjectContents(self._requests, name)

    def names(self, folder: str = "") -> list[str]:
        """What is directly below a folder, sorted; names of folders end in a slash."""
        folders, files = self._requests.folder(folder)
        return sorted([*(f"{name}/" for name in folders), *files])

    def create(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a new object in one request; raises `FileExistsError` if there is one.

        An object that appeared while attempts of this call failed, and that holds exactly these bytes, counts as
        created by this call, whoever created it.
        """
        self._requests.put(name, _kept(pieces), new=True)

    def replace(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write an object in one request, in the place of one that may be there."""
        self._requests.put(name, _kept(pieces))

    def write_uncommitted(self, name: str, pieces: Callable[[], Iterable[Piece]], lock: Lock) -> None:
        """Write an object that nothing refers to yet, in the place of one that a killed writer may have left.

        A request may arrive after its sender was stopped for longer than the lock lasts: it replaces just the content
        that was there while the lock was held.
        """
        try:
            self.create(name, pieces())
        except FileExistsError:
            found = self._requests.version(name)
            lock.check()
            try:
                self._requests.put(name, _kept(pieces()), found, new=found is None)
            except (FileExistsError, FileNotFoundError):
                lock.check()
                raise

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        self._requests.delete(name)

    def of_owner(self, owner: str) -> Bucket:
        """The same: objects appear whole, and nothing is written in a place of its own first."""
        return self

    def remove_drafts(self, folder: str, name: str = "") -> None:
        """Nothing to do: there are none."""

    def claim(self, name: str, text: str) -> None:
        """Create a short object that says who is at work; `FileExistsError` if another did."""
        self.create(name, [text.encode()])

    def check_vacant(self) -> None:
        """Raise `InputError` unless there is nothing but the remains of a creation that was killed."""
        self._remains()

    def establish(self, files: Mapping[str, bytes], last: str, lock: str) -> Lease:
        """Write the first objects of a new store, `last` after all others, and return the lock of its writer."""
        self._remains()
        held = self.acquire(lock)
        try:
            remains = set(self._remains()) - {*files, lock}

            def write(name: str) -> None:
                self.write_uncommitted(name, lambda: [files[name]], held)

            # First: it says whose remains the others are.
            write(_ROOT)
            others = [name for name in files if name not in (_ROOT, last)]
            with ThreadPoolExecutor(self.n_in_flight) as pool:
                list(pool.map(write, others))
                held.check()
                # Zarr would show arrays that an earlier creation had and this one does not.
                list(pool.map(self.remove, remains))
            held.check()
            self.create(last, [files[last]])
        except BaseException:
            # The first failure is the one to report.
            with suppress(OSError):
                held.release()
            raise
        return held

    def acquire(self, lock: str) -> Lease:
        """Become the writer of an existing store; raises `StoreLockedError` while another process is.

        A writer of this machine that was killed is known as such at once; another's lock is watched for 20 s.
        """
        return Lease.acquire(self.location, lock)

    def check_unlocked(self, lock: str) -> None:
        """Raise `StoreLockedError` while another process writes; as long as `acquire`."""
        check_free(self.location, lock)

    def settle(self, names: Iterable[str]) -> None:
        """Nothing to do: an object that can be read is stored."""

    def settle_folders(self) -> None:
        """Nothing to do: there are no folders."""

    def zarr_store(self) -> Any:
        """What zarr-python opens, to read only; its requests are obstore's own."""
        from zarr.storage import ObjectStore

        return ObjectStore(connect(self.location), read_only=True)

    def _remains(self) -> list[str]:
        """Objects of a creation that was killed before a store was there."""
        lock = f"{_FOLDER}/{_LOCK}"
        found = self._requests.below(_MOST_REMAINS)
        if set(found) <= {lock}:
            return found
        if not self._is_ours():
            raise InputError(f"{self.location} exists and is not a store; remove it or choose another output path")
        begun = {f"{_FOLDER}/{_ROOT}", lock}
        if any(name.startswith(f"{_FOLDER}/") and name not in begun for name in found):
            self.check_unlocked(lock)
            raise InputError(
                f"{self.location}: another process has created a store here; run the same command again to resume it"
            )
        for name in found:
            if name.rpartition("/")[2] not in (_ROOT, _LOCK) and "/c/" not in name:
                raise InputError(f"{self.where(name)} belongs to no store; remove it or choose another output path")
        return found

    def _is_ours(self) -> bool:
        try:
            document: Any = json.loads(self.read(_ROOT))
            return "probesweep_format" in document["attributes"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class ObjectContents:
    """One object, of which parts can be read."""

    requests: Requests
    name: str

    def n_bytes(self) -> int:
        """Length of the object."""
        n_bytes = self.requests.n_bytes(self.name)
        if n_bytes is None:
            # As reading it does.
            return self.requests.get(self.name, 0, 1).n_bytes
        return n_bytes

    def part(self, start: int, n_bytes: int) -> memoryview:
        """Bytes from `start` on, in one request; fewer where the object ends."""
        return self.requests.get(self.name, start, n_bytes).content if n_bytes else memoryview(b"")


def _kept(pieces: Iterable[Piece]) -> list[bytes]:
    """Copies, to send again if need be: who makes the pieces may use the memory of one for the next."""
    return [bytes(piece) for piece in pieces]
