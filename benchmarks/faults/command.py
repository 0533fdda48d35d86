"""``python -m benchmarks faults``."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks.faults.counts import Counts, broken_list, table
from benchmarks.faults.suite import FULL, QUICK, Task, parts
from benchmarks.shared.measure import hardware


@click.command("faults")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the counts to this file.")
@click.option("--quick", is_flag=True, help="A sample of everything, about a minute.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything drawn at random.")
@click.option("--part", "chosen", multiple=True, help="Only parts whose name contains this; repeat for several.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Number of processes.")
def main(json_path: Path | None, quick: bool, seed: int, chosen: tuple[str, ...], jobs: int) -> None:
    """Kill, fail, cut the power and damage bytes; count what is lost or wrong (nothing may be)."""
    tasks = {
        name: work
        for name, work in parts(QUICK if quick else FULL, seed).items()
        if work and (not chosen or any(text in name for text in chosen))
    }
    rows = run(tasks, jobs)
    click.echo(table(rows))
    if json_path:
        found = {
            "benchmark": "faults",
            "hardware": hardware(Path(tempfile.gettempdir()), ["numpy", "zarr"]),
            "setting": {"quick": quick, "seed": seed, "parts": list(chosen)},
            "counts": {name: asdict(counts) for name, counts in rows.items()},
        }
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    if any(counts.broken for counts in rows.values()):
        click.echo(broken_list(rows), err=True)
        sys.exit(1)


def run(tasks: dict[str, list[Task]], n_processes: int) -> dict[str, Counts]:
    """Run all tasks, several at a time, and add up the counts of each part.

    Parameters
    ----------
    tasks : dict of str to list of Task
        The parts.
    n_processes : int
        Tasks at a time.
    """
    # Not forked from this process, whose imports have started threads by now.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.faults.suite"])
    rows = {name: Counts() for name in tasks}
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        names: dict[Future[Counts], str] = {
            pool.submit(timed, task): name for name, work in tasks.items() for task in work
        }
        with tqdm(as_completed(names), total=len(names), unit="task", desc="faults") as progress:
            for future in progress:
                rows[names[future]] += future.result()
                progress.set_postfix_str(names[future], refresh=False)
    return rows


def timed(task: Task) -> Counts:
    """Counts of a task and how long it took; one that raises is a promise that did not hold, and costs no other."""
    started = time.perf_counter()
    try:
        counts = task()
    except Exception as error:
        traceback.print_exc()
        counts = Counts(broken=[f"{task}: raised {error!r}"])
    counts.seconds = time.perf_counter() - started
    return counts
