"""``python -m benchmarks job``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("job")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--quick", is_flag=True, help="A few small cells: a smoke test, not a measurement.")
@click.option("--device", default="cuda", show_default=True, help="Where this package fits: cpu, cuda, cuda:1.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Parent of the temporary folder for the stores.",
)
def main(json_path: Path | None, quick: bool, device: str, folder: Path) -> None:
    """Fit all probes of a model of 1,536 features on a GPU, and a few of them by scikit-learn on all cores."""
    from benchmarks.job import suite
    from gpu_probes.errors import DeviceError
    from gpu_probes.search.devices import resolve_devices

    try:
        resolve_devices(device)
    except DeviceError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error
    suite.measure_job(suite.QUICK if quick else suite.FULL, folder, device).publish(json_path)
