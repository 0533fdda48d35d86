"""``python -m benchmarks store``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.shared.measure import Report, StealClock, Table, Target, hardware, progress, scratch_folder
from benchmarks.store.data import DTYPES, FULL, QUICK, Size, make_values
from benchmarks.store.reading import (
    Files,
    cell_table,
    measure_cells,
    measure_sequence,
    measure_slices,
    read_targets,
    sequence_table,
    slice_table,
)
from benchmarks.store.writing import PLAIN, measure_writes, write_table, write_targets

LIBRARIES = ("numpy", "zarr", "tensorstore", "google-crc32c")


@click.command()
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Small files: a smoke test, not a measurement.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Parent of the temporary folder for the files; by default the current folder.",
)
def main(json_path: Path | None, quick: bool, folder: Path) -> None:
    """Write and read the same activations with this package, zarr-python, TensorStore and plain files."""
    measure_store(QUICK if quick else FULL, folder).publish(json_path)


def measure_store(size: Size, folder: Path) -> Report:
    """Measure writes and reads for every data type."""
    clock = StealClock()
    tables: list[Table] = []
    targets: list[Target] = []
    disk: list[str] = []
    for dtype in DTYPES:
        with scratch_folder(folder, size.disk_nbytes) as workplace:
            found = _measure_dtype(workplace, size, dtype)
        tables += found[0]
        targets += found[1]
        disk.append(found[2])
    machine = hardware(folder, LIBRARIES) | {"disk, plain write + fsync, GB/s": ", ".join(disk)}
    setting = size.describe() | {"cpu stolen, %": clock.percent()}
    return Report("store", machine, setting, tables, targets)


def _measure_dtype(folder: Path, size: Size, dtype: str) -> tuple[list[Table], list[Target], str]:
    spec = size.spec(dtype, size.n_shards)
    values = make_values(spec)
    progress(f"{dtype}: writes")
    (folder / "writes").mkdir()
    writes = measure_writes(folder / "writes", size, dtype, values)
    progress(f"{dtype}: cells")
    files = Files.write(folder, spec, values)
    cells = measure_cells(files, size)
    progress(f"{dtype}: sequence and slices")
    tables = [
        write_table(writes, dtype),
        cell_table(cells, dtype, spec),
        sequence_table(measure_sequence(files, size), dtype),
        slice_table(measure_slices(files, size), dtype, size),
    ]
    return tables, write_targets(writes, dtype) + read_targets(cells, dtype), f"{writes.speed(PLAIN).median:.2f}"
