"""What all commands share at a terminal: how much they print, in which form, and how versions are shown."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import click

from probesweep.terminal.flags import as_flags

_PACKAGES = ("activation_store", "gpu_probes", "probesweep")
_LIBRARIES = ("torch", "transformers", "zarr", "numpy", "scikit-learn")


@dataclass
class Terminal:
    """What the user wants to see.

    Attributes
    ----------
    quiet : bool
        No progress bars, no summaries.
    as_json : bool
        One JSON document on stdout instead of text.
    debug : bool
        Tracebacks of errors.
    wording : callable
        What the libraries say, in the words of the command that runs.
    """

    quiet: bool = False
    as_json: bool = False
    debug: bool = False
    wording: Callable[[str], str] = str

    def summarize(self, text: Callable[[], str], document: Callable[[], Any]) -> None:
        """Print what was done, unless quiet."""
        if self.as_json or not self.quiet:
            self.answer(text, document)

    def answer(self, text: Callable[[], str], document: Callable[[], Any]) -> None:
        """Print what was asked for."""
        say(json.dumps(document(), indent=2, allow_nan=False) if self.as_json else text())

    def wait(self, text: str) -> None:
        """Print on stderr, in a terminal only, what takes seconds without a progress bar."""
        if sys.stderr.isatty():
            self.note(text)

    def note(self, text: str) -> None:
        """Print on stderr what is done next."""
        if not self.quiet:
            say(text, err=True)

    def word_warnings(self) -> None:
        """Let the packages' warnings on stderr, too, use the words of the command that runs."""
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(_Worded(self))


class _Worded(logging.Formatter):
    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return self._terminal.wording(text) if record.name.split(".")[0] in _PACKAGES else text


def say(text: str, *, err: bool = False) -> None:
    """Print; an error of a stream, such as one to a full disk, names the stream."""
    try:
        click.echo(text, err=err)
    except OSError as error:
        error.filename = "standard error" if err else "standard output"
        raise


class Command(click.Command):
    """A command with the options that all commands share, before or after the command's name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--quiet"], is_flag=True, help="No progress bars and no summary."),
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON document on stdout instead of text."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; refuse an option given under two of its names, one of which would be ignored silently."""
        given = {arg.partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")}
        for option in self.params:
            names = [name for name in option.opts if name.replace("-", "_") in given]
            if isinstance(option, click.Option) and len(names) > 1:
                raise click.UsageError(f"{' and '.join(names)} are one option; give one of them", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Apply the shared options and run."""
        terminal = ctx.ensure_object(Terminal)
        for name in ("quiet", "as_json", "debug"):
            setattr(terminal, name, ctx.params.pop(name) or getattr(terminal, name))
        terminal.wording = partial(as_flags, ctx=ctx)
        if terminal.quiet:
            # Read when tqdm is imported, which commands do after this.
            os.environ["TQDM_DISABLE"] = "1"
        return super().invoke(ctx)


class Group(Command, click.Group):
    """Commands that share these options."""

    command_class = Command


def show_versions(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Print the versions of libraries that affect results, and the device, and exit."""
    if not wanted or ctx.resilient_parsing:
        return
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    say("\n".join([f"probesweep {version('probesweep')}", *libraries, f"device: {device}"]))
    ctx.exit()
