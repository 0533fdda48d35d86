"""``python -m benchmarks COMMAND``: each command is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = {"faults": "benchmarks.faults.command:faults"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return getattr(import_module(module), name)


if __name__ == "__main__":
    LazyGroup(help=__doc__)(prog_name="python -m benchmarks")
