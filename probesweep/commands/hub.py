"""Commands that talk to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from activation_store.files.storage import Location
from probesweep.commands.arguments import LOCATION, PATH, shard_bar
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.argument("path", type=LOCATION)
@click.argument("repository")
@click.option("--public", is_flag=True, help="Make a new repository public, and allow one that is already public.")
@click.option("--revision", help="Branch to commit to.  [default: the main branch]")
@click.option("--message", help="Commit message.  [default: written for you]")
@click.pass_obj
def push(terminal: Terminal, path: Location, repository: str, **options: Any) -> None:
    """Upload a store or results to the Hugging Face hub.

    PATH is a finished store, or a folder of results. A new REPOSITORY is private unless --public is given.

    Example: probesweep push results name/success-probes
    """
    from probesweep.sharing.push_pull import push as send

    sent = send(path, repository, announce=terminal.note, progress=shard_bar("verify"), **options)
    terminal.summarize(lambda: sent, lambda: {"pushed": sent})


@probesweep.command()
@click.argument("repository")
@click.argument("path", type=PATH)
@click.option("--revision", help="Branch, tag or commit to download.  [default: the main branch]")
@click.pass_obj
def pull(terminal: Terminal, repository: str, path: Path, revision: str | None) -> None:
    """Download a store or results from the Hugging Face hub.

    Everything in REPOSITORY that push sent goes into a new folder, PATH, and is checked.

    Example: probesweep pull name/success-probes results
    """
    from probesweep.sharing.push_pull import pull as take

    taken = take(repository, path, revision=revision, progress=shard_bar("verify"))
    terminal.summarize(lambda: taken, lambda: {"pulled": taken})
