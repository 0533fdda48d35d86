"""Whether two ways of computing hidden states agree."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Shaped

from activation_store.capture.parity import MOST_ROUNDING, layer_errors
from benchmarks.shared.measure import WrongResultError

# Roundings of float32 that a layer may be off by. The two ways pad and group the prompts differently, so their sums run
# in another order: over 30 blocks that comes to some hundred roundings of the largest values, which are far above the
# rms. A wrong token, layer or row is off by millions.
_ROUNDINGS = 2000
# Rows that are widened at a time.
_AT_ONCE = 256


def layer_difference(
    found: Float32[np.ndarray, "row layer position feature"],
    expected: Float32[np.ndarray, "row layer position feature"],
) -> float:
    """Largest difference of a value, in units of its layer's rms."""
    squares = np.square(expected, dtype=np.float64).mean(axis=(0, 2, 3))
    difference = np.abs(found.astype(np.float64) - expected).max(axis=(0, 2, 3))
    return float((difference / np.sqrt(squares)).max())


def vector_difference(
    found: Shaped[np.ndarray, "row layer position feature"], expected: Shaped[np.ndarray, "row layer position feature"]
) -> float:
    """Largest error of a vector, relative to its length: as `activation_store` judges 16 bits."""
    starts = range(0, len(found), _AT_ONCE)
    return max(
        float(layer_errors(found[start : start + _AT_ONCE], expected[start : start + _AT_ONCE]).max())
        for start in starts
    )


def check_agreement(found: np.ndarray, expected: np.ndarray, what: str) -> float:
    """Return the largest difference in units of its layer's rms; of 16 bits, of the vector's length.

    Raises
    ------
    WrongResultError
        It is more than rounding, or not a number, or the shapes differ; names `what` differs.
    """
    if found.shape != expected.shape:
        raise WrongResultError(f"{what} has shape {list(found.shape)}, expected {list(expected.shape)}")
    if found.dtype.itemsize < np.dtype(np.float32).itemsize:
        # Of what is wrong most vectors have nothing to do with those that are expected, and are off by more than one.
        difference, allowed, of = vector_difference(found, expected), MOST_ROUNDING, "its vector's length"
    else:
        allowed = _ROUNDINGS * float(np.finfo(np.float32).eps)
        difference, of = layer_difference(found, expected), "its layer's rms"
    if not difference <= allowed:
        raise WrongResultError(f"{what} is off by {difference:.1e} of {of}, more than rounding ({allowed:.1e})")
    return difference
