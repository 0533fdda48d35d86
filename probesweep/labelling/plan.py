"""Which questions are answered in one batch. Pure."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def plan_batches(n_tokens: Int64[np.ndarray, " question"], *, max_rows: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Cut questions into batches of like length, the longest first, so that what does not fit fails at once.

    Parameters
    ----------
    n_tokens : ndarray [question]
        Tokens of prompt and answer.
    max_rows : int
        Most questions of a batch.
    max_tokens : int
        Most tokens of a batch, padding included; a single longer question is a batch of its own.
    """
    order = np.argsort(-n_tokens, kind="stable")
    batches: list[tuple[int, ...]] = []
    start = 0
    while start < len(order):
        size = max(1, min(max_rows, max_tokens // int(n_tokens[order[start]])))
        batches.append(tuple(order[start : start + size].tolist()))
        start += size
    return batches
