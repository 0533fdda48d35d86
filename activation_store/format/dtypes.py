"""The value types of a store."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from activation_store.errors import InputError

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy data type of a stored value type.

    Raises
    ------
    InputError
        If `name` is not float32, float16 or bfloat16.
    """
    if name not in NUMPY_DTYPES:
        raise InputError(f"dtype={name!r} cannot be stored; choose one of {', '.join(NUMPY_DTYPES)}", argument="dtype")
    return NUMPY_DTYPES[name]


def as_bits(values: np.ndarray) -> np.ndarray:
    """View of values as unsigned integers: what NumPy does not know, such as bfloat16, it copies one by one."""
    return values.view(f"u{values.dtype.itemsize}")
