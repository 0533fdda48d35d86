"""Where work runs when one process is not enough: how to get at Ray, for every package, which do not import each other.

Ray itself is imported only when it is used: it takes seconds.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import psutil

from probesweep_errors import ProbesweepError

_ADDRESS = r"(ray://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})"
# How long to wait for an answer from an address.
_WAIT_S = 5
# How long the processes of a private Ray have to end on their own.
_END_S = 3
# Processes on one machine: more would not be started in reasonable time.
_MOST_WORKERS = 100_000
# Settings of libraries that a cluster's workers get from the driver; a private Ray's inherit everything.
_SHARED = ("HF_", "TRANSFORMERS_", "OMP_WAIT_POLICY", "TQDM_DISABLE")
# Ray shows the environment of a job to everyone on the cluster.
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD")
# The sockets of Ray lie 70 characters below its folder, and their paths have 107 at most.
_LONGEST_FOLDER = 36


class MachinesError(ProbesweepError, ValueError):
    """Workers that cannot be had, in one line: what is wrong, and how to fix it."""


class WorkerError(ProbesweepError):
    """Worker processes that die again and again."""


@dataclass(frozen=True)
class Machines:
    """Where work runs.

    Attributes
    ----------
    workers : int, optional
        How many processes work at the same time.
    ray : str, optional
        ``local``: on this machine, as with `workers` alone. ``auto``, ``host:port`` or ``ray://host:port``: on a Ray
        cluster that is already running.
    """

    workers: int | None = None
    ray: str | None = None

    @property
    def many(self) -> bool:
        """Whether Ray is used at all."""
        return self.workers is not None or self.ray is not None

    @property
    def is_local(self) -> bool:
        """Whether the workers are processes of this machine, started for this one purpose."""
        return self.ray in (None, "local")

    def check(self) -> None:
        """Check both by themselves: nothing is started, nobody is asked.

        Raises
        ------
        MachinesError
            One of them is no such value, or Ray is not installed.
        """
        workers: Any = self.workers
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
            raise MachinesError(f"workers={workers!r} must be a whole number", argument="workers")
        if workers is not None and not 1 <= workers <= _MOST_WORKERS:
            raise MachinesError(
                f"workers={workers} must be from 1 to {_MOST_WORKERS}; leave it out to work in one process",
                argument="workers",
            )
        if self.ray is not None and self.ray not in ("auto", "local"):
            _host_and_port(self.ray)
        if self.many:
            _check_installed("workers" if self.ray is None else "ray")

    def local_workers(self, n_gpus: int) -> int:
        """How many processes of this machine work: as many as asked for, or one for each GPU that is used.

        Raises
        ------
        MachinesError
            There are fewer GPUs than workers.
        """
        if n_gpus and self.workers is not None and self.workers > n_gpus:
            raise _too_many(self.workers, f"{n_gpus} GPU{'s' if n_gpus > 1 else ''}, one for each worker")
        return max(n_gpus, 1) if self.workers is None else self.workers


@dataclass(frozen=True)
class Cluster:
    """Workers that can be had.

    Attributes
    ----------
    n_workers : int
        Tasks or actors that run at the same time.
    num_cpus, num_gpus : int
        What Ray is to reserve for each.
    threads : int
        Threads that each may start.
    workers_per_machine : int
        Most of them on one machine, which share its memory.
    """

    n_workers: int
    num_cpus: int
    num_gpus: int
    threads: int
    workers_per_machine: int

    @property
    def device(self) -> str:
        """The device of each worker: Ray shows it its own GPU only."""
        return "cuda:0" if self.num_gpus else "cpu"

    @property
    def options(self) -> dict[str, Any]:
        """Options of a Ray task or actor that is one worker: its share of a machine, spread over all machines."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "scheduling_strategy": "SPREAD"}


@contextmanager
def connected(machines: Machines, *, gpus: bool | None) -> Generator[Cluster]:
    """Start or join Ray, and leave it again, whatever happens.

    Parameters
    ----------
    machines : Machines
    gpus : bool, optional
        Whether each worker has a GPU of its own; None: if there are any.

    Raises
    ------
    MachinesError
        Ray cannot be had, or not that many workers; in a line, within seconds.
    """
    machines.check()
    import ray

    with ExitStack() as stack:
        if machines.is_local:
            cluster = _local_cluster(machines, n_local_gpus() if gpus is None or gpus else 0)
            if not ray.is_initialized():
                stack.enter_context(_private_ray(cluster))
        else:
            if not ray.is_initialized():
                stack.enter_context(_joined_ray(str(machines.ray)))
            cluster = _shares(machines, gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield cluster


def n_local_gpus() -> int:
    """GPUs of this machine that may be used."""
    import torch

    return torch.cuda.device_count()


def check_answers(machines: Machines) -> None:
    """Raise `MachinesError` unless something that could be Ray answers at the address, if there is one."""
    address = os.environ.get("RAY_ADDRESS", "auto") if machines.ray == "auto" else machines.ray
    if machines.is_local or address is None or not re.fullmatch(_ADDRESS, address):
        return
    try:
        with socket.create_connection(_host_and_port(address), _WAIT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                _shake_hands(connection)
    except OSError as error:
        raise _no_answer(address, error.strerror or str(error)) from error


def _shake_hands(connection: socket.socket) -> None:
    """Say hello as HTTP/2 does, and expect a frame of settings: Ray would wait a minute for another kind of server."""
    connection.settimeout(_WAIT_S)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    answer = connection.recv(9, socket.MSG_WAITALL)
    if answer[3:4] != b"\x04":
        raise OSError("what answers is not Ray")


def _host_and_port(address: object) -> tuple[str, int]:
    found = re.fullmatch(_ADDRESS, address) if isinstance(address, str) else None
    if found is None or not 0 < int(found[3]) < 2**16:
        raise MachinesError(
            f"ray={address!r} is no address; use auto, local, or one such as '10.0.0.1:6379' or 'ray://10.0.0.1:10001'",
            argument="ray",
        )
    return found[2].strip("[]"), int(found[3])


def _no_answer(address: str, reason: str) -> MachinesError:
    return MachinesError(
        f"no Ray answers at ray={address!r} ({reason}); start one with: ray start --head, or give the address of one "
        "that runs",
        argument="ray",
    )


def _too_many(workers: int, there: str) -> MachinesError:
    return MachinesError(f"workers={workers} are too many: there are {there}; use fewer", argument="workers")


def _check_installed(argument: str) -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise MachinesError('ray is not installed; pip install "probesweep[ray]"', argument=argument)


def _local_cluster(machines: Machines, n_gpus: int) -> Cluster:
    n_workers = machines.local_workers(n_gpus)
    threads = max(len(os.sched_getaffinity(0)) // n_workers, 1)
    return Cluster(n_workers, threads, min(n_gpus, 1), threads, n_workers)


def _shares(machines: Machines, gpus: bool | None, nodes: Iterable[Mapping[str, float]]) -> Cluster:
    """Share the nodes of a cluster among workers, all alike."""
    usable = [node for node in nodes if node.get("CPU", 0) >= 1]
    with_gpus = [node for node in usable if node.get("GPU", 0) >= 1]
    if gpus and not with_gpus:
        raise MachinesError(f"the Ray cluster ray={machines.ray!r} has no GPUs; use device='cpu'", argument="device")
    if not usable:
        raise MachinesError(f"no node of ray={machines.ray!r} offers a CPU; add some to the cluster", argument="ray")
    if with_gpus and gpus is not False:
        n_there = int(sum(node["GPU"] for node in with_gpus))
        if machines.workers is not None and machines.workers > n_there:
            raise _too_many(machines.workers, f"{n_there} GPUs in the cluster, one for each worker")
        num_cpus = min(int(node["CPU"] // int(node["GPU"])) for node in with_gpus)
        n_workers = n_there if machines.workers is None else machines.workers
        per_machine = min(max(int(node["GPU"]) for node in with_gpus), n_workers)
        return Cluster(n_workers, num_cpus, 1, max(num_cpus, 1), per_machine)
    n_there = int(sum(node["CPU"] for node in usable))
    n_workers = len(usable) if machines.workers is None else machines.workers
    if n_workers > n_there:
        raise _too_many(n_workers, f"{n_there} CPUs in the cluster")
    # The most CPUs for each of as many workers.
    num_cpus = next(
        size for size in range(n_there // n_workers, 0, -1) if sum(n["CPU"] // size for n in usable) >= n_workers
    )
    per_machine = min(max(int(node["CPU"]) // num_cpus for node in usable), n_workers)
    return Cluster(n_workers, num_cpus, 0, num_cpus, per_machine)


@contextmanager
def _private_ray(cluster: Cluster) -> Generator[None]:
    """A Ray of our own on this machine, with a folder that goes with it."""
    base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="probesweep-", dir=base if len(base) <= _LONGEST_FOLDER - 20 else "/tmp", ignore_cleanup_errors=True
    ) as folder:
        changes = {
            # Without a token any user of this machine could run code here; without one of ours Ray leaves one behind
            # in the home folder.
            "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", _token()),
            "OMP_NUM_THREADS": str(cluster.threads),
        }
        options: dict[str, Any] = {
            "address": "local",
            "num_cpus": cluster.n_workers * cluster.num_cpus,
            "num_gpus": cluster.n_workers * cluster.num_gpus,
            "include_dashboard": False,
            "_temp_dir": folder,
            "_node_ip_address": "127.0.0.1",
            # What may be used of the memory was planned: Ray is not to end workers because others need some.
            "_system_config": {"memory_monitor_refresh_ms": 0},
        }
        with ExitStack() as stack:
            try:
                stack.enter_context(_running(changes, on_loopback=True, **options))
            except Exception as error:
                raise MachinesError(
                    f"Ray does not start on this machine: {_first_line(error)}", argument="workers"
                ) from error
            yield


@contextmanager
def _joined_ray(address: str) -> Generator[None]:
    """A Ray cluster that is already there."""
    check_answers(Machines(ray=address))
    shared = {
        name: value for name, value in os.environ.items() if name.startswith(_SHARED) and not _SECRET.search(name)
    }
    if address.startswith("ray://"):
        shared["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with ExitStack() as stack:
        try:
            stack.enter_context(_running({}, address=address, runtime_env={"env_vars": shared} if shared else None))
        except ImportError as error:
            raise MachinesError(
                f'ray={address!r} needs {error.name or error}; pip install "ray[client]"', argument="ray"
            ) from error
        except Exception as error:
            raise _no_answer(address, _first_line(error)) from error
        yield


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@cache
def _token() -> str:
    # One for all: Ray reads it once in a process.
    return secrets.token_hex(32)


@contextmanager
def _running(changes: Mapping[str, str], *, on_loopback: bool = False, **options: Any) -> Generator[None]:
    """Between `ray.init` and `ray.shutdown`, without a word from Ray."""
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray warns of what it will do to tasks without a GPU otherwise.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    address, folder = str(options["address"]), options.get("_temp_dir")
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with _environment({**quiet, **changes}), _loopback(on_loopback), _no_announcements():
            import ray
            from ray.job_config import JobConfig

            _read_token_again()
            if not address.startswith("ray://"):
                # Ray's client takes none: there the path is a variable.
                options["job_config"] = JobConfig(_py_driver_sys_path=_SearchPath(reversed(sys.path)))
            start = partial(
                ray.init,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
                **options,
            )
            own = _OwnThread(start, partial(_shut_down, folder))
        try:
            yield
        finally:
            own.end()
    finally:
        logger.setLevel(level)


class _OwnThread:
    """A thread for the whole life of Ray.

    No signal reaches it: Ray can be ended only once it runs, and replaces handlers of signals. It has to last: the
    processes of a private Ray end with the thread that started them.
    """

    def __init__(self, start: Callable[[], object], end: Callable[[], object]) -> None:
        self._start, self._end = start, end
        self._ready, self._leave = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.end()
            raise
        if self._error is not None:
            self.end()
            raise self._error

    def end(self) -> None:
        """Leave Ray."""
        self._leave.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._start()
        except Exception as error:
            self._error = error
        self._ready.set()
        self._leave.wait()
        self._end()


def _shut_down(folder: str | None) -> None:
    """Leave Ray; of a private one, wait until no process uses its folder any more."""
    import ray

    started: list[psutil.Process] = []
    for child in psutil.Process().children() if folder else ():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in child.cmdline()):
                started += [child, *child.children(recursive=True)]
    ray.shutdown()
    for process in psutil.wait_procs(started, timeout=_END_S)[1]:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(started, timeout=_END_S)


def _read_token_again() -> None:
    """Let Ray look whether there is a token, as for the first time.

    It remembers that of a private Ray, and the workers of a cluster without one would not get at this process.
    """
    core: Any = import_module("ray._raylet")
    # Older versions have no tokens.
    if hasattr(core, "AuthenticationTokenLoader"):
        core.AuthenticationTokenLoader.instance().reset_cache()
        core.Config.initialize("")


class _SearchPath(list[str]):
    """`sys.path` as Ray wants it, the last folder first.

    Ray adds the current folder in front, where it would hide the modules that the driver runs: it is left out.
    """

    def extend(self, more: Iterable[str]) -> None:
        """Add nothing."""


@contextmanager
def _environment(changes: Mapping[str, str]) -> Generator[None]:
    """Set some variables, and restore all of them."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _no_announcements() -> Generator[None]:
    """Have no thread that prints a paragraph for each worker that dies: they are replaced, or told of in a line."""
    from ray._private import worker

    before = getattr(worker, "listen_error_messages", None)

    def listen(*_: object) -> None:
        """To nothing."""

    worker.listen_error_messages = listen
    try:
        yield
    finally:
        worker.listen_error_messages = before


@contextmanager
def _loopback(wanted: bool) -> Generator[None]:
    """Let Ray take 127.0.0.1 at its word, so that it listens there only; it would use an address that others reach."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not wanted
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
