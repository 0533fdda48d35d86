"""What can be said of a number by itself."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from gpu_probes.errors import ProbeError


def check_whole(name: str, value: Any, error: type[ProbeError]) -> None:
    """Raise `error` unless a value is a whole number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise error(f"{name} {value!r} is no whole number; write one such as 5")


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number that float64 can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
