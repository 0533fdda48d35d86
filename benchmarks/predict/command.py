"""``python -m benchmarks predict``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("predict")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Few prompts, one round: a smoke test, not a measurement.")
@click.option("--model", default="smollm2", show_default=True, help="Hub id, local folder, GGUF file, or smollm2.")
@click.option("--device", default="cpu", show_default=True, help="Device of the model, always in float32.")
def main(json_path: Path | None, quick: bool, model: str, device: str) -> None:
    """Run the same prompts as `Probe.score` does, in calls of several sizes, and by transformers one by one."""
    # Before torch is imported, and as the command line has it: no progress bars, no busy waiting.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.predict.suite import FULL, QUICK, measure_predict

    measure_predict(QUICK if quick else FULL, model, device).publish(json_path)
