"""``python -m benchmarks extract``."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("extract")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="Few prompts, one round: a smoke test, not a measurement.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Parent of the temporary folder for the stores; by default the current folder.",
)
@click.option("--model", default="smollm2", show_default=True, help="Hub id, local folder, GGUF file, or smollm2.")
@click.option("--device", default="cpu", show_default=True, help="Device of the model, which is in float32.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["original", "layers", "prefix", "memory", "larger", "large-model"]),
    help="Run only this; repeat for several. By default all but large-model: random weights of 1.5B parameters in "
    "bfloat16, made on the device.",
)
def main(json_path: Path | None, quick: bool, folder: Path, model: str, device: str, parts: tuple[str, ...]) -> None:
    """Extract the same activations with this package and as the original scripts did; time the bare model, too."""
    # Before torch is imported, and as the command line has it: no progress bars, no busy waiting.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # pyarrow's allocator reserves a gigabyte of which it touches little; a limit on memory counts all of it.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from activation_store.errors import InputError
    from activation_store.models.loading import resolve_device
    from benchmarks.extract import suite

    try:
        resolve_device(device)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
    size = suite.QUICK if quick else suite.FULL
    suite.measure_extract(size, parts or suite.PARTS, folder, model, device).publish(json_path)
