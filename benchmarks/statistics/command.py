"""``python -m benchmarks inference``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("inference")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here too."
)
@click.option("--quick", is_flag=True, help="Few and small simulations: whether it runs, not what it finds.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["cost", "null", "repeats", "coverage"]),
    help="Only this; can be given several times.",
)
@click.option("--device", default="cpu", show_default=True, help="Where ours is fitted: cpu, cuda, cuda:1.")
def main(json_path: Path | None, quick: bool, parts: tuple[str, ...], device: str) -> None:
    """Time nested cross-validation and permutations beside the plain sweep; simulate where the truth is known."""
    # Before torch is imported, and as the command line has it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.statistics import suite

    size = suite.QUICK if quick else suite.FULL
    suite.measure_inference(size, parts or list(suite.PARTS), device).publish(json_path)
