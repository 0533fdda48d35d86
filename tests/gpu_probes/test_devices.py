import ml_dtypes
import numpy as np
import pytest
import torch

from gpu_probes.devices import resolve_device, to_float64
from gpu_probes.errors import CellError, DeviceError


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_stored_dtypes_are_widened_exactly(dtype, device: str):
    stored = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype)
    widened = to_float64(stored, torch.device(device))
    assert widened.dtype == torch.float64
    np.testing.assert_array_equal(widened.cpu().numpy(), stored.astype(np.float64))


@pytest.mark.filterwarnings("error")
def test_read_only_and_strided_arrays_are_copied():
    stored = np.arange(24, dtype=np.float32).reshape(4, 2, 3)[:, 1]
    stored.flags.writeable = False
    widened = to_float64(stored, torch.device("cpu"))
    widened.zero_()
    assert stored[0, 0] == 3


@pytest.mark.parametrize("bad", [np.zeros((2, 2), dtype=np.int64), np.zeros(3, dtype=np.float32)])
def test_other_arrays_are_refused(bad: np.ndarray):
    with pytest.raises(CellError, match=r"a cell came as .* of shape .*; it should be \[sample, feature\] in"):
        to_float64(bad, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mps", "device 'mps' cannot compute in float64, which the probes need for now; use --device cpu"),
        ("tpu", "device 'tpu' is unknown; use auto, cpu, cuda or cuda:1"),
        ("cuda:x", "device 'cuda:x' is unknown"),
        ("cuda:99", r"device 'cuda:99' is not there \(\d+ CUDA devices\); use --device cpu"),
    ],
)
def test_devices_that_do_not_work(name: str, message: str):
    with pytest.raises(DeviceError, match=message):
        resolve_device(name)


def test_auto_is_a_device_that_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
