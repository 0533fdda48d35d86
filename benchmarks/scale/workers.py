"""What workers cost: one process against one and two workers, and what the driver does for each shard."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
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
from benchmarks.shared.measure import Limit, Spread, Table, Target, check_equal, progress
from benchmarks.shared.prompts import embedded_questions
from probesweep_ray import Machines, connected


@dataclass(frozen=True)
class Size:
    """What is extracted.

    Parameters
    ----------
    model : str
        As ``--model`` takes it.
    n_rows, shard_samples : int
        Rows, and rows of a shard.
    n_rounds : int
        Of all ways, in turn.
    """

    model: str
    n_rows: int
    shard_samples: int
    n_rounds: int


FULL, QUICK = Size("smollm2", 1000, 50, 3), Size("smollm2", 24, 6, 1)
DIRECT = "one process"


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


def measure_workers(size: Size) -> tuple[Table, list[Limit]]:
    """Wall and CPU time of one process, one worker and two; all must write the same values, to the last bit or so."""
    ways: dict[str, int | None] = {DIRECT: None, "1 worker": 1, "2 workers": 2}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    expected: np.ndarray | None = None
    for round_idx in range(size.n_rounds):
        for name, workers in ways.items():
            progress(f"round {round_idx + 1}: {name}")
            run, found = run_extraction(size, workers)
            runs[name].append(run)
            expected = found if expected is None else expected
            if workers == 1:
                check_equal(found, expected, name)
            # Two workers have half of the threads each, and with them other batches.
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    rows = [
        {
            "": name,
            "start, s": Spread.of([run.start_s for run in found]),
            "fill, s": Spread.of([run.fill_s for run in found]),
            "CPU, s": Spread.of([run.fill_cpu_s for run in found]),
            "fill / one process": _ratio(found, runs[DIRECT], "fill_s"),
            "CPU / one process": _ratio(found, runs[DIRECT], "fill_cpu_s"),
        }
        for name, found in runs.items()
    ]
    title = f"extract of {size.n_rows} rows in shards of {size.shard_samples} (start: until Ray and the model are up)"
    cost = Limit("fill by 1 worker / by one process", 1.05, _ratio(runs["1 worker"], runs[DIRECT], "fill_s"))
    return Table(title, rows), [cost]


def _ratio(runs: Sequence[Run], base: Sequence[Run], name: str) -> Spread:
    return Spread.of([getattr(one, name) / getattr(other, name) for one, other in zip(runs, base, strict=True)])


def measure_dispatch(n_shards: int) -> tuple[Table, list[Target]]:
    """What the driver does for each shard, and how many it could hand out with one core."""
    seconds = Spread.of([driver_cpu_per_shard(n_shards, 2) for _ in range(3)])
    rate = Spread(1 / seconds.median, 1 / seconds.high, 1 / seconds.low)
    row = {"CPU of the driver, ms per shard": Spread(*(1000 * value for value in astuple(seconds))), "shards/s": rate}
    return Table(f"driver with 2 workers that run {n_shards} shards in no time", [row]), [
        Target("shards that one driver can hand out in a second", 200, rate)
    ]


def run_extraction(size: Size, workers: int | None) -> tuple[Run, np.ndarray]:
    """Extract the embedded questions, repeated as often as it takes, in this process (None) or by workers."""
    with tempfile.TemporaryDirectory(prefix="probesweep-scale-") as folder:
        questions = embedded_questions()
        rows = [f"{questions[row % len(questions)]} ({row})" for row in range(size.n_rows)]
        pd.DataFrame({"question": rows, "success_rate": np.linspace(0, 1, size.n_rows)}).to_parquet(
            f"{folder}/q.parquet"
        )
        extraction = Extraction(
            size.model, f"{folder}/q.parquet", f"{folder}/s.zarr", use_chat_template=True, device="cpu", workers=workers
        )
        job = extraction._job  # pyright: ignore[reportPrivateUsage]
        spec, began = job.spec(size.shard_samples), time.perf_counter()
        with _model(extraction.machines, job) as runner:
            begun = runner.begin(job.useful_prefix(), None)
            started = time.perf_counter()
            cpu_before = _cpu_seconds()
            spec = replace(spec, provenance={**spec.provenance, "batch_plan": begun.plan.describe()})
            with StoreWriter.create(Path(folder, "s.zarr"), spec, job.beside()) as writer:
                runner.fill(writer, begun.plan)
                done, cpu_after = time.perf_counter(), _cpu_seconds()
                found = writer.store()[:]
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
