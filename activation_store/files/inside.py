"""Paths inside a folder, never through a link."""

from __future__ import annotations

from pathlib import Path

from activation_store.errors import MEND, CorruptStoreError


def path_inside(store: Path, name: str) -> Path:
    """Path of a file below a folder, links followed.

    Raises
    ------
    CorruptStoreError
        It leads out of the folder.
    """
    try:
        resolved = (store / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # A ring of links, and names that no file can have.
        raise CorruptStoreError(f"{store}/{name!r} cannot be resolved ({error}); {MEND}") from error
    if not resolved.is_relative_to(store.resolve()):
        raise CorruptStoreError(f"{store / name} leads out of {store}, to {resolved}; replace the link by its target")
    return resolved
