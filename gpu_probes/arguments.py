"""Checks of single numbers."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from gpu_probes.errors import ProbeError


def check_whole(name: str, value: Any, error: type[ProbeError]) -> None:
    """Raise `error` unless a value is a whole number; true and false are not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise error(f"{name}={value!r} is not a whole number; give one such as 5", argument=name)


def check_flags(**values: Any) -> None:
    """Raise `ProbeError` where a value is neither true nor false, such as ``"False"``, which Python treats as true."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ProbeError(f"{name}={value!r} is neither True nor False; give one of them", argument=name)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number that float64 can hold; true and false are not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
