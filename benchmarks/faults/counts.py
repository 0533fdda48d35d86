"""Counts of what was done and seen, added up over cases."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

MAX_BROKEN = 20


@dataclass
class Counts:
    """What happened in some cases.

    Parameters
    ----------
    cases : int
        States, runs or damaged files looked at.
    fired : int
        Faults that came: processes killed, calls that failed, files damaged.
    lost : int
        Shards that were acknowledged and could not be read, files that were mended and are damaged again.
    right, refused, wrong : int
        Reads of a shard, or of a whole store, that gave the source's bits, an error of ours, or other values.
    reruns, identical : int
        Jobs that were run again, and how many of them left the uninterrupted job's tree, byte for byte.
    unnoticed : int
        Damages that `verify` did not report.
    plain_right, plain_refused, plain_wrong : int
        The same reads by zarr-python alone.
    seconds : float
        How long it took, summed over processes.
    broken : list of str
        What was promised and did not hold.
    """

    cases: int = 0
    fired: int = 0
    lost: int = 0
    right: int = 0
    refused: int = 0
    wrong: int = 0
    reruns: int = 0
    identical: int = 0
    unnoticed: int = 0
    plain_right: int = 0
    plain_refused: int = 0
    plain_wrong: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __iadd__(self, other: Counts) -> Counts:
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.broken += other.broken
        return self

    def expect(self, holds: bool, message: str) -> None:
        """Note a promise that did not hold."""
        if not holds:
            self.broken.append(message)


NUMBERS = tuple(item.name for item in fields(Counts) if item.name != "broken")


def table(rows: dict[str, Counts]) -> str:
    """The parts and their counts as aligned text; counts that are zero in every part are left out, but for losses."""
    always = ("lost", "wrong")
    names = [name for name in NUMBERS if name in always or any(getattr(counts, name) for counts in rows.values())]
    lines = [["", *(name.replace("_", " ") for name in names), "broken"]]
    for part, counts in rows.items():
        lines.append([part, *(f"{getattr(counts, name):,.0f}" for name in names), f"{len(counts.broken):,}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def broken_list(rows: dict[str, Counts]) -> str:
    """Every broken promise, the first of each part."""
    lines: list[str] = []
    for part, counts in rows.items():
        lines += [f"{part}: {message}" for message in counts.broken[:MAX_BROKEN]]
        if len(counts.broken) > MAX_BROKEN:
            lines.append(f"{part}: and {len(counts.broken) - MAX_BROKEN} more")
    return "\n".join(lines)
