import threading

import pytest
import torch

from gpu_probes.errors import DeviceError, ProbeWarning
from gpu_probes.search.devices import check_device_name, resolve_devices, workers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device='tpu' is unknown; use auto, cpu, cuda, cuda:1 or mps"),
        ("cuda:x", "device='cuda:x' is unknown"),
        ("cuda:01", "device='cuda:01' is unknown"),
        ("cuda:99", "device='cuda:99' is not available; use one that is: cpu"),
    ],
)
def test_devices_that_do_not_work(name: str, message: str):
    with pytest.raises(DeviceError, match=message):
        resolve_devices(name)


def test_a_device_that_is_no_text_is_unknown():
    with pytest.raises(DeviceError, match="device=3 is unknown"):
        check_device_name(3)


def test_auto_is_all_gpus_or_the_cpu():
    n_gpus = torch.cuda.device_count()
    expected = [torch.device("cuda", index) for index in range(n_gpus)] or [torch.device("cpu")]
    assert list(resolve_devices("auto")) == expected


def test_mps_where_there_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="device='mps' is not available; use one that is: cpu"):
        resolve_devices("mps")


def test_apples_gpus_have_no_float64_and_the_user_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(ProbeWarning, match="mps has no float64; the probes are fitted on the CPU"):
        assert resolve_devices("mps") == (torch.device("cpu"),)


def test_workers_share_the_cores_and_give_them_back():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        both_here = threading.Barrier(2, timeout=30)

        def look(device: torch.device) -> tuple[str, int]:
            both_here.wait()
            return device.type, torch.get_num_threads()

        with workers([torch.device("cpu")], 2) as submit:
            futures = [submit(look), submit(look)]
            assert [future.result() for future in futures] == [("cpu", 2)] * 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
