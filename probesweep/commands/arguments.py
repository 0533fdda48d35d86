"""Types of arguments, and what several commands show."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from activation_store.files.storage import Location, is_address, locate
from activation_store.questions.hub_address import is_on_hub
from probesweep.terminal.command import Terminal


class _TextPath(click.Path):
    """A path that is valid text, as safetensors, Arrow and torch need. `-` may be standard input, `./-` is a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Convert the argument to a path."""
        if is_address(value):
            self.fail(f"{value} is in an object store, where only stores can be; give a path on a disk", param, ctx)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(value)!r} contains bytes that are not valid text; rename it", param, ctx)
        path = Path(value)
        return path.absolute() if str(path) == "-" and str(value) != "-" else path


# Older versions of click take no type here.
class _Location(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A path, or the address of a store in an object store, which stays text."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Convert the argument to a path unless it is an address."""
        return locate(value) if is_address(value) else PATH.convert(value, param, ctx)


# Older versions of click take no type here.
class _Dataset(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A path unless it is the address of a dataset on the hub, which stays text."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Convert the argument to a path unless it is an address."""
        return value if is_on_hub(value) else PATH.convert(value, param, ctx)


PATH = _TextPath()
LOCATION = _Location()
DATASET = _Dataset()


def show_trainings(terminal: Terminal, folders: dict[str, Path]) -> None:
    """Print what each label's training found."""
    from gpu_probes.report.summary import describe, summarize

    terminal.summarize(
        lambda: "\n".join(
            f"{label}: " * (len(folders) > 1) + terminal.wording(summarize(folder)) for label, folder in folders.items()
        ),
        lambda: {label: describe(folder) for label, folder in folders.items()},
    )


def show_seeds(terminal: Terminal, folders: dict[str, dict[int, Path]]) -> None:
    """Print what the seeds of each label found, and how much they differ."""
    from probesweep.seeds import compare, tabulate

    terminal.summarize(lambda: terminal.wording(tabulate(folders)), lambda: compare(folders))


@contextmanager
def naming_replaced(terminal: Terminal, path: Path) -> Generator[None]:
    """Say afterwards that an earlier output was replaced."""
    was_there = path.is_file()
    yield
    if was_there:
        terminal.note(f"replaced {path}")


def shard_bar(what: str) -> Callable[[Any], Any]:
    """A progress bar around shards."""
    from tqdm import tqdm

    return lambda shards: tqdm(shards, unit="shard", desc=what)


def json_object(text: str | None, flag: str) -> dict[str, Any] | None:
    """Read the JSON object that a flag was given."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{flag} is not JSON ({error}); write it as '{{\"key\": value}}'") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{flag} must be a JSON object such as '{{\"enable_thinking\": false}}'")
    return value
