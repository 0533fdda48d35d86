"""Where the files of a store are: in a folder of a disk, or below a prefix of an object store."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from activation_store.errors import InputError

# A path of a disk, or an address such as s3://bucket/folder/train.zarr.
Location: TypeAlias = Path | str
Piece: TypeAlias = bytes | memoryview

# Ends the names of files on a disk that are being written.
DRAFT = ".partial"
# What is read at a time of a file that a library reads in smaller parts.
_PIECE_NBYTES = 8 * 2**20
_ADDRESS = re.compile(r"(s3|s3a|gs|az|azure|abfss?|adl)://", re.IGNORECASE)


def _check_scheme(location: str | Path) -> None:
    """Refuse what looks like an address and is none that is known: it would become a folder of that name."""
    scheme, _, rest = str(location).partition(":")
    if rest.startswith("/") and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        raise InputError(
            f"{location} is not an address of an object store; give s3://, gs:// or az://bucket/folder as text, or a "
            "path on a disk"
        )


def is_address(location: str | Path) -> bool:
    """Whether a text names a place in an object store."""
    return isinstance(location, str) and bool(_ADDRESS.match(location))


def locate(location: str | Path) -> Location:
    """A path, or an address without a slash at its end."""
    if not is_address(location):
        _check_scheme(location)
        return Path(location)
    trimmed = str(location).rstrip("/")
    # Of s3:// nothing is left by which its error could say what is missing.
    return trimmed if is_address(trimmed) else str(location)


def as_recorded(location: Location) -> str:
    """How documents name a place, so that it is found from any folder."""
    return location if isinstance(location, str) else str(location.resolve())


@runtime_checkable
class Contents(Protocol):
    """One file, of which parts can be read."""

    def n_bytes(self) -> int:
        """Length of the file."""
        ...

    def part(self, start: int, n_bytes: int) -> memoryview:
        """Bytes from `start` on; fewer where the file ends. A view, not a copy, where the file is mapped."""
        ...


class InMemory:
    """Bytes that are in memory, or mapped into it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def n_bytes(self) -> int:
        """Length of the file."""
        return len(self._data)

    def part(self, start: int, n_bytes: int) -> memoryview:
        """View of some bytes."""
        return self._data[start : start + n_bytes]


class OpenFile(BufferedIOBase):
    """One file as Python's own kind of open file, for libraries that take nothing else.

    One piece of it is in memory, and none while nothing is read: many can be open at the same time.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._n_bytes: int | None = None
        self._at = self._start = 0
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place: from the start, from where it is, or from the end."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length()}[whence]
        self._piece = memoryview(b"")
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; fewer where the file ends."""
        rest = max(self._length() - self._at, 0)
        left = rest if size is None or size < 0 else min(size, rest)
        parts: list[bytes] = []
        while left:
            part = self._held()[:left]
            parts.append(bytes(part))
            self._at += len(part)
            left -= len(part)
        return b"".join(parts)

    def _held(self) -> memoryview:
        """What is in memory from here on, at least one byte."""
        if not self._start <= self._at < self._start + len(self._piece):
            self._start, self._piece = self._at, self._contents.part(self._at, _PIECE_NBYTES)
            if not self._piece:
                raise OSError(errno.ESTALE, "became shorter while it was read; run the same command again")
        return self._piece[self._at - self._start :]

    def _length(self) -> int:
        if self._n_bytes is None:
            self._n_bytes = self._contents.n_bytes()
        return self._n_bytes


@runtime_checkable
class Lock(Protocol):
    """Held by the one writer of a store."""

    def check(self) -> None:
        """Raise `StoreLockedError` if another writer holds it by now."""
        ...

    def release(self) -> None:
        """Let go."""
        ...


@runtime_checkable
class Storage(Protocol):
    """The files of one store, by their paths below its root (``activations/zarr.json``).

    What is written is there whole or not at all, for whoever looks at any moment, and durable when the call returns.
    Errors are `OSError`, with the file's full name in `filename`: `FileNotFoundError`, `FileExistsError`,
    `PermissionError`, others. A path that leads out of the root raises `activation_store.errors.CorruptStoreError`.
    """

    @property
    def location(self) -> Location:
        """The root."""
        ...

    @property
    def maps(self) -> bool:
        """Whether parts are views of mapped files: a process that reads behind the end of one is killed."""
        ...

    @property
    def n_in_flight(self) -> int:
        """Requests that are worth making at the same time."""
        ...

    def where(self, name: str) -> str:
        """Full name of a file, for messages."""
        ...

    def exists(self) -> bool:
        """Whether there is anything at the root."""
        ...

    def n_bytes(self, name: str) -> int | None:
        """Length of a file; None where there is no regular file."""
        ...

    def read(self, name: str) -> bytes:
        """All of a file."""
        ...

    def pieces(self, name: str) -> Iterator[bytes]:
        """All of a file, piece by piece."""
        ...

    def open(self, name: str) -> Contents:
        """Open a file to read parts of it."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """What is directly below a folder, sorted; names of folders end in a slash. Empty if there is no folder."""
        ...

    def create(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a new file; raises `FileExistsError` if there is one."""
        ...

    def replace(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a file, in the place of one that may be there."""
        ...

    def write_uncommitted(self, name: str, pieces: Callable[[], Iterable[Piece]], lock: Lock) -> None:
        """Write a file that nothing refers to yet, in the place of one that a killed writer may have left.

        Whoever lost the lock meanwhile does not touch what the new writer wrote: `StoreLockedError`.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def of_owner(self, owner: str) -> Storage:
        """The same files for one of several processes that write: it never touches what another is writing."""
        ...

    def remove_drafts(self, folder: str, name: str = "") -> None:
        """Remove what processes that are gone were writing in a folder and below it: all files, or those of a name."""
        ...

    def claim(self, name: str, text: str) -> None:
        """Create a short file that says who is at work; `FileExistsError` if another did. Need not survive a crash."""
        ...

    def check_vacant(self) -> None:
        """Raise `InputError` unless a new store can be written here."""
        ...

    def establish(self, files: Mapping[str, bytes], last: str, lock: str) -> Lock:
        """Write the first files of a new store. The file `last` is there only if all are.

        Returns the lock of its writer; raises as `check_vacant`.
        """
        ...

    def acquire(self, lock: str) -> Lock:
        """Become the writer of an existing store; raises `StoreLockedError` while another process is."""
        ...

    def check_unlocked(self, lock: str) -> None:
        """Raise `StoreLockedError` while another process writes."""
        ...

    def settle(self, names: Iterable[str]) -> None:
        """Make durable what a killed process may have left only in memory: these files, and the root's name."""
        ...

    def settle_folders(self) -> None:
        """Make durable the names of all files."""
        ...

    def zarr_store(self) -> Any:
        """What zarr-python opens."""
        ...


def open_storage(location: str | Path) -> Storage:
    """Storage of a store at a path or an address.

    Raises
    ------
    InputError
        The address is not one, or obstore is not installed.
    """
    if is_address(location):
        # obstore is an extra.
        from activation_store.files.objects import Bucket

        return Bucket(str(locate(location)))
    from activation_store.files.disk import Disk

    _check_scheme(location)
    return Disk(Path(location))
