"""Do batched hidden states equal those of the same prompts run one by one? Pure: arrays in, errors out."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
from jaxtyping import Float64, Integer, Shaped

from activation_store.prompts.prompts import TokenIds

# Among the first rows, a few of different lengths, none long: a second of work for a small model.
_FIRST_ROWS = 64
_MAX_ROWS = 4
_SHORT = 96


def first_rows(n_tokens: Integer[np.ndarray, " sample"]) -> list[int]:
    """Rows to choose from: the first ones, and the shortest one of another length where these have one only."""
    rows = list(range(min(_FIRST_ROWS, len(n_tokens))))
    others = np.flatnonzero(n_tokens != n_tokens[0])
    if len(others) and others[0] >= len(rows):
        rows.append(int(others[n_tokens[others].argmin()]))
    return rows


def choose_rows(prompts: Sequence[TokenIds]) -> list[int]:
    """Pick the rows to compare: up to four of the first ones, of different lengths where there are such.

    Parameters
    ----------
    prompts : sequence of ndarray [token]
        The prompts to choose from.
    """
    n_tokens = [len(prompt) for prompt in prompts]
    by_length = sorted(range(len(n_tokens)), key=n_tokens.__getitem__)
    distinct = list({n_tokens[row]: row for row in reversed(by_length)}.values())[::-1]
    usable = [row for row in distinct if n_tokens[row] <= _SHORT]
    if len(usable) < 2:
        usable = distinct[:2] if len(distinct) > 1 else by_length[:2]
    places = np.linspace(0, len(usable) - 1, min(_MAX_ROWS, len(usable))).round().astype(int)
    return [usable[place] for place in places]


def layer_errors(
    found: Shaped[np.ndarray, "row layer position feature"], expected: Shaped[np.ndarray, "row layer position feature"]
) -> Float64[np.ndarray, " layer"]:
    """Largest error of each layer's vectors, each relative to its own length.

    Vectors rather than values: the few features that are a thousand times larger than the others would hide an error
    in these, and their own rounding would drown it.
    """
    wide_found, wide = found.astype(np.float64), expected.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1)
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(wide_found - wide, axis=-1)
    relative = np.where(error == 0, 0.0, error / np.maximum(length, np.finfo(np.float64).tiny))
    # A value that is not finite is an error of any size.
    return np.where(np.isfinite(relative), relative, np.inf).max(axis=(0, 2))


def tolerance(dtype: np.dtype) -> float:
    """Largest error that is rounding, whatever the model: the square root of the data type's epsilon.

    A batch sums in another order than a single row, so values differ by their rounding, some multiple of epsilon that
    grows with depth; a prompt that sees padding or another row differs by a fraction of one. The square root lies
    midway between epsilon and one: half of the digits must agree (float32: 3e-4, float16: 3e-2, bfloat16: 9e-2).
    """
    return float(ml_dtypes.finfo(dtype).eps) ** 0.5


# An error above the tolerance is rounding still where copies of one prompt in a batch, which have neither padding nor
# other rows to see, differ as much from that prompt alone: deep models in 16 bits, experts that are nearly tied.
ROUNDING_MARGIN = 4
# Copies do see how many they are: what depends on that (the room of an expert, statistics of a batch) is no rounding.
MOST_ROUNDING = 0.3
