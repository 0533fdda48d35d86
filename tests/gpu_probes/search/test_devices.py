import threading
import warnings
from itertools import count

import pytest
import torch

from gpu_probes.errors import DeviceError, ProbeWarning
from gpu_probes.search import devices
from gpu_probes.search.devices import check_device_name, resolve_devices, workers
from tests.helpers.pretend_device import PretendDevice, pretended


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


@pytest.fixture(autouse=True)
def nothing_said_or_rated_before():
    devices._say_once.cache_clear()
    devices.float64_rate.cache_clear()


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Rates of a machine with a pretend card, by type of device; they can be changed."""
    rates = {"cuda": 2e12, "cpu": 1e12}
    monkeypatch.setattr(devices, "float64_rate", lambda device: rates[device.type])
    return rates


def test_auto_is_a_card_that_is_fast_in_float64(rates: dict[str, float]):
    with pretended(PretendDevice("cuda")), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_devices("auto") == resolve_devices("cuda") == (torch.device("cuda:0"),)


def test_auto_is_the_cpu_where_the_card_is_slow_in_float64(rates: dict[str, float]):
    rates["cuda"] = 0.3e12
    expected = r"a pretend device is slower in float64 than the CPU \(300 and 1000 GFLOP/s\): the probes are fitted on "
    with pretended(PretendDevice("cuda")):
        with pytest.warns(ProbeWarning, match=expected + r"the CPU; device='cuda' fits them on the card"):
            assert resolve_devices("auto") == (torch.device("cpu"),)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert resolve_devices("auto") == (torch.device("cpu"),)
            assert resolve_devices("cuda") == (torch.device("cuda:0"),)


def test_a_rate_is_that_of_the_products_of_50_ms(monkeypatch: pytest.MonkeyPatch):
    clock = count()
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(clock) / 100)
    # A hundredth of a second each: the fifth is over when time is up.
    assert devices.float64_rate(torch.device("cpu")) == pytest.approx(4 * 2 * 768**3 / 0.05)


def test_mps_where_there_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="device='mps' is not available; use one that is: cpu"):
        resolve_devices("mps")


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_apples_gpus_have_no_float64_and_the_user_is_told_once(name: str):
    with pretended(PretendDevice("mps")):
        with pytest.raises(TypeError, match="doesn't support float64"):
            torch.zeros(1, dtype=torch.float64, device="mps")
        with pytest.warns(ProbeWarning, match="mps has no float64: the probes are fitted on the CPU"):
            assert resolve_devices(name) == (torch.device("cpu"),)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert resolve_devices(name) == (torch.device("cpu"),)


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
