"""What workers cost: one process against one and two workers, and what the driver does for each shard."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from activation_store import Extraction
from activation_store.extraction.distributed import Workers
from activation_store.extraction.fill import OneProcess
from activation_store.format.spec import StoreSpec
from activation_store.store.writer import StoreWriter
from benchmarks.shared.known import KnownRun
from benchmarks.shared.measure import check_equal, progress
from benchmarks.shared.prompts import embedded_questions
from probesweep_ray import Machines, connected


@dataclass(frozen=True)
class Run:
    """One way to fill a store.

    Parameters
    ----------
    start_s : float
        Until Ray runs and the first worker (or this process) has loaded the model.
    fill_s, fill_cpu_s : float
        From then on: wall time, and CPU time of all processes.
    """

    start_s: float
    fill_s: float
    fill_cpu_s: float


def run_extraction(
    model: str, n_rows: int, workers: int | None, shard_samples: int, expected: np.ndarray | None
) -> tuple[Run, np.ndarray]:
    """Extract the embedded questions, repeated as often as it takes, with or without workers.

    Parameters
    ----------
    model : str
        As ``--model`` takes it.
    n_rows, shard_samples : int
        Rows, and rows of a shard.
    workers : int, optional
        None: in this process.
    expected : ndarray [row, layer, position, feature], optional
        What must come out.

    Returns
    -------
    Run, ndarray
        Times, and the activations.
    """
    with tempfile.TemporaryDirectory(prefix="probesweep-scale-") as folder:
        questions = embedded_questions()
        rows = [f"{questions[row % len(questions)]} ({row})" for row in range(n_rows)]
        pd.DataFrame({"question": rows, "success_rate": np.linspace(0, 1, n_rows)}).to_parquet(f"{folder}/q.parquet")
        extraction = Extraction(
            model, f"{folder}/q.parquet", f"{folder}/s.zarr", use_chat_template=True, device="cpu", workers=workers
        )
        job = extraction._job  # pyright: ignore[reportPrivateUsage]
        spec, began = job.spec(shard_samples), time.perf_counter()
        with _model(extraction.machines, job) as runner:
            begun = runner.begin(job.useful_prefix(), None)
            started = time.perf_counter()
            cpu_before = _cpu_seconds()
            spec = replace(spec, provenance={**spec.provenance, "batch_plan": begun.plan.describe()})
            with StoreWriter.create(Path(folder, "s.zarr"), spec, job.beside()) as writer:
                runner.fill(writer, begun.plan)
                done, cpu_after = time.perf_counter(), _cpu_seconds()
                found = writer.store()[:]
    if expected is not None:
        check_equal(found, expected, f"{workers} workers")
    return Run(started - began, done - started, cpu_after - cpu_before), found


@contextmanager
def _model(machines: Machines, job: Any) -> Generator[OneProcess | Workers]:
    if not machines.many:
        yield OneProcess(job)
        return
    with connected(machines, gpus=False) as cluster:
        crew = Workers(cluster, job.model_run, check_model=False)
        try:
            yield crew
        finally:
            crew.end()


def _cpu_seconds() -> float:
    """Of this process and all that it started."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def driver_cpu_per_shard(n_shards: int, n_workers: int) -> float:
    """CPU seconds of this process for each shard that workers run and commit in no time."""
    spec = StoreSpec(
        n_samples=n_shards,
        layers=(0,),
        positions=(-1,),
        n_features=8,
        dtype="float32",
        shard_samples=1,
        coordinates=(),
        label_columns=(),
        fingerprint={"model": "none"},
        provenance={},
    )
    run: Any = KnownRun(np.zeros(spec.shape, dtype=np.float32), 0.0)
    with (
        tempfile.TemporaryDirectory(prefix="probesweep-scale-") as folder,
        connected(Machines(workers=n_workers), gpus=False) as cluster,
    ):
        crew = Workers(cluster, run, check_model=False)
        try:
            plan = crew.begin(0, None).plan
            with StoreWriter.create(Path(folder, "s.zarr"), spec, {}) as writer:
                progress(f"dispatch: {n_shards} shards")
                before = time.process_time()
                crew.fill(writer, plan)
                return (time.process_time() - before) / n_shards
        finally:
            crew.end()
