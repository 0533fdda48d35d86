"""One writer: a lock file that holds the writer's pid, and a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from activation_store.errors import StoreLockedError
from activation_store.files.durable import naming_file, write_all


class WriterLock:
    """The lock of a folder's one writer. Its file holds the writer's pid for as long.

    Parameters
    ----------
    path : Path
        The lock file.
    folder : Path
        What is locked, as messages name it.
    descriptor : int
        The lock file, open and locked.
    """

    def __init__(self, path: Path, folder: Path, descriptor: int) -> None:
        self._path, self._folder, self._descriptor = path, folder, descriptor

    @classmethod
    def acquire(cls, path: Path, folder: Path) -> WriterLock:
        """Become the only writer.

        Raises
        ------
        StoreLockedError
            Another process is; names its pid.
        """
        with naming_file(path):
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                try:
                    _lock(folder, descriptor, fcntl.LOCK_EX)
                    # Its last writer may have removed the file between the two calls.
                    if os.fstat(descriptor).st_nlink:
                        os.ftruncate(descriptor, 0)
                        write_all(descriptor, str(os.getpid()).encode())
                        return cls(path, folder, descriptor)
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def moved(self, path: Path, folder: Path) -> WriterLock:
        """The same lock after its file was renamed."""
        return WriterLock(path, folder, self._descriptor)

    def check(self) -> None:
        """The kernel lets nobody else have it while this process lives."""

    def release(self) -> None:
        """Empty the lock file, so that a finished store does not depend on who wrote it, and let go."""
        with naming_file(self._path):
            try:
                os.ftruncate(self._descriptor, 0)
            finally:
                os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the lock file and let go."""
        with naming_file(self._path):
            try:
                os.unlink(self._path)  # noqa: PTH108
            finally:
                os.close(self._descriptor)


def check_unlocked(path: Path, folder: Path) -> None:
    """Raise if a lock file says that its folder is being written now.

    Raises
    ------
    StoreLockedError
        Names the writer's pid.
    """
    if path.is_file():
        with naming_file(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _lock(folder, descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)


def _lock(folder: Path, descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(descriptor, 20, 0)
        # Empty between a writer's taking the lock and its writing its pid.
        holder = f"process {pid.decode()}" if pid.isdigit() else "another process"
        raise StoreLockedError(f"{folder} is being written by {holder}; wait for it or stop it") from error
