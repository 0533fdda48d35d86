"""Where results go: what cannot take them is refused before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from activation_store.metadata import is_store
from probesweep.errors import RequestError


def check_folder(folder: Path, flag: str) -> None:
    """Make sure that files can be written to a folder, which need not be there yet.

    Raises
    ------
    RequestError
        They cannot, or it is a store or in one.
    """
    above = (folder.absolute(), *folder.absolute().parents)
    for each in filter(is_store, above):
        raise RequestError(f"{each} is a store, which holds nothing else; give another {flag}")
    nearest = next(each for each in above if each.exists())
    try:
        # Rights are not all that a folder can lack.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {nearest}: {error.strerror}; give another {flag}") from error


def check_file(path: Path, flag: str) -> None:
    """Make sure that a file can be written; as `check_folder`."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder; give the name of a file as {flag}")
    check_folder(path.parent, flag)
