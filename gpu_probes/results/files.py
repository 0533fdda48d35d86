"""Files that are either complete or absent."""

import errno
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def commit_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a new file next to the target, make it durable, and replace the target with it.

    Raises
    ------
    OSError
        It cannot be written, or `path` is a link; names `path`.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed; give the file it points to", str(path))
    # Unique, so that of two processes each writes its own, and short, so that every name that can be has room.
    draft = path.with_name(f".probesweep-{secrets.token_hex(8)}.partial")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
