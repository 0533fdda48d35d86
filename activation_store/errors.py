"""Errors of datasets, models and stores in one hierarchy, so that a caller can catch all of them or a part."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from probesweep_errors import ProbesweepError

# What fixes most damage: the inputs still exist, and the model computes the same values again.
MEND = "restore it from a copy, or run the same extract again with repair=True (imported stores: import it again)"
RESTORE = "restore it from a copy: the rest of the store cannot be read without it"


class StoreError(ProbesweepError):
    """Base of every error of this package; the message is one line: what, where, how to fix it."""


class InputError(StoreError, ValueError):
    """The dataset, the model or an argument cannot be used as given."""


class PromptError(InputError):
    """The question of one row cannot be used; `reason` says why, without the row."""

    # Like every error here it can be created from its message alone, as code that extends the message does.
    def __init__(self, message: str, reason: str = "", *, argument: str | None = None) -> None:
        super().__init__(message, argument=argument)
        self.reason = reason or message


class FingerprintMismatchError(InputError):
    """The store was started from inputs other than the current ones; `differences` names them."""

    differences: str = ""


class StoreLockedError(StoreError):
    """Another process is writing the store."""


class UnsupportedFormatError(InputError):
    """Not a probesweep store, or one in a format that this version cannot read."""


class CorruptStoreError(StoreError):
    """Bytes of the store are not the bytes that were committed."""


class MissingShardError(InputError):
    """Requested rows are missing: never committed, or their file is gone."""


class NonFiniteError(StoreError):
    """The model produced NaN or infinity."""


class ParityError(StoreError):
    """The model returns different values for prompts in a batch than one at a time."""


class DeviceMemoryError(StoreError):
    """A single prompt does not fit in the device's memory."""


_SHOWN_ROWS = 10


def show_rows(rows: Sequence[int]) -> str:
    """The first rows of a list, as text."""
    more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:_SHOWN_ROWS]))}{more}"


def check_at_least_one(**values: int | None) -> None:
    """Refuse anything but a whole number from one to the most that a file system can count."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise InputError(f"{name}={value!r} must be a whole number", argument=name)
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1", argument=name)
        if value >= 2**63:
            raise InputError(f"{name}={value} must be less than 2 ** 63; leave it out for no limit", argument=name)


def check_same_content(path: Path | str, found: str, expected: str) -> None:
    """Refuse activations that another process sees otherwise than the one that opened them."""
    if found != expected:
        raise InputError(
            f"{path} is not the same for all processes: it was replaced, or a machine has another one there; put it on "
            "a disk that all of them share, and run the same command again"
        )
