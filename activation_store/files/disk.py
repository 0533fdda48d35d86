"""A store's files in a folder of a disk."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from activation_store.errors import InputError
from activation_store.files.durable import (
    clear_folder,
    fsync_folders,
    fsync_path,
    hidden_beside,
    make_folder,
    naming_file,
    rename,
    write_all,
    write_file,
    write_tree,
)
from activation_store.files.inside import path_inside
from activation_store.files.lock import WriterLock, check_unlocked
from activation_store.files.storage import DRAFT, InMemory, Lock, Piece

_PIECE_NBYTES = 2**20


class Disk:
    """`activation_store.files.storage.Storage` in a folder."""

    maps = True
    n_in_flight = 1

    def __init__(self, path: Path, owner: str = "") -> None:
        self.location = path
        self._own_folders: set[str] = set()
        # Ends the names of files that are being written: another one for each of several processes that write.
        self._draft_end = f"{'.' * bool(owner)}{owner}{DRAFT}"

    def where(self, name: str) -> str:
        """Path of a file."""
        return str(self.location / name)

    def exists(self) -> bool:
        """Whether anything is there."""
        return self.location.exists()

    def n_bytes(self, name: str) -> int | None:
        """Length of a regular file; a pipe in its place would block whoever reads it."""
        try:
            found = self._stat(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            # It says what is wrong with a name that no file can have.
            found = path_inside(self.location, name).stat()
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str) -> bytes:
        """All of a file."""
        return path_inside(self.location, name).read_bytes()

    def pieces(self, name: str) -> Iterator[bytes]:
        """All of a file, piece by piece."""
        with path_inside(self.location, name).open("rb") as file:
            while piece := file.read(_PIECE_NBYTES):
                yield piece

    def open(self, name: str) -> InMemory:
        """Map a file; NumPy's own `memmap` takes several times as long."""
        path = self.location / name
        with naming_file(path):
            self._stat(name)
            # Reading a pipe in its place would block forever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
                # An empty file cannot be mapped.
                size = found.st_size
                mapped = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)) if size else memoryview(b"")
                return InMemory(mapped)
            finally:
                os.close(descriptor)

    def _stat(self, name: str) -> os.stat_result:
        """What a name leads to; raises `CorruptStoreError` where that is out of the folder.

        Following links takes longer than reading a small file, and stores rarely have any: folders are looked at once.
        """
        if self._has_own_folder(name):
            found = os.lstat(f"{self.location}/{name}")
            if not stat.S_ISLNK(found.st_mode):
                return found
        return path_inside(self.location, name).stat()

    def _has_own_folder(self, name: str) -> bool:
        """Whether a file's folder is reached without a link."""
        folder = name.rpartition("/")[0]
        if folder in self._own_folders:
            return True
        parts = name.split("/")
        if {"", ".."} & {*parts}:
            return False
        steps = islice(accumulate(parts[:-1], "{}/{}".format, initial=str(self.location)), 1, None)
        if not all(stat.S_ISDIR(os.lstat(step).st_mode) for step in steps):
            return False
        if folder:
            self._own_folders.add(folder)
        return True

    def names(self, folder: str = "") -> list[str]:
        """What is directly below a folder; names of folders end in a slash."""
        try:
            with os.scandir(path_inside(self.location, folder)) as entries:
                return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def create(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a new file. Between processes the lock, or a shard's claim, says who may."""
        self._refuse_existing(name)
        draft = self._written_draft(name, pieces)
        try:
            # Another may have written it meanwhile.
            self._refuse_existing(name)
        except FileExistsError:
            os.unlink(draft)  # noqa: PTH108
            raise
        os.replace(draft, self.location / name)  # noqa: PTH105
        try:
            fsync_path((self.location / name).parent)
        except OSError:
            # What may not be on disk must not be found in the page cache by the next process.
            with suppress(OSError):
                os.unlink(self.location / name)  # noqa: PTH108
            raise

    def _refuse_existing(self, name: str) -> None:
        if os.path.lexists(self.location / name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.where(name))

    def replace(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a file, in the place of one that may be there."""
        rename(self._written_draft(name, pieces), self.location / name)

    def _written_draft(self, name: str, pieces: Iterable[Piece]) -> Path:
        """The file under another name next to its own, on disk."""
        path = self.location / name
        path_inside(self.location, name)
        make_folder(path.parent)
        draft = path.with_name(f".{path.name}{self._draft_end}")
        write_file(draft, pieces)
        return draft

    def remove(self, name: str) -> None:
        """Remove a file if it is there, durably."""
        path = self.location / name
        path_inside(self.location, name)
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
            fsync_path(path.parent)

    def write_uncommitted(self, name: str, pieces: Callable[[], Iterable[Piece]], lock: Lock) -> None:
        """Write a file that nothing refers to yet.

        The kernel lets no other holder of the store's lock in while this one lives. A shard's claim may be another's
        by now, which is looked up right before the file gets its name.
        """
        draft = self._written_draft(name, pieces())
        lock.check()
        rename(draft, self.location / name)

    def of_owner(self, owner: str) -> Disk:
        """The same files, drafts under names of their own."""
        return Disk(self.location, owner)

    def remove_drafts(self, folder: str, name: str = "") -> None:
        """Remove the drafts of other processes that are gone, in a folder and below it."""
        for place, _, files in os.walk(path_inside(self.location, folder)):
            for file in files:
                # .NAME.partial is written over by whoever writes NAME next.
                of_owner = file.startswith(f".{name}.") if name else file.startswith(".") and file.count(".") > 2
                if of_owner and file.endswith(DRAFT):
                    with suppress(FileNotFoundError):
                        os.unlink(Path(place, file))  # noqa: PTH108

    def claim(self, name: str, text: str) -> None:
        """Create a short file that says who is at work."""
        path = self.location / name
        path_inside(self.location, name)
        with naming_file(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            try:
                write_all(descriptor, text.encode())
            finally:
                os.close(descriptor)

    def check_vacant(self) -> None:
        """Raise unless a new store can be made: see `Storage.check_vacant`."""
        path = self.location.absolute()
        if path == Path.cwd():
            raise InputError(f"{path} is the current folder; give the store a folder of its own")
        if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
            raise InputError(f"{path} exists and is not a store; remove it or choose another output path")
        nearest = next(folder for folder in path.parents if folder.exists())
        if not nearest.is_dir():
            raise InputError(f"{path} cannot be made: {nearest} is a file; choose another output path")
        draft = self._draft()
        # What is there is removed: not through a link that somebody put in its place.
        if draft.is_symlink():
            raise InputError(f"{draft} is a symbolic link where a new store is prepared; remove it")

    def establish(self, files: Mapping[str, bytes], last: str, lock: str) -> WriterLock:
        """Write the first files in a hidden folder, which then gets the store's name."""
        path, draft = self.location.absolute(), self._draft()
        path_inside(draft, lock)
        make_folder((draft / lock).parent)
        held = WriterLock.acquire(draft / lock, path)
        try:
            clear_folder(draft, keep=draft / lock)
            write_tree(draft, files)
            rename(draft, path)
        except BaseException:
            with suppress(OSError):
                held.release()
            raise
        return held.moved(path / lock, path)

    def acquire(self, lock: str) -> WriterLock:
        """Become the writer."""
        path_inside(self.location, lock)
        return WriterLock.acquire(self.location / lock, self.location)

    def check_unlocked(self, lock: str) -> None:
        """Raise while another process writes, or prepares a new store."""
        for root in (self.location, self._draft()):
            path_inside(root, lock)
            check_unlocked(root / lock, self.location.absolute())

    def settle(self, names: Iterable[str]) -> None:
        """Make durable what a killed process may have left only in memory."""
        fsync_path(self.location.absolute().parent)
        for name in names:
            # Written again: after a failed fsync, another fsync of the same pages reports success for what is not on
            # disk.
            self.replace(name, [self.read(name)])

    def settle_folders(self) -> None:
        """Make durable all names below the root."""
        fsync_folders(self.location)

    def zarr_store(self) -> Any:
        """What zarr-python opens."""
        return self.location

    def _draft(self) -> Path:
        """Where a new store is prepared."""
        return hidden_beside(self.location.absolute(), "creating")
