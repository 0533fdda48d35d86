"""Files that are on disk when the call returns.

An fsync that fails is raised, never retried: the kernel may have
dropped the pages that it could not write, and a second fsync would then report success.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write the pieces one after another into a new file and fsync it."""
    try:
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # What write and fsync raise does not name the file.
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each name durable in the folder that holds it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def commit_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a whole file or none: temporary file beside the target, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.partial")
    write_file(temporary, pieces)
    temporary.replace(path)
    fsync_folder(path.parent)
