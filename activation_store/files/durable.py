"""Files that are on disk when the call returns.

Every change to a store's files is a call of a function of `os`, made here, so that the tests can make each one fail.
An fsync that fails is raised, never retried: the kernel may have dropped the pages that it could not write, and a
second fsync would then report success.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from activation_store.files.storage import DRAFT

Piece = bytes | memoryview
_BLOCK_NBYTES = 2**20
LONGEST_NAME = 255


def write_file(path: Path, pieces: Iterable[Piece]) -> None:
    """Write the pieces one after another into a new file and fsync it; a link in its place is refused."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) as descriptor:
        for number, block in enumerate(_blocks(pieces)):
            write_all(descriptor, block)
            if len(block) == _BLOCK_NBYTES:
                _start_writeback(descriptor, number * _BLOCK_NBYTES, len(block))
        os.fsync(descriptor)


def _blocks(pieces: Iterable[Piece]) -> Iterator[memoryview]:
    """The same bytes, 1 MiB at a time.

    ext4 and XFS keep what one aligned write fills as one folio of the page cache: reads of the mapped file have fewer
    faults. Folios of 2 MiB are hard to find room for, and were seen to make writes take three times as long.
    """
    block, filled = memoryview(bytearray(_BLOCK_NBYTES)), 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest:
            n_bytes = min(len(rest), _BLOCK_NBYTES - filled)
            block[filled : filled + n_bytes] = rest[:n_bytes]
            rest, filled = rest[n_bytes:], filled + n_bytes
            if filled == _BLOCK_NBYTES:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def commit_file(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a file completely or not at all: temporary file next to it, fsync, rename, fsync of the locked folder."""
    temporary = path.with_name(f".{path.name}{DRAFT}")
    write_file(temporary, pieces)
    rename(temporary, path)


def write_output(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a whole file or none where nobody holds a lock: the content is this process's, whoever else writes."""
    with draft_of(path) as draft:
        write_file(draft, pieces)


@contextmanager
def draft_of(path: Path) -> Generator[Path]:
    """Open a new file next to `path` that replaces it once everything is written, and is removed otherwise.

    Its name is unique, and it is locked for as long as its process lives: drafts of killed processes are removed.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed; give the file it points to", str(path))
    _remove_dead_drafts(path.parent)
    with naming_file(path):
        draft, descriptor = _new_draft(path.parent)
    try:
        yield draft
        fsync_path(draft)
        rename(draft, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(draft)  # noqa: PTH108
        # The draft's name tells users nothing.
        if isinstance(error, OSError) and error.filename == str(draft):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        os.close(descriptor)


def _new_draft(folder: Path) -> tuple[Path, int]:
    while True:
        draft = folder / f".probesweep-{secrets.token_hex(8)}.partial"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        # Without locks, drafts of killed processes stay.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return draft, descriptor
        # Somebody took it for dead between the two calls.
        os.close(descriptor)


def _remove_dead_drafts(folder: Path) -> None:
    for draft in folder.glob(".probesweep-*.partial"):
        with suppress(OSError):
            descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(draft)  # noqa: PTH108
            finally:
                os.close(descriptor)


def hidden_beside(path: Path, suffix: str) -> Path:
    """A hidden name next to `path`, the same for every call; a digest if the name would be too long."""
    name = f".{path.name}.{suffix}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.{suffix}"
    return path.with_name(name)


def write_tree(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files, given by their paths below `root`, and make their names durable up to that of `root` itself."""
    for name, data in files.items():
        os.makedirs((root / name).parent, exist_ok=True)  # noqa: PTH103
        write_file(root / name, [data])
    fsync_folders(root)


def fsync_folders(root: Path) -> None:
    """Make durable all names below a folder."""
    for folder, _, _ in os.walk(root):
        fsync_path(Path(folder))


def append_file(path: Path, data: bytes, after_n_bytes: int) -> None:
    """Add `data` behind the first `after_n_bytes` of a file, cutting off what else is there, and fsync it."""
    with _opened(path, os.O_WRONLY) as descriptor:
        try:
            os.ftruncate(descriptor, after_n_bytes)
            os.lseek(descriptor, after_n_bytes, os.SEEK_SET)
            write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            # What may not be on disk must not be found in the page cache by the next process.
            with suppress(OSError):
                os.ftruncate(descriptor, after_n_bytes)
            raise


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name in the same folder, durably."""
    os.replace(source, target)  # noqa: PTH105
    fsync_path(target.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each name durable in the folder that holds it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    # Who made the last one that is there may have been killed before its name was durable.
    found = missing[-1].parent if missing else path
    with suppress(PermissionError):
        fsync_path(found.absolute().parent)
    for folder in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        fsync_path(folder.parent)


def clear_folder(path: Path, keep: Path) -> None:
    """Remove all files and folders in `path` but the file `keep` and the folders that lead to it."""
    for folder, folders, files in os.walk(path, topdown=False):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*files, *links):
            if Path(folder, name) != keep:
                os.unlink(Path(folder, name))  # noqa: PTH108
        if Path(folder) != path and not keep.is_relative_to(folder):
            os.rmdir(folder)  # noqa: PTH106


def fsync_path(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def write_all(descriptor: int, piece: Piece) -> None:
    """Write all of `piece`; the kernel may take it in parts."""
    rest = memoryview(piece).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _start_writeback(descriptor: int, start: int, n_bytes: int) -> None:
    """Have the disk begin with what was written while the rest is still being prepared: fsync then waits less.

    Pages that are being written back stay in memory; see `man 2 posix_fadvise`, POSIX_FADV_DONTNEED.
    """
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, start, n_bytes, os.POSIX_FADV_DONTNEED)


@contextmanager
def _opened(path: Path, flags: int) -> Generator[int]:
    with naming_file(path):
        descriptor = os.open(path, flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def naming_file(path: Path) -> Generator[None]:
    """Name the file in what write, fsync and close raise: by themselves they do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
