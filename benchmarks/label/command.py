"""``python -m benchmarks label``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("label")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Few questions and draws, one round: a smoke test, not a result.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["speed", "agreement", "memory", "ceiling"]),
    help="Run only this; repeat for several.",
)
@click.option("--model", default="smollm2", show_default=True, help="Hub id, local folder, GGUF file, or smollm2.")
@click.option("--device", default="cpu", show_default=True, help="Device of the model, always in float32.")
def main(json_path: Path | None, quick: bool, parts: tuple[str, ...], model: str, device: str) -> None:
    """Sample answers against `generate`; compare rates, batch sizes and memory; simulate the ceiling."""
    # Before torch is imported, and as the command line has it: no progress bars, no busy waiting.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.label.suite import FULL, PARTS, QUICK, measure_label

    measure_label(QUICK if quick else FULL, parts or PARTS, model, device).publish(json_path)
