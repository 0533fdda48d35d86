"""The value types of a store, and bfloat16 as a Zarr data type.

``bfloat16`` is the name that the Zarr extension registry gives it and that TensorStore reads. zarr-python finds
`BFloat16` through the entry points of the installed package (see pyproject.toml).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from zarr.dtype import Float16, data_type_registry

from activation_store.errors import InputError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": _BFLOAT16,
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy data type of a stored value type.

    Raises
    ------
    InputError
        If `name` is not float32, float16 or bfloat16.
    """
    if name not in NUMPY_DTYPES:
        raise InputError(f"dtype {name!r} cannot be stored; choose one of {', '.join(NUMPY_DTYPES)} with --dtype")
    return NUMPY_DTYPES[name]


def as_bits(values: np.ndarray) -> np.ndarray:
    """View of values as unsigned integers: what NumPy does not know, such as bfloat16, it copies one by one."""
    return values.view(f"u{values.dtype.itemsize}")


@dataclass(frozen=True, kw_only=True)
class BFloat16(Float16):
    """The 16-bit brain float of ml_dtypes, under the name ``bfloat16``.

    Built on zarr-python's float16: same size, same JSON encoding of scalars, another NumPy type. Zarr v2 has no name
    for it.
    """

    dtype_cls: ClassVar[Any] = type(_BFLOAT16)  # pyright: ignore[reportIncompatibleVariableOverride]
    _zarr_v3_name: ClassVar[Any] = "bfloat16"  # pyright: ignore[reportIncompatibleVariableOverride]
    _zarr_v2_names: ClassVar[Any] = ()


# Not left to the entry point: zarr-python 3.1 does not register those itself, and a checkout may not be installed.
data_type_registry.register("bfloat16", BFloat16)
