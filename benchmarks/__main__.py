"""``python -m benchmarks COMMAND``: a command's module is imported only when it runs."""

from __future__ import annotations

import os
import signal
import sys
from functools import wraps
from importlib import import_module
from types import FrameType
from typing import Any

import click

# Command -> module that defines it as `main`, and what it does.
COMMANDS = {
    "store": ("benchmarks.store.command", "Write and read speed against zarr-python, TensorStore and plain files."),
    "extract": ("benchmarks.extract.command", "Speed and memory of an extraction against the scripts it replaces."),
    "predict": ("benchmarks.predict.command", "Prompts scored one at a time, in small batches, and all at once."),
    "label": ("benchmarks.label.command", "Sampled answers against generate; the ceiling against simulations."),
    "solver": ("benchmarks.solver.command", "Speed and exactness of the fits against scikit-learn and the scripts."),
    "inference": ("benchmarks.statistics.command", "Cost and calibration of nested CV, permutations and intervals."),
    "job": (
        "benchmarks.job.command",
        "All probes of a large store on a GPU, against a scikit-learn loop on all cores.",
    ),
    "scale": (
        "benchmarks.scale.command",
        "Several workers against one process; object stores: reads, memory of a training.",
    ),
    "faults": (
        "benchmarks.faults.command",
        "Kills, failing calls, power loss, damaged bytes: data lost or read wrong.",
    ),
}
# Some machines set them for a processor that they are not: they slow NumPy and SciPy, which peers are made of.
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class LazyGroup(click.Group):
    """Lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _installed(import_module(COMMANDS[cmd_name][0]).main) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def _installed(command: click.Command) -> click.Command:
    """The command, with one line instead of a traceback if a package to compare with is not installed."""
    run = command.callback
    assert run is not None

    @wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"{str(error.name).split('.')[0]} is not installed; pip install -e '.[dev]'"
            ) from error

    command.callback = checked
    return command


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


@click.group(cls=LazyGroup)
def main() -> None:
    """Compare this package with its peers, on the same data in the same run."""
    # A run that is terminated still removes its files, which take gigabytes.
    signal.signal(signal.SIGTERM, _stop)


if __name__ == "__main__":
    # Before NumPy is loaded, which reads them then.
    for variable in SLOWING:
        os.environ.pop(variable, None)
    main(prog_name="python -m benchmarks")
