"""``python -m benchmarks inference``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("inference")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Few and small simulations: a smoke test, not a result.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["cost", "shuffles", "null", "power", "repeats", "coverage"]),
    help="Run only this; repeat for several.",
)
@click.option("--device", default="cpu", show_default=True, help="Where this package fits: cpu, cuda, cuda:1.")
def main(json_path: Path | None, quick: bool, parts: tuple[str, ...], device: str) -> None:
    """Time nested cross-validation and permutations against the plain sweep; simulate data with a known truth."""
    # Before torch is imported, and as the command line has it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.statistics import suite

    size = suite.QUICK if quick else suite.FULL
    suite.measure_inference(size, parts or list(suite.PARTS), device).publish(json_path)
