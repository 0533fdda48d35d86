"""Several processes fill one store by Ray, and one of them dies: a worker, a node of the cluster, or the driver."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from activation_store.errors import StoreError
from activation_store.extraction import distributed
from activation_store.extraction.distributed import Workers
from activation_store.extraction.worker import ShardWorker
from benchmarks.faults.aftermath import aftermath
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import HEALTH, Job, large_job
from benchmarks.faults.scenarios import JOURNAL_PATH
from benchmarks.shared.known import KnownRun
from probesweep_ray import Cluster, Machines, connected

N_WORKERS = 2
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Death:
    """When a worker dies: at a shard, before it is run, while it is run or written, or after it is committed."""

    shard: int
    phase: str
    folder: Path

    def is_due(self, shard: int) -> bool:
        """Only once: the next worker gets over it."""
        return shard == self.shard and not any(self.folder.iterdir())


@dataclass(frozen=True)
class MortalRun(KnownRun):
    """A run in which a worker dies."""

    death: Death | None = None


class MortalWorker(ShardWorker):
    """A worker that dies when its run says so."""

    def write(self, path: Any, shard: int) -> Any:
        """As `ShardWorker.write`."""
        death: Death | None = getattr(self._run, "death", None)
        if death is None or not death.is_due(shard):
            return super().write(path, shard)
        (death.folder / "died").touch()
        if death.phase == "inside":
            threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGKILL]).start()
        if death.phase != "before":
            super().write(path, shard)
        os.kill(os.getpid(), signal.SIGKILL)
        return None


def killed_workers(points: Sequence[tuple[int, str]]) -> Counts:
    """Kill a worker at each of these shards and phases; the run goes on without it."""
    counts, job = Counts(), large_job()
    assert job.reference
    with connected(Machines(workers=N_WORKERS), gpus=False) as cluster:
        for shard, phase in points:
            with job.begun(real_disk=True) as root:
                deaths = root.parent / f"{root.name}-deaths"
                deaths.mkdir()
                death = Death(shard, phase, deaths)
                error = _attempted(partial(share, job, root, cluster, death, seconds=0.01))
                what = f"worker killed {phase} shard {shard}"
                counts += _judged(job, root, what, error)
                counts.fired += (deaths / "died").exists()
                counts.expect((deaths / "died").exists(), f"{what}: never came")
                (deaths / "died").unlink(missing_ok=True)
                deaths.rmdir()
    return counts


def killed_nodes(n_kills: int, seed: int) -> Counts:
    """Kill a raylet, and with it all workers of a node, at a random time; a new node joins."""
    from ray.cluster_utils import Cluster as Nodes

    counts, job, chosen = Counts(), large_job(), random.Random(seed)
    assert job.reference
    about: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 2**27}
    nodes = Nodes(initialize_head=True, head_node_args={**about, "include_dashboard": False})
    try:
        added = [nodes.add_node(**about) for _ in range(2)]
        for _ in range(n_kills):
            nodes.wait_for_nodes()
            with job.begun(real_disk=True) as root, connected(Machines(ray=nodes.address), gpus=False) as cluster:
                victim = added.pop(chosen.randrange(len(added)))
                n_shards = chosen.randrange(1, job.n_shards - 1)
                killer = threading.Thread(target=_kill_when, args=(root, n_shards, victim))
                killer.start()
                error = _attempted(partial(share, job, root, cluster, None, seconds=0.05))
                killer.join()
                counts += _judged(job, root, f"node killed after {n_shards} shards", error)
                counts.fired += 1
            nodes.remove_node(victim)
            added.append(nodes.add_node(**about))
    finally:
        nodes.shutdown()
    return counts


def killed_drivers(n_kills: int, seed: int) -> Counts:
    """Kill the driver, whose workers may live on for a while; another takes the store up at once, with workers."""
    counts, job, chosen = Counts(), large_job(), random.Random(seed)
    assert job.reference
    context = multiprocessing.get_context("spawn")
    for _ in range(n_kills):
        with job.begun(real_disk=True) as root:
            n_shards = chosen.randrange(1, job.n_shards - 2)
            driver = context.Process(target=_drive, args=(root,))
            driver.start()
            _wait_for(root, n_shards)
            committed = _committed(root)
            assert driver.pid is not None
            os.kill(driver.pid, signal.SIGKILL)
            driver.join()
            with connected(Machines(workers=N_WORKERS), gpus=False) as cluster:
                error = _attempted(partial(share, job, root, cluster, None, seconds=0.01))
            counts += _judged(job, root, f"driver killed after {n_shards} shards", error, committed)
            counts.fired += 1
    return counts


def two_drivers(n_times: int) -> Counts:
    """A second driver on a store that is being written is refused, and does no harm."""
    counts, job = Counts(), large_job()
    assert job.reference
    with connected(Machines(workers=N_WORKERS), gpus=False) as cluster:
        for _ in range(n_times):
            with job.begun(real_disk=True) as root:
                errors: list[Exception | None] = []

                def first(root: Path = root, errors: list[Exception | None] = errors) -> None:
                    errors.append(_attempted(partial(share, job, root, cluster, None, seconds=0.05)))

                thread = threading.Thread(target=first)
                thread.start()
                _wait_for(root, 1)
                refused = _attempted(partial(share, job, root, cluster, None, seconds=0.01))
                thread.join()
                counts += _judged(job, root, "two drivers", errors[0])
                counts.fired += 1
                counts.refused += 1
                counts.expect("is being written by" in str(refused), f"two drivers: the second got {refused!r}")
    return counts


def share(job: Job, root: Path, cluster: Cluster, death: Death | None, *, seconds: float) -> None:
    """Create the store or take it up, and fill it with workers."""
    run: Any = MortalRun(job.values, seconds, death=death)
    with mock.patch.object(distributed, "ShardWorker", MortalWorker):
        crew = Workers(cluster, run, check_model=False)
        try:
            with job.writer(root) as writer:
                if writer.pending_shards:
                    crew.fill(writer, crew.begin(0, None).plan)
                writer.finish(HEALTH)
        finally:
            crew.end()


def _drive(root: Path) -> None:
    """In a process of its own."""
    with connected(Machines(workers=N_WORKERS), gpus=False) as cluster:
        share(large_job(), root, cluster, None, seconds=0.05)


def _attempted(work: Callable[[], None]) -> Exception | None:
    try:
        work()
    except StoreError as error:
        return error
    return None


def _judged(job: Job, root: Path, what: str, error: Exception | None, committed: Sequence[int] | None = None) -> Counts:
    """What is there is right, and one process finishes it; after a run that came to its end there is nothing left."""
    counts = aftermath(job, root, range(job.n_shards) if committed is None else committed, what)
    counts.expect(error is None, f"{what}: {error!r}")
    return counts


def _committed(root: Path) -> list[int]:
    return sorted(int(path.name) for path in (root / JOURNAL_PATH).glob("*") if path.name.isdecimal())


def _wait_for(root: Path, n_shards: int) -> None:
    give_up = time.monotonic() + _TIMEOUT_S
    while len(_committed(root)) < n_shards:
        assert time.monotonic() < give_up, "nothing is committed"
        time.sleep(0.01)


def _kill_when(root: Path, n_shards: int, node: Any) -> None:
    _wait_for(root, n_shards)
    for process in node.all_processes["raylet"]:
        raylet = psutil.Process(process.process.pid)
        for each in (*raylet.children(recursive=True), raylet):
            each.kill()
