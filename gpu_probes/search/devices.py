"""Where the work is done: devices, their free memory, and the threads that drive them."""

from __future__ import annotations

import ctypes
import re
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from itertools import cycle
from typing import Any

import psutil
import torch

from gpu_probes.errors import DeviceError, ProbeWarning
from gpu_probes.solvers.blas import limit_threads
from probesweep_ray import Cluster, Machines, connected

# A share of free memory: the rest is for other processes, and for what the plan cannot predict.
_HOST_SHARE, _GPU_SHARE = 0.5, 0.8
# While one block is computed, the next is read and copied.
_THREADS_PER_GPU = 2
# Large enough for a GPU to reach its rate, small enough for a CPU to do a few.
_RATED_SIZE, _RATED_S = 768, 0.05
# Whether the workers of a cluster have GPUs; None: if there are any.
_WITH_GPUS = {"auto": None, "cuda": True, "cpu": False, "mps": False}


def resolve_devices(name: str) -> tuple[torch.device, ...]:
    """Turn ``auto``, ``cpu``, ``cuda`` (all GPUs), ``cuda:1`` or ``mps`` into available devices.

    Every fit is in float64, which Apple's GPUs have not: there the CPU does the work. Cards for games have little of
    it: ``auto`` takes them if they are faster at it than the CPU. Either is said in a warning, once.

    Raises
    ------
    DeviceError
        When there is no such device.
    """
    check_device_name(name)
    cpu = torch.device("cpu")
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name in ("auto", "mps") and not (gpus and name == "auto") and torch.backends.mps.is_available():
        _say_once("mps has no float64: the probes are fitted on the CPU")
        return (cpu,)
    if name == "cpu" or (name == "auto" and not gpus):
        return (cpu,)
    if name in ("auto", "cuda") and gpus:
        devices = tuple(map(torch.device, gpus))
        if name == "cuda":
            return devices
        card_rate, cpu_rate = sum(map(float64_rate, devices)), float64_rate(cpu)
        if card_rate >= cpu_rate:
            return devices
        _say_once(
            f"{torch.cuda.get_device_name(devices[0])} is slower in float64 than the CPU ({card_rate / 1e9:.0f} and "
            f"{cpu_rate / 1e9:.0f} GFLOP/s): the probes are fitted on the CPU; device='cuda' fits them on the card"
        )
        return (cpu,)
    if name not in gpus:
        raise DeviceError(
            f"device={name!r} is not available; use one that is: {', '.join(['cpu', *gpus])}", argument="device"
        )
    return (torch.device(name),)


@lru_cache
def float64_rate(device: torch.device) -> float:
    """Floating-point operations a second in products of float64 matrices, from 50 ms of them."""
    matrix = torch.ones(_RATED_SIZE, _RATED_SIZE, dtype=torch.float64, device=device)

    def multiply() -> None:
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()  # Libraries are loaded by their first call.
    n_products, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _RATED_S:
        multiply()
        n_products += 1
    return n_products * 2 * _RATED_SIZE**3 / elapsed


@lru_cache
def _say_once(message: str) -> None:
    warnings.warn(message, ProbeWarning, stacklevel=4)


def check_device_name(name: Any) -> None:
    """Raise `DeviceError` if a string cannot be a device name."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?", name):
        raise DeviceError(f"device={name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps", argument="device")


def free_bytes(devices: Sequence[torch.device]) -> int:
    """A share of free memory, on the device that has least."""
    if devices[0].type == "cuda":
        # What torch keeps of an earlier sweep would count as taken.
        torch.cuda.empty_cache()
        return int(_GPU_SHARE * min(torch.cuda.mem_get_info(device)[0] for device in devices))
    return int(_HOST_SHARE * psutil.virtual_memory().available)


def return_freed_memory() -> None:
    """Give back what the C library keeps of freed memory: what one thread has freed, glibc gives to no other.

    See ``man 3 malloc_trim``; nothing is done where there is no such function.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_of_worker(machines: Machines, device: str, budget_bytes: int | None) -> tuple[torch.device, int]:
    """What one worker has: the device to plan for, and its memory.

    Parameters
    ----------
    machines : Machines
    device : name, as for `resolve_devices`
    budget_bytes : what each worker may take; None: its share of what is free on its machine

    Raises
    ------
    DeviceError
        When a single GPU is named: each worker has its own.
    MachinesError
        When there are no such workers.
    """
    check_device_name(device)
    if device not in _WITH_GPUS:
        raise DeviceError(
            f"device={device!r} is one GPU of this machine, and each worker takes another; use device='cuda'",
            argument="device",
        )
    if machines.is_local:
        devices = resolve_devices(device)
        n_gpus = len(devices) if devices[0].type == "cuda" else 0
        n_workers = machines.local_workers(n_gpus)
        return devices[0], free_bytes(devices) // (1 if n_gpus else n_workers) if budget_bytes is None else budget_bytes
    with connected(machines, gpus=_WITH_GPUS[device]) as cluster:
        first = torch.device(cluster.device)
        if budget_bytes is not None:
            return first, budget_bytes
        import ray

        ask = ray.remote(_free_bytes).options(**cluster.options)
        found = ray.get([ask.remote(str(first)) for _ in range(cluster.n_workers)])
        return first, min(found) // (1 if cluster.num_gpus else cluster.workers_per_machine)


def connect(machines: Machines, device: str) -> AbstractContextManager[Cluster]:
    """`connected`, for a device by its name."""
    return connected(machines, gpus=_uses_gpus(machines, device))


def _free_bytes(device: str) -> int:
    return free_bytes([torch.device(device)])


def _uses_gpus(machines: Machines, device: str) -> bool | None:
    """Whether workers have GPUs; None: if the cluster has any."""
    return resolve_devices(device)[0].type == "cuda" if machines.is_local else _WITH_GPUS[device]


def most_workers(device: torch.device) -> int:
    """Blocks that one device works on at the same time."""
    return torch.get_num_threads() if device.type == "cpu" else _THREADS_PER_GPU


@contextmanager
def workers(devices: Sequence[torch.device], n_per_device: int) -> Generator[Callable[..., Future[Any]]]:
    """Threads that run functions of a device; yields `submit(function, *arguments)`.

    On a CPU they share the cores, each with its own part of them: many small products at once beat one after the
    other on all cores. Until the end, NumPy and SciPy have no more cores in other threads, either. On a GPU each has a
    stream of its own, so that copies of one overlap the work of another; it begins when what the calling thread has put
    on the device is there.
    """
    n_cores = torch.get_num_threads()
    n_threads = max(n_cores // n_per_device, 1)
    local = threading.local()
    turn = cycle(devices)
    lock = threading.Lock()
    before = {device: torch.cuda.current_stream(device) for device in devices if device.type == "cuda"}

    def set_up() -> None:
        with lock:
            local.device = next(turn)
        if local.device.type == "cpu":
            torch.set_num_threads(n_threads)
        else:
            torch.cuda.set_device(local.device)
            stream = torch.cuda.Stream(local.device)
            stream.wait_stream(before[local.device])
            torch.cuda.set_stream(stream)

    def run(function: Callable[..., Any], *arguments: object) -> Any:
        return function(local.device, *arguments)

    def submit(function: Callable[..., Any], *arguments: object) -> Future[Any]:
        return pool.submit(run, function, *arguments)

    pool = ThreadPoolExecutor(n_per_device * len(devices), initializer=set_up)
    with limit_threads(n_threads) if devices[0].type == "cpu" else nullcontext():
        try:
            yield submit
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(n_cores)
