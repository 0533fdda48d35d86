"""Stream a language model's activations into a memory-mapped Zarr v3 store, and read them back."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from activation_store.errors import (
    CorruptStoreError,
    DeviceMemoryError,
    FingerprintMismatchError,
    InputError,
    MissingShardError,
    NonFiniteError,
    ParityError,
    StoreError,
    StoreLockedError,
    UnsupportedFormatError,
)

if TYPE_CHECKING:
    from activation_store.extraction.extract import Extraction
    from activation_store.opening import open_activations
    from activation_store.pt.activations import PtActivations
    from activation_store.pt.convert import export_pt, import_pt
    from activation_store.store.reader import ActivationStore

_HOMES = {
    "ActivationStore": "store.reader",
    "Extraction": "extraction.extract",
    "PtActivations": "pt.activations",
    "export_pt": "pt.convert",
    "import_pt": "pt.convert",
    "open_activations": "opening",
}
__all__ = [
    "ActivationStore",
    "CorruptStoreError",
    "DeviceMemoryError",
    "Extraction",
    "FingerprintMismatchError",
    "InputError",
    "MissingShardError",
    "NonFiniteError",
    "ParityError",
    "PtActivations",
    "StoreError",
    "StoreLockedError",
    "UnsupportedFormatError",
    "export_pt",
    "import_pt",
    "open_activations",
]


def __getattr__(name: str) -> Any:
    # Reading a store needs neither the model's libraries nor those that write.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
