"""Group prompts into batches. Pure: lengths in, plan out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer


def plan_batches(
    n_tokens: Integer[np.ndarray, " sample"], rows: range, *, max_rows: int, max_tokens: int
) -> Iterator[Integer[np.ndarray, " row"]]:
    """Cut the rows of one shard into batches of prompts of like length, longest first.

    Longest first, so that a batch that does not fit in memory fails at the start.

    Parameters
    ----------
    n_tokens : ndarray [sample]
        Tokens of every prompt.
    rows : range
        Sample indices to plan.
    max_rows : int
        Most rows of a batch.
    max_tokens : int
        Most tokens of a batch, padding included; a single longer prompt is a batch of its own.

    Yields
    ------
    ndarray [row]
        Sample indices of one batch; together they are `rows`, each once.
    """
    lengths = n_tokens[rows.start : rows.stop]
    order = np.argsort(-lengths, kind="stable") + rows.start
    start = 0
    while start < len(order):
        longest = int(n_tokens[order[start]])
        size = max(1, min(max_rows, max_tokens // longest))
        yield order[start : start + size]
        start += size
