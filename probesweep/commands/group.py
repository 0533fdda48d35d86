"""``probesweep``, the group that every command joins."""

from __future__ import annotations

from typing import Any

import click

from probesweep.terminal.command import Group, show_versions


def _with_underscores(name: str) -> str:
    return name.replace("-", "_")


SETTINGS: dict[str, Any] = {
    # Flags take underscores, as in the original scripts, or hyphens.
    "token_normalize_func": _with_underscores,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}


@click.group(cls=Group, context_settings=SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_versions,
    help="Show versions and device, and exit.",
)
def probesweep() -> None:
    """Measure what a language model knows before it answers.

    Run the model over a dataset once (extract), then fit a linear probe at every layer and position (train), or do
    both from one file (run). Flags may be written with _ or -.

    Example: probesweep run --init experiment.toml, then probesweep run experiment.toml
    """
