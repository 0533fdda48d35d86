"""Open activations wherever they are: a store or a ``.pt`` file."""

from __future__ import annotations

from pathlib import Path

from activation_store.pt.activations import PtActivations
from activation_store.store.reader import ActivationStore


def open_activations(path: str | Path) -> ActivationStore | PtActivations:
    """Open a finished store, or a ``.pt`` file of the original scripts.

    Raises
    ------
    InputError
        There is neither, or the store is unfinished.
    """
    if Path(path).suffix == ".pt":
        return PtActivations.open(path)
    store = ActivationStore.open(path)
    store.require_complete()
    return store
