"""What every benchmark needs: interleaved timing, ratios with their spread, tables, targets, the hardware line."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_info


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the figures of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(float(np.median(figures)), float(min(figures)), float(max(figures)))

    def __str__(self) -> str:
        return f"{_number(self.median)} ({_number(self.low)}..{_number(self.high)})"


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size >= 0.1 or size == 0 else f"{value:.3f}" if size >= 0.001 else f"{value:.0e}"


@dataclass(frozen=True)
class Contender:
    """One of the things that are compared.

    Parameters
    ----------
    name : str
        As the tables have it.
    prepare : callable
        Takes the round, gets ready for it untimed, and returns the action that is timed.
    check : callable
        Takes the round; called after it, untimed. Raises if what the action did or read is wrong.
    """

    name: str
    prepare: Callable[[int], Callable[[], object]]
    check: Callable[[int], None]


class WrongResultError(Exception):
    """A contender's result is not, bit for bit, the data: its time means nothing."""


@dataclass(frozen=True)
class Timings:
    """Seconds of each contender in each round, and the bytes of payload that each of them moved in a round."""

    seconds: Mapping[str, Sequence[float]]
    n_bytes: int

    def speed(self, name: str) -> Spread:
        """Gigabytes (1e9 bytes) per second."""
        return Spread.of([self.n_bytes / seconds / 1e9 for seconds in self.seconds[name]])

    def ratio(self, name: str, base: str) -> Spread:
        """How many times as fast as `base` it was, from the ratios within each round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return Spread.of([base_seconds / seconds for seconds, base_seconds in pairs])

    def table(self, title: str, bases: Mapping[str, str]) -> Table:
        """Speed of all contenders and their ratios to some of them.

        Parameters
        ----------
        title : str
            Of the table.
        bases : mapping of str to str
            Column heading -> contender that the others are divided by.
        """
        rows = [
            {"contender": name, "GB/s": self.speed(name)}
            | {heading: self.ratio(name, base) for heading, base in bases.items()}
            for name in self.seconds
        ]
        return Table(title=title, rows=rows)


def interleave(contenders: Sequence[Contender], *, n_rounds: int, n_bytes: int, n_warm_ups: int = 1) -> Timings:
    """Time the contenders in turn, A B C A B C; a first round warms up and is not counted.

    What disturbs the machine for longer than a round disturbs all of them, and ratios within a round hardly change.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for round_idx in range(n_warm_ups + n_rounds):
        for contender in contenders:
            action = contender.prepare(round_idx)
            started = time.perf_counter()
            action()
            elapsed = time.perf_counter() - started
            contender.check(round_idx)
            if round_idx >= n_warm_ups:
                seconds[contender.name].append(elapsed)
    return Timings(seconds=seconds, n_bytes=n_bytes)


def check_equal(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Raise unless two arrays hold the same bits.

    Raises
    ------
    WrongResultError
        Names `what` differs.
    """
    bits = f"u{expected.dtype.itemsize}"
    if (
        found.dtype != expected.dtype
        or found.shape != expected.shape
        or not np.array_equal(found.view(bits), expected.view(bits))
    ):
        raise WrongResultError(f"{what} is not bit for bit what was written")


@dataclass(frozen=True)
class Table:
    """Rows of figures under one title."""

    title: str
    rows: Sequence[Mapping[str, str | Spread]]

    def __str__(self) -> str:
        lines = [list(self.rows[0]), *([str(value) for value in row.values()] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        heading, *body = (_aligned(line, widths) for line in lines)
        return "\n".join([self.title, heading, "  ".join("-" * width for width in widths), *body])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *padded[1:]])


@dataclass(frozen=True)
class Target:
    """A ratio to reach."""

    what: str
    at_least: float
    reached: Spread

    @property
    def is_met(self) -> bool:
        return self.reached.median >= self.at_least

    def __str__(self) -> str:
        return f"{_verdict(self.is_met)}  {self.what}: target >= {self.at_least:g}, measured {self.reached}"


@dataclass(frozen=True)
class Limit:
    """A ratio not to exceed."""

    what: str
    at_most: float
    reached: Spread

    @property
    def is_met(self) -> bool:
        return self.reached.median <= self.at_most

    def __str__(self) -> str:
        return f"{_verdict(self.is_met)}  {self.what}: target <= {self.at_most:g}, measured {self.reached}"


def _verdict(is_met: bool) -> str:
    return "met    " if is_met else "NOT met"


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark measured."""

    benchmark: str
    hardware: Mapping[str, Any]
    setting: Mapping[str, Any]
    tables: Sequence[Table]
    targets: Sequence[Target | Limit]

    def __str__(self) -> str:
        parts = [_line(self.hardware), _line(self.setting), *map(str, self.tables)]
        return "\n\n".join([*parts, "\n".join(["targets", *map(str, self.targets)])])

    def to_json(self) -> str:
        """The same figures for machines."""
        document = asdict(self)
        for target, entry in zip(self.targets, document["targets"], strict=True):
            entry["is_met"] = target.is_met
        return json.dumps(document, indent=2, allow_nan=False)

    def publish(self, json_path: Path | None) -> None:
        """Print, and write the same to `json_path` if one is given."""
        click.echo(str(self))
        if json_path is not None:
            json_path.write_text(self.to_json() + "\n")


def _line(facts: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in facts.items())


def hardware(folder: Path, libraries: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on: processor, memory, file system of `folder`, versions, linear algebra."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "filesystem": _filesystem(folder),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
        **_linear_algebra(),
    }


def _linear_algebra() -> dict[str, str]:
    """BLAS of each library that is loaded, its kernel, and its threads."""
    found: dict[str, str] = {}
    for one in threadpool_info():
        if one["user_api"] == "blas":
            owner = Path(one["filepath"]).parent.name.removesuffix(".libs")
            kernel = f", {one['architecture']}" if "architecture" in one else ""
            found[f"BLAS of {owner}"] = f"{one['internal_api']} {one['version']}{kernel}, {one['num_threads']} threads"
    if "torch" in sys.modules:
        # It is linked into torch, where threadpoolctl does not see it, and does not tell its kernel.
        torch: Any = sys.modules["torch"]
        built = torch.__config__.show()
        mkl, other = re.search(r"Math Kernel Library Version ([\d.]+)", built), re.search(r"BLAS_INFO=(\w+)", built)
        name = f"MKL {mkl[1]}" if mkl else other[1] if other else "unknown"
        found["BLAS of torch"] = f"{name}, {torch.get_num_threads()} threads"
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """Type of the file system that holds `folder`: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    # The last of equal mount points hides those before it.
    return max(enumerate(above), key=lambda entry: (len(entry[1][0]), entry[0]))[1][1]


class StealClock:
    """Share of the machine's CPU time that the hypervisor gave to others since the clock was made."""

    def __init__(self) -> None:
        self._started = _cpu_ticks()

    def percent(self) -> float:
        elapsed = _cpu_ticks() - self._started
        return round(100 * float(elapsed[7]) / max(float(elapsed[:8].sum()), 1.0), 1)


def _cpu_ticks() -> np.ndarray:
    # user nice system idle iowait irq softirq steal (guest times are in user and nice already)
    return np.array(Path("/proc/stat").read_text().split("\n")[0].split()[1:9], dtype=np.int64)


@contextmanager
def scratch_folder(parent: Path, needed_nbytes: int) -> Generator[Path]:
    """Make a folder with room for `needed_nbytes`, and remove it afterwards.

    Raises
    ------
    click.ClickException
        The disk has less room.
    """
    free = shutil.disk_usage(parent).free
    if free < needed_nbytes:
        raise click.ClickException(
            f"{parent} has {free / 1e9:.1f} GB free, this run needs {needed_nbytes / 1e9:.1f} GB; "
            "give another --folder, or use --quick"
        )
    with tempfile.TemporaryDirectory(dir=parent, prefix=".benchmark-") as folder:
        yield Path(folder)


def progress(message: str) -> None:
    """Tell whoever waits what is being measured."""
    if sys.stderr.isatty():
        click.echo(message, err=True)
