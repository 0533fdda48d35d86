"""Numbers onto the device: which device, and stored dtypes to float64."""

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from gpu_probes.errors import CellError, DeviceError

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there and computes in float64.

    Raises
    ------
    DeviceError
        When it is not.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "mps":
        raise DeviceError("device 'mps' cannot compute in float64, which the probes need for now; use --device cpu")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise DeviceError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:1")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} is not there ({torch.cuda.device_count()} CUDA devices); use --device cpu")
    return torch.device(name)


def to_float64(array: Shaped[np.ndarray, "..."], device: torch.device) -> Float64[Tensor, "sample feature"]:
    """Copy a stored ``[sample, feature]`` array to `device` and widen it there.

    Raises
    ------
    CellError
        When it is not two-dimensional float16, bfloat16, float32 or float64.
    """
    if array.ndim != 2 or array.dtype.name not in _DTYPES:
        raise CellError(
            f"a cell came as {array.dtype.name} of shape {array.shape}; it should be [sample, feature] in {_DTYPES}"
        )
    # Copied while still narrow: cells may be read-only memory maps, which torch must not wrap.
    stored = np.array(array, order="C", copy=True)
    if array.dtype.name == "bfloat16":  # numpy has no such type and torch does not know ml_dtypes': go by the bits
        return torch.from_numpy(stored.view(np.uint16)).to(device).view(torch.bfloat16).to(torch.float64)
    return torch.from_numpy(stored).to(device).to(torch.float64)
