"""``python -m benchmarks solver``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("solver")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Small cells, one round: a smoke test, not a measurement.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["ridge", "logistic", "growth", "memory", "rows", "accuracy"]),
    help="Run only this; repeat for several.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Parent of the temporary folder for the files.",
)
@click.option("--device", default="cpu", show_default=True, help="Where this package fits: cpu, cuda, cuda:1.")
def main(json_path: Path | None, quick: bool, parts: tuple[str, ...], folder: Path, device: str) -> None:
    """Fit the same cells with this package and as the original scripts did, and with what scikit-learn does best."""
    # Before torch is imported, and as the command line has it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.solver import suite

    size = suite.QUICK if quick else suite.FULL
    suite.measure_solver(size, parts or list(suite.PARTS), folder, device).publish(json_path)
