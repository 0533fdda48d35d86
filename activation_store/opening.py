"""Open activations wherever they are: a store or a ``.pt`` file."""

from __future__ import annotations

from pathlib import Path

from activation_store.errors import InputError
from activation_store.files.storage import locate
from activation_store.pt.activations import PtActivations
from activation_store.store.reader import ActivationStore


def open_activations(path: str | Path) -> ActivationStore | PtActivations:
    """Open a finished store, or a ``.pt`` file of the original scripts.

    Parameters
    ----------
    path : str or Path
        Of either, or the address of a store in an object store.

    Raises
    ------
    InputError
        There is neither, or the store is unfinished.
    """
    place = locate(path)
    if Path(path).suffix == ".pt":
        if not isinstance(place, Path):
            raise InputError(f"{place}: a .pt is mapped, which needs a disk; copy it to one")
        return PtActivations.open(place)
    store = ActivationStore.open(place)
    store.require_complete()
    return store
