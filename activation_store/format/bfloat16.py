"""bfloat16 as a Zarr data type, registered when this module is imported.

``bfloat16`` is the name that the Zarr extension registry gives it and that TensorStore reads. zarr-python finds
`BFloat16` through the entry points of the installed package (see pyproject.toml).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from zarr.dtype import Float16, data_type_registry

from activation_store.format.dtypes import NUMPY_DTYPES


@dataclass(frozen=True, kw_only=True)
class BFloat16(Float16):
    """The 16-bit brain float of ml_dtypes, under the name ``bfloat16``.

    Built on zarr-python's float16: same size, same JSON encoding of scalars, another NumPy type. Zarr v2 has no name
    for it.
    """

    dtype_cls: ClassVar[Any] = type(NUMPY_DTYPES["bfloat16"])  # pyright: ignore[reportIncompatibleVariableOverride]
    _zarr_v3_name: ClassVar[Any] = "bfloat16"  # pyright: ignore[reportIncompatibleVariableOverride]
    _zarr_v2_names: ClassVar[Any] = ()


# Not left to the entry point: zarr-python 3.1 does not register those itself, and a checkout may not be installed.
data_type_registry.register("bfloat16", BFloat16)
