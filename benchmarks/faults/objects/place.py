"""An object store for the job: one server for each process, and a fresh address each time."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from multiprocessing.util import Finalize
from unittest import mock

from activation_store.files import lease, requests
from activation_store.files.storage import Location
from activation_store.format.journal import LOCK
from activation_store.store.reader import ActivationStore
from benchmarks.faults.disk import Tree
from benchmarks.faults.job import Job, ignore, same_bits, small_job, store_at
from benchmarks.shared.objects import Server, delete_objects, read_objects, seaweedfs, write_objects

BUCKET = "faults"


@dataclass(frozen=True)
class Limits:
    """For how long requests are repeated and a lock lasts, all of it shorter than in earnest.

    Parameters
    ----------
    attempt_s, try_s : float
        One attempt, and all of them.
    renew_s, lease_s : float
        Between two renewals of a lock, and how long it lasts.
    """

    attempt_s: float = 10.0
    try_s: float = 10.0
    renew_s: float = 5.0
    lease_s: float = 40.0

    def set(self) -> ExitStack:
        """Work with these until the stack is closed."""
        stack = ExitStack()
        constants = {
            (requests, "REQUEST_SECONDS"): self.attempt_s,
            (requests, "TRY_SECONDS"): self.try_s,
            (requests, "FIRST_SECONDS"): self.try_s,
            (lease, "RENEW_SECONDS"): self.renew_s,
            (lease, "LEASE_SECONDS"): self.lease_s,
        }
        for (module, name), value in constants.items():
            stack.enter_context(mock.patch.object(module, name, value))
        return stack


@cache
def server() -> Server:
    """The server of this process, started when it is first needed."""
    stack = ExitStack()
    started = stack.enter_context(seaweedfs())
    # A worker of multiprocessing leaves without what `atexit` knows.
    Finalize(None, stack.close, exitpriority=1)
    started.make_bucket(BUCKET)
    return started


@contextmanager
def reaching(env: Mapping[str, str]) -> Generator[None]:
    """With these variables in the environment."""
    with mock.patch.dict("os.environ", env):
        yield


@dataclass(frozen=True)
class BucketJob(Job):
    """The job on the server of this process."""

    @cached_property
    def reference(self) -> Tree:
        """What an uninterrupted run leaves: the same bytes as on a disk, without folders and the lock."""
        written = replace(self, start={}, repairing=False)
        with written.begun() as root:
            written.run(root)
            return written.tree(root)

    @cached_property
    def on_disk(self) -> Tree:
        """What an uninterrupted run leaves on a disk, without folders and the lock."""
        left = Job(self.spec, seed=self.seed).reference
        return {path: data for path, data in left.items() if data is not None and not path.endswith(f"/{LOCK}")}

    def tree(self, root: Location) -> Tree:
        """All objects below an address."""
        return dict(read_objects(server().env, str(root), self.on_disk))

    @contextmanager
    def begun(self, *, real_disk: bool = False) -> Generator[Location]:
        """An address that was never used, with what is there before; the server is reached without a proxy."""
        root = f"s3://{BUCKET}/{secrets.token_hex(8)}"
        with reaching(server().env), Limits().set():
            write_objects(server().env, root, {path: data or b"" for path, data in self.start.items()})
            yield root
            delete_objects(server().env, root, self.tree(root))


@dataclass(frozen=True)
class Reading(BucketJob):
    """Reads all of a finished store, and checks it."""

    @cached_property
    def reference(self) -> Tree:
        """Reading changes nothing."""
        return self.start

    def run(self, root: Location, acknowledge: Callable[[int], None] = ignore) -> None:
        """Raise what is wrong with it."""
        store = ActivationStore.open(store_at(root))
        for place, found in store.cells():
            layer_idx, position_idx = store.layers.index(place[0]), store.positions.index(place[1])
            assert same_bits(found, self.values[:, layer_idx, position_idx]), f"{place} is read as other values"
        for problem in store.verify():
            raise problem
        for shard in range(self.n_shards):
            acknowledge(shard)


def bucket_job(dtype: str = "float32") -> BucketJob:
    """The small job."""
    return BucketJob(small_job(dtype).spec)
