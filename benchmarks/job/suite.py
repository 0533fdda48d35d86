"""Stores of a language model's size, the command on them, and the original loop on some of their cells."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from activation_store.format.spec import StoreSpec
from activation_store.opening import open_activations
from activation_store.store.writer import StoreWriter
from benchmarks.job.agreement import Difference, agreement_limits, agreement_table, differences
from benchmarks.shared.card import CardMemory, device_facts, device_name, watch_cards
from benchmarks.shared.cells import Activations, Cells, make_cells
from benchmarks.shared.measure import Limit, Report, Spread, StealClock, Table, hardware, progress, scratch_folder
from benchmarks.shared.peers import N_FOLDS, loop, ridge
from benchmarks.shared.race import seconds_of
from gpu_probes import Cell, SweepResult, sweep
from gpu_probes.features.combine import select_cells
from gpu_probes.results.saving import save_sweep
from gpu_probes.search.devices import resolve_devices
from gpu_probes.search.sweep import plan_sweep

LABEL = "success_rate"
_SHARD_NBYTES = 2**28
# Shards of which each takes some two gigabytes while it is drawn.
_DRAWN_AT_ONCE = 4
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """Cells, rows and alphas; cells of the loop per core, and rounds of ours."""

    n_layers: int
    n_positions: int
    n_features: int
    n_train: int
    n_test: int
    alphas: tuple[float, ...]
    loop_cells_per_core: int
    n_rounds: int

    @property
    def n_cells(self) -> int:
        return self.n_layers * self.n_positions

    @property
    def disk_nbytes(self) -> int:
        return 2 * self.n_cells * self.n_features * (self.n_train + self.n_test)


_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 5, 10))
FULL = Size(29, 5, 1536, 7500, 5000, _ALPHAS, loop_cells_per_core=1, n_rounds=3)
QUICK = Size(3, 2, 32, 300, 200, _ALPHAS, loop_cells_per_core=1, n_rounds=1)


def measure_job(size: Size, folder: Path, device: str) -> Report:
    """Write the stores, run everything, remove them."""
    clock = StealClock()
    with scratch_folder(folder, 2 * size.disk_nbytes) as scratch:
        progress("writing the stores")
        stores = _write_stores(size, scratch)
        progress("ours")
        # The sweep that warms up is the one whose memory is watched: nothing is kept yet from an earlier one.
        foretold = _foretold_nbytes(stores, size, device)
        peak, result = watch_cards(resolve_devices(device), lambda: _sweep(stores, size, device, scratch / "warm-up"))
        inside, command = (
            [seconds_of(run, stores, size, device, scratch / f"{run.__name__}-{i}") for i in range(size.n_rounds)]
            for run in (_sweep, _command)
        )
        progress("the same on the CPU")
        different = _differences(stores, size, result)
        progress("the loop")
        n_looped, looped_s = _loop(stores, size)
    setting = {
        "device": device_name(device),
        **asdict(size),
        "cells with a score": int(np.isfinite(result.cv_score).sum()),
        "cpu stolen, %": clock.percent(),
    }
    tables = [_times(size, inside, command, n_looped, looped_s), agreement_table(different)]
    targets = [Limit("seconds from the stores to the JSON files", 10.0, Spread.of(inside))]
    targets += agreement_limits(different)
    if peak is not None:
        memory = CardMemory(foretold, peak)
        tables.append(
            Table("peak memory of the card: the plan's, and its tensors'", [{"what": "ours", **memory.row()}])
        )
        targets.append(memory_limit(memory))
    facts = hardware(folder, ("torch", "numpy", "scikit-learn")) | device_facts(device)
    return Report("job", facts, setting, tables, targets)


def memory_limit(memory: CardMemory) -> Limit:
    """As near as on a CPU."""
    off = abs(memory.ratio - 1)
    return Limit("measured / foretold peak memory of the card: distance from 1", 0.2, Spread.of([off]))


def _times(size: Size, inside: Sequence[float], command: Sequence[float], n_looped: int, looped_s: float) -> Table:
    loop_s = looped_s * size.n_cells / n_looped
    rows = [
        {"what": "ours, from the stores to the JSON files", "seconds": Spread.of(inside)},
        {"what": "the command, the imports included", "seconds": Spread.of(command)},
        {
            "what": f"scikit-learn loop in float32 on all cores ({n_looped} of {size.n_cells} cells, 4 of 10 alphas "
            "timed, the rest extrapolated)",
            "seconds": Spread.of([loop_s]),
        },
        {"what": "loop / ours", "seconds": Spread.of([loop_s / seconds for seconds in inside])},
    ]
    title = (
        f"{size.n_cells} cells of {size.n_train:,} training and {size.n_test:,} test rows x {size.n_features} in "
        f"bfloat16, {N_FOLDS} folds, {len(size.alphas)} alphas; the stores are in the page cache"
    )
    return Table(title, rows)


def _write_stores(size: Size, folder: Path) -> tuple[Path, Path]:
    """Write activations that tell a part of their label."""
    rng, activations = np.random.default_rng(0), Activations(size.n_features)
    direction = 0.1 * rng.standard_normal(size.n_features, dtype=np.float32)
    paths = folder / "train.zarr", folder / "test.zarr"
    for path, n_samples in zip(paths, (size.n_train, size.n_test), strict=True):
        spec = StoreSpec(
            n_samples=n_samples,
            layers=tuple(range(size.n_layers)),
            positions=tuple(range(-size.n_positions, 0)),
            n_features=size.n_features,
            dtype="bfloat16",
            shard_samples=min(_SHARD_NBYTES // (2 * size.n_cells * size.n_features), n_samples),
            coordinates=(),
            label_columns=(LABEL,),
            fingerprint={},
            provenance={},
        )
        labels = rng.standard_normal(n_samples)
        shards = [
            np.arange(n_samples)[start:][: spec.shard_samples] for start in range(0, n_samples, spec.shard_samples)
        ]

        def draw(rows: np.ndarray, spec: StoreSpec = spec, labels: np.ndarray = labels) -> np.ndarray:
            own = np.random.default_rng([len(labels), int(rows[0])])
            block = activations.draw(len(rows), [size.n_layers, size.n_positions], own)
            block += labels[rows, None, None, None].astype(np.float32) * direction
            return block.astype(spec.numpy_dtype)

        with StoreWriter.create(path, spec, {LABEL: labels}) as writer, ThreadPoolExecutor(_DRAWN_AT_ONCE) as pool:
            for first in range(0, len(shards), _DRAWN_AT_ONCE):
                some = shards[first : first + _DRAWN_AT_ONCE]
                for rows, block in zip(some, pool.map(draw, some), strict=True):
                    writer.add(rows, block)
    return paths


def _options(size: Size, device: str) -> dict[str, Any]:
    return {"alphas": size.alphas, "k_fold": True, "n_folds": N_FOLDS, "nested_cv": False, "device": device}


def _sweep(stores: tuple[Path, Path], size: Size, device: str, output: Path) -> SweepResult:
    """From the stores to the JSON files, in this process."""
    train, test = (open_activations(path) for path in stores)
    result = sweep(train, train.labels[LABEL], test, test.labels[LABEL], **_options(size, device))
    save_sweep(result, output)
    return result


def _foretold_nbytes(stores: tuple[Path, Path], size: Size, device: str) -> int:
    """Memory that the plan of this sweep foretells for a device."""
    train, test = (open_activations(path) for path in stores)
    labels = ({LABEL: store.labels[LABEL]} for store in (train, test))
    planned = plan_sweep(train, next(labels), test, next(labels), **_options(size, device))
    return max(group.plan.predicted_bytes for group in planned.groups)


def _differences(stores: tuple[Path, Path], size: Size, found: SweepResult) -> list[Difference]:
    """A few cells, fitted again on the CPU, against what was found."""
    train, test = (open_activations(path) for path in stores)
    layers, position = sorted({0, size.n_layers // 2, size.n_layers - 1}), -1
    few_train, few_test = (select_cells(store, layers, [position]) for store in (train, test))
    expected = sweep(few_train, train.labels[LABEL], few_test, test.labels[LABEL], **_options(size, "cpu"))
    return differences(found, expected, [Cell(layer, position) for layer in layers])


def _command(stores: tuple[Path, Path], size: Size, device: str, output: Path) -> None:
    """Do the same as a user does, in a process of its own."""
    torch.cuda.empty_cache()  # what this process keeps of the card is not free for that one
    train, test = map(str, stores)
    arguments = [
        "--train_activations",
        train,
        "--test_activations",
        test,
        "--output_dir",
        str(output),
        "--k_fold",
        "--no_nested_cv",
    ]
    arguments += ["--alphas", ",".join(map(repr, size.alphas)), "--device", device]
    subprocess.run(
        [sys.executable, "-m", "probesweep", "train", *arguments], cwd=_REPOSITORY, check=True, capture_output=True
    )


def _loop(stores: tuple[Path, Path], size: Size) -> tuple[int, float]:
    """Cells that the loop did, one on each core at a time, and the seconds that it would take for all alphas."""
    n_cores, few = len(os.sched_getaffinity(0)), size.alphas[::3]
    places = [(layer, position) for layer in range(size.n_layers) for position in range(-size.n_positions, 0)]
    chosen = places[: n_cores * size.loop_cells_per_core]
    with Parallel(n_jobs=n_cores) as parallel:

        def work() -> None:
            parallel(delayed(_loop_cell)(stores, *place, few) for place in chosen)

        parallel(delayed(_get_ready)(stores) for _ in range(n_cores))
        seconds = seconds_of(work)
    return len(chosen), seconds * len(size.alphas) / len(few)


def _get_ready(stores: tuple[Path, Path]) -> None:
    """What a worker imports, some of it only when it is used, is not the loop's work."""
    for path in stores:
        open_activations(path).labels[LABEL].to_numpy(np.float64)
    loop(make_cells(20, 8, 1), 1, (1.0,), np.float32, ridge)


def _loop_cell(stores: tuple[Path, Path], layer: int, position: int, alphas: Sequence[float]) -> None:
    train, test = (open_activations(path) for path in stores)
    features = [store.cell(layer, position).astype(np.float32)[:, None, None] for store in (train, test)]
    labels = [store.labels[LABEL].to_numpy(np.float64) for store in (train, test)]
    with threadpool_limits(1):
        loop(Cells(*features, *labels), 1, alphas, np.float32, ridge)
