"""All cells of a store on an object store, by this package, by bare range requests and by zarr-python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import obstore
import zarr

from activation_store.files.objects import Bucket
from activation_store.files.requests import connect
from activation_store.format.spec import ARRAY
from activation_store.store.reader import ActivationStore
from benchmarks.scale.stores import Size, bucket, shard_values, write_store
from benchmarks.shared.measure import (
    Contender,
    Spread,
    Table,
    Target,
    Timings,
    check_equal,
    interleave,
)

OURS, ALL, RAW, ZARR = "ours, cell by cell", "ours, .cells()", "obstore, ranges", "zarr-python, ObjectStore"
FULL, QUICK = Size(8, 1000, 12, 2, 576), Size(3, 50, 2, 2, 64)

Read = Callable[[], Iterator[np.ndarray]]


def measure_reads(size: Size, n_rounds: int) -> tuple[Table, list[Target]]:
    """Time all cells, and the processor's time of this process."""
    with bucket() as address:
        address = f"{address}/train.zarr"
        write_store(address, size)
        expected = np.concatenate([shard_values(size, shard) for shard in range(size.n_shards)])
        seconds: dict[str, list[float]] = {}
        contenders = [_contender(name, read, expected, seconds) for name, read in _readers(address, size).items()]
        timings = interleave(contenders, n_rounds=n_rounds, n_bytes=size.nbytes)
    cpu = {name: Spread.of(found[-n_rounds:]) for name, found in seconds.items()}
    return _table(timings, cpu, size), [
        Target("all cells, ours / bare range requests", 0.9, timings.ratio(OURS, RAW)),
        Target("all cells, ours / zarr-python", 5.0, timings.ratio(OURS, ZARR)),
    ]


def _readers(address: str, size: Size) -> dict[str, Read]:
    store = ActivationStore.open(address)
    layout, client = size.spec.layout, connect(address)
    array: Any = zarr.open_group(Bucket(address).zarr_store(), mode="r")[ARRAY]
    cells = list(product(range(size.n_layers), range(size.n_positions)))

    def ours() -> Iterator[np.ndarray]:
        for layer_idx, position_idx in cells:
            yield store.cell(store.layers[layer_idx], store.positions[position_idx])

    def in_order() -> Iterator[np.ndarray]:
        for _, values in store.cells():
            yield values

    def ranges() -> Iterator[np.ndarray]:
        def ask(cell: tuple[int, int], shard: int) -> Any:
            start = layout.chunk_offset(*cell)
            path = f"{ARRAY}/{layout.shard_key(shard)}"
            return obstore.get_range(client, path, start=start, length=layout.values_nbytes)

        parts = [(cell, shard) for cell in cells for shard in range(size.n_shards)]
        with ThreadPoolExecutor(Bucket.n_in_flight) as pool:
            found = pool.map(ask, *zip(*parts, strict=True))
            for _ in cells:
                blocks = [np.frombuffer(next(found), dtype=np.float32) for _ in range(size.n_shards)]
                yield np.concatenate(blocks).reshape(-1, size.n_features)

    def plain() -> Iterator[np.ndarray]:
        for layer_idx, position_idx in cells:
            yield np.asarray(array[:, layer_idx, position_idx])

    return {OURS: ours, ALL: in_order, RAW: ranges, ZARR: plain}


def _contender(name: str, read: Read, expected: np.ndarray, seconds: dict[str, list[float]]) -> Contender:
    def action() -> None:
        begun = time.process_time()
        for _ in read():
            pass
        seconds.setdefault(name, []).append(time.process_time() - begun)

    def prepare(round_idx: int) -> Callable[[], object]:
        if round_idx == 0:
            for number, values in enumerate(read()):
                cell = np.unravel_index(number, expected.shape[1:3])
                check_equal(values, np.ascontiguousarray(expected[:, *cell]), f"{name}: cell {number}")
        return action

    return Contender(name, prepare, lambda _: None)


def _table(timings: Timings, cpu: dict[str, Spread], size: Size) -> Table:
    n_cells = size.n_layers * size.n_positions
    table = timings.table(
        f"read of {n_cells} cells of {size.cell_nbytes / 1e6:.1f} MB, {size.n_shards} shards, SeaweedFS on loopback",
        {"x bare ranges": RAW, "x zarr-python": ZARR},
    )
    rows = [
        {**row, "seconds": Spread.of(timings.seconds[name]), "CPU seconds": cpu[name]}
        for name, row in zip(timings.seconds, table.rows, strict=True)
    ]
    return Table(table.title, rows)
