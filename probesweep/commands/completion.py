"""``probesweep completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from probesweep.commands.group import probesweep
from probesweep.terminal.command import say


@probesweep.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print code for shell completion.

    Makes SHELL complete commands and flags.

    Example: probesweep completion bash >> ~/.bashrc
    """
    found = get_completion_class(shell)
    assert found is not None
    say(found(probesweep, {}, "probesweep", "_PROBESWEEP_COMPLETE").source())
