"""Stream a language model's activations into a memory-mapped Zarr v3 store, and read them back."""

from activation_store.errors import (
    CorruptStoreError,
    FingerprintMismatchError,
    InputError,
    MissingShardError,
    NonFiniteError,
    StoreError,
    StoreLockedError,
    UnsupportedFormatError,
)
from activation_store.extract import extract
from activation_store.reader import ActivationStore

__all__ = [
    "ActivationStore",
    "CorruptStoreError",
    "FingerprintMismatchError",
    "InputError",
    "MissingShardError",
    "NonFiniteError",
    "StoreError",
    "StoreLockedError",
    "UnsupportedFormatError",
    "extract",
]
