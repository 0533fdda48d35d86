"""Stores of a language model's size, the command on them, and the original loop on some of their cells."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from activation_store.format.spec import StoreSpec
from activation_store.opening import open_activations
from activation_store.store.writer import StoreWriter
from benchmarks.shared.cells import Activations, Cells
from benchmarks.shared.measure import Limit, Report, Spread, StealClock, Table, hardware, progress, scratch_folder
from benchmarks.shared.peers import N_FOLDS, loop, ridge
from benchmarks.shared.race import seconds_of
from gpu_probes import sweep
from gpu_probes.results.saving import save_sweep

LABEL = "success_rate"
_SHARD_NBYTES = 2**28
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
        n_scored = _sweep(stores, size, device, scratch / "warm-up")
        inside, command = (
            [seconds_of(run, stores, size, device, scratch / f"{run.__name__}-{i}") for i in range(size.n_rounds)]
            for run in (_sweep, _command)
        )
        progress("the loop")
        n_looped, looped_s = _loop(stores, size)
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
    setting = {
        "device": _device_name(device),
        **asdict(size),
        "cells with a score": n_scored,
        "cpu stolen, %": clock.percent(),
    }
    title = (
        f"{size.n_cells} cells of {size.n_train:,} training and {size.n_test:,} test rows x {size.n_features} in "
        f"bfloat16, {N_FOLDS} folds, {len(size.alphas)} alphas; the stores are in the page cache"
    )
    limit = Limit("seconds from the stores to the JSON files", 10.0, Spread.of(inside))
    libraries = ("torch", "numpy", "scikit-learn")
    return Report("job", hardware(folder, libraries), setting, [Table(title, rows)], [limit])


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
        with StoreWriter.create(path, spec, {LABEL: labels}) as writer:
            for start in range(0, n_samples, spec.shard_samples):
                rows = np.arange(start, min(start + spec.shard_samples, n_samples))
                block = activations.draw(len(rows), [size.n_layers, size.n_positions])
                block += labels[rows, None, None, None].astype(np.float32) * direction
                writer.add(rows, block.astype(spec.numpy_dtype))
    return paths


def _sweep(stores: tuple[Path, Path], size: Size, device: str, output: Path) -> int:
    """From the stores to the JSON files, in this process; returns the number of cells with a score."""
    train, test = (open_activations(path) for path in stores)
    result = sweep(
        *(train, train.labels[LABEL], test, test.labels[LABEL]),
        alphas=size.alphas, k_fold=True, n_folds=N_FOLDS, nested_cv=False, device=device,
    )  # fmt: skip
    save_sweep(result, output)
    return int(np.isfinite(result.cv_score).sum())


def _command(stores: tuple[Path, Path], size: Size, device: str, output: Path) -> None:
    """Do the same as a user does, in a process of its own."""
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

        parallel(delayed(_import)() for _ in range(n_cores))
        seconds = seconds_of(work)
    return len(chosen), seconds * len(size.alphas) / len(few)


def _import() -> None:
    """Nothing: what a worker imports is not the loop's work."""


def _loop_cell(stores: tuple[Path, Path], layer: int, position: int, alphas: Sequence[float]) -> None:
    train, test = (open_activations(path) for path in stores)
    features = [store.cell(layer, position).astype(np.float32)[:, None, None] for store in (train, test)]
    labels = [store.labels[LABEL].to_numpy(np.float64) for store in (train, test)]
    with threadpool_limits(1):
        loop(Cells(*features, *labels), 1, alphas, np.float32, ridge)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
