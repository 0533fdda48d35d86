"""A Ray cluster of three nodes on this machine, stores to train on, and cells that end the process that reads them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from activation_store.errors import StoreError
from activation_store.extraction.worker import ShardWorker
from activation_store.format.spec import COORDINATES, StoreSpec
from activation_store.store.writer import StoreWriter

LAYERS, POSITIONS = (0, 2, 5), (-2, -1)
N_FEATURES = 7


@contextmanager
def machine_for_ray(*, alone: bool = False) -> Generator[None]:
    """Wait until Ray may start: tests that start it run beside each other, but none beside one that wants to be alone.

    ``ray symmetric-run`` refuses to start beside another Ray, and at its end stops every Ray of the machine.
    """
    from ray._private.services import find_gcs_addresses

    with Path(tempfile.gettempdir(), f"probesweep-tests-ray-{os.getuid()}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        give_up = time.monotonic() + 60
        while alone and find_gcs_addresses() and time.monotonic() < give_up:
            time.sleep(0.5)  # those of finished tests end
        yield


@contextmanager
def three_nodes() -> Generator[str]:
    """Address of a cluster of three raylets with a CPU each."""
    from ray.cluster_utils import Cluster

    quiet: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={**quiet, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(wait=False, **quiet)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def write_stores(folder: Path) -> None:
    """Stores train.zarr and test.zarr of random activations, with a label that one cell knows, and classes."""
    for seed, (name, n_samples) in enumerate({"train": 40, "test": 24}.items()):
        rng = np.random.default_rng(seed)
        label = rng.random(n_samples)
        activations = rng.standard_normal((n_samples, len(LAYERS), len(POSITIONS), N_FEATURES)).astype(np.float32)
        activations[:, 1, 1, 0] += 4 * label.astype(np.float32)
        labels = {"success_rate": label, "right": (label + rng.normal(0, 0.2, n_samples) > 0.5).astype(np.float64)}
        spec = StoreSpec(
            n_samples=n_samples,
            layers=LAYERS,
            positions=POSITIONS,
            n_features=N_FEATURES,
            dtype="float32",
            shard_samples=16,
            coordinates=COORDINATES,
            label_columns=tuple(labels),
            fingerprint={"model": "m", "dataset": name, "label_columns": list(labels)},
            provenance={},
        )
        beside = {
            "n_tokens": rng.integers(5, 50, n_samples).astype(np.int32),
            "token_id": np.zeros((n_samples, 2), dtype=np.int32),
            "token": np.array([["<a>", "b"]] * n_samples, dtype=object),
            "prompt_hash": np.arange(n_samples, dtype=np.uint64) + np.uint64(1000 * seed),
            "question": np.array([f"{name} question {row}" for row in range(n_samples)], dtype=object),
            **labels,
        }
        with StoreWriter.create(folder / f"{name}.zarr", spec, beside) as writer:
            writer.add(np.arange(n_samples), activations)


class DeadlyCells:
    """Cells of an array; reading one of them kills the process, unless it is the one that made the object.

    Parameters
    ----------
    array : ``[sample, layer, position, feature]``
    deaths : folder in which each death leaves a file
    most : how often to do so
    """

    def __init__(self, array: np.ndarray, deaths: Path, most: int) -> None:
        self._array, self._deaths, self._most, self._maker = array, deaths, most, os.getpid()
        self.n_samples, n_layers, n_positions, self.n_features = array.shape
        self.layers, self.positions = tuple(range(n_layers)), tuple(range(-n_positions, 0))

    def cell_blocks(self, layer: Any, position: Any) -> Iterator[tuple[range, np.ndarray]]:
        if (layer, position) == (1, -1) and os.getpid() != self._maker:
            number = len(list(self._deaths.iterdir()))
            if number < self._most:
                (self._deaths / str(number)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield range(self.n_samples), self._array[:, layer, self.positions.index(position)]


class FaultyWorker(ShardWorker):
    """A worker that fails at a shard as `FAULT` in the environment says.

    ``{"shard": 3, "what": "die before", "most": 1, "folder": "/tmp/deaths"}``; a worker of the same name is needed in
    every process, and the environment reaches those of a private Ray.
    """

    def write(self, path: Any, shard: int) -> Any:
        fault = json.loads(os.environ["FAULT"])
        time.sleep(fault.get("seconds", 0))
        struck = shard == fault["shard"] and len(list(Path(fault["folder"]).iterdir())) < fault["most"]
        if not struck:
            return super().write(path, shard)
        (Path(fault["folder"]) / uuid.uuid4().hex).touch()
        if fault["what"] == "raise":
            raise StoreError("the disk of this worker is full")
        if fault["what"] == "die inside":
            threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGKILL]).start()
        if fault["what"] != "die before":
            super().write(path, shard)
        os.kill(os.getpid(), signal.SIGKILL)
        return None
