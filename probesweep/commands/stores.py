"""Commands on stores."""

from __future__ import annotations

from pathlib import Path

import click

from activation_store.files.storage import Location
from probesweep.commands.arguments import LOCATION, PATH, naming_replaced, shard_bar
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.argument("store", type=LOCATION)
@click.pass_obj
def verify(terminal: Terminal, store: Location) -> None:
    """Check every byte of a STORE.

    Lists what is damaged or missing, and exits with 1 if there is anything to list.

    Example: probesweep verify train.zarr
    """
    from activation_store import ActivationStore

    opened = ActivationStore.open(store)
    problems = [terminal.wording(str(problem)) for problem in opened.verify(shard_bar("verify"))]
    terminal.answer(
        lambda: "\n".join(problems) or f"{store}: all {len(opened)} samples are complete and undamaged",
        lambda: {"store": str(store), "n_samples": len(opened), "problems": problems},
    )
    if problems:
        raise SystemExit(1)


@probesweep.command()
@click.argument("store", type=LOCATION)
@click.pass_obj
def inspect(terminal: Terminal, store: Location) -> None:
    """Describe a STORE.

    Shows its axes, origin, committed rows, norms by layer, and the tokens at every position of a few samples.

    Example: probesweep inspect train.zarr
    """
    from activation_store import ActivationStore
    from activation_store.store.describe import describe_store
    from activation_store.store.describe import inspect as describe

    opened = ActivationStore.open(store)
    terminal.answer(lambda: describe(opened), lambda: describe_store(opened))


@probesweep.command()
@click.argument("store", type=LOCATION)
@click.argument("output_path", type=PATH)
@click.option("--label_column", help="The label to write.  [default: the first]")
@click.pass_obj
def export(terminal: Terminal, store: Location, output_path: Path, label_column: str | None) -> None:
    """Write a finished STORE as a .pt file of the original scripts.

    Example: probesweep export train.zarr train.pt
    """
    from activation_store import ActivationStore
    from activation_store.pt.convert import export_pt
    from probesweep.outputs import check_file
    from probesweep.stores import label

    check_file(output_path, "output_path", [store])
    opened = ActivationStore.open(store)
    if label_column is not None:
        label(opened, label_column)
    with naming_replaced(terminal, output_path):
        export_pt(opened, output_path, label_column=label_column, progress=shard_bar("export"))
    n_bytes = output_path.stat().st_size
    terminal.summarize(
        lambda: f"{output_path}: {n_bytes / 2**20:.1f} MiB",
        lambda: {"output_path": str(output_path), "n_bytes": n_bytes},
    )


@probesweep.command("import")
@click.argument("source", type=PATH)
@click.argument("output_path", type=LOCATION)
@click.pass_obj
def import_(terminal: Terminal, source: Path, output_path: Location) -> None:
    """Write a store from SOURCE, a .pt file of the original scripts.

    Example: probesweep import train.pt train.zarr
    """
    from activation_store.pt.convert import import_pt
    from activation_store.store.describe import describe_store

    store = import_pt(source, output_path, progress=shard_bar("import"))
    terminal.summarize(lambda: repr(store), lambda: describe_store(store))


@probesweep.command()
@click.argument("store", type=LOCATION)
@click.argument("target", type=LOCATION)
@click.pass_obj
def copy(terminal: Terminal, store: Location, target: Location) -> None:
    """Copy a STORE to TARGET, from or to a disk or an object store.

    Every byte is checked on the way, and again where it was written. The same command again goes on with a copy that
    broke off, or adds what was committed to an unfinished STORE since.

    Example: probesweep copy train.zarr s3://bucket/train.zarr
    """
    from activation_store import ActivationStore
    from activation_store.store.describe import describe_store

    copied = ActivationStore.open(store).copy_to(target, progress=shard_bar("copy"))
    terminal.summarize(lambda: repr(copied), lambda: describe_store(copied))
