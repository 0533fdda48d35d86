"""Stream a language model's activations into a memory-mapped Zarr v3 store, and read them back."""

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
from activation_store.extraction.extract import Extraction
from activation_store.opening import open_activations
from activation_store.pt.activations import PtActivations
from activation_store.pt.convert import export_pt, import_pt
from activation_store.store.reader import ActivationStore

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
