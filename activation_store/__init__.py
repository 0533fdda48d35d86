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
    "StoreError",
    "StoreLockedError",
    "UnsupportedFormatError",
]
