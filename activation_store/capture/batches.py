"""Group prompts into batches and find what they share. Pure: lengths and token ids in, plan out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer

# What a batch may take of the memory that is free: the rest is for what allocators waste.
_SHARE_OF_FREE = 0.5
# Of a reused prefix every row of a batch has keys and values for one block at a time: so much less than a token that
# is run, at least.
_PREFIX_TOKENS_PER_TOKEN = 8
# A shorter prefix costs about as much as it saves.
LEAST_PREFIX = 8
_CHUNK_ROWS = 1000


@dataclass(frozen=True)
class BatchPlan:
    """How the prompts of a shard are put into batches.

    Parameters
    ----------
    max_tokens : int
        Most tokens of a batch, padding included; a single longer prompt is a batch of its own.
    max_rows : int or None
        Most prompts of a batch; None: as many as the tokens allow.
    prefix_tokens : int
        Tokens at the beginning of every prompt that are not run with it.
    """

    max_tokens: int
    max_rows: int | None
    prefix_tokens: int

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> BatchPlan:
        """Read the plan of a store."""
        plan = provenance["batch_plan"]
        return cls(plan["max_tokens"], plan["max_rows"], plan.get("prefix_tokens", 0))

    def describe(self) -> dict[str, Any]:
        """For the provenance of a store."""
        return {**asdict(self), "order": "longest first within a shard"}

    def batches(
        self, n_tokens: Integer[np.ndarray, " sample"], rows: range, *, worth: int | None = None
    ) -> Iterator[Integer[np.ndarray, " row"]]:
        """Cut the rows of one shard into batches of prompts of like length, longest first.

        Longest first, so that a batch that does not fit in memory fails at the start.

        Parameters
        ----------
        n_tokens : ndarray [sample]
            Tokens of every prompt, the prefix included.
        rows : range
            Sample indices to plan.
        worth : int, optional
            Tokens that take as long as a batch by itself, whatever it holds: where padding shorter prompts to the
            longest takes longer, they are a batch of their own. Neighbours of thousands hardly differ in length; a few
            prompts may.

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
            size = min(
                self.max_tokens // max(1, longest - self.prefix_tokens),
                self.max_tokens * _PREFIX_TOKENS_PER_TOKEN // longest,
                self.max_rows or len(order),
            )
            batch = order[start : start + max(1, size)]
            if worth is not None:
                batch = batch[: _first_cut(n_tokens[batch], worth)]
            yield batch
            start += len(batch)

    def padded_tokens(self, n_tokens: Integer[np.ndarray, " sample"], rows: range) -> int:
        """Tokens of one shard that go through the model, padding included."""
        return sum(
            len(batch) * (int(n_tokens[batch].max()) - self.prefix_tokens) for batch in self.batches(n_tokens, rows)
        )


def _first_cut(n_tokens: Integer[np.ndarray, " row"], worth: int) -> int:
    """How many rows of a batch, longest first, to run before the rest: all, unless that is mostly padding."""
    saved = (n_tokens[0] - n_tokens) * (len(n_tokens) - np.arange(len(n_tokens)))
    cuts = np.flatnonzero(saved > worth)
    return int(cuts[0]) if len(cuts) else len(n_tokens)


def token_budget(enough: int, free_nbytes: int, token_nbytes: int) -> int:
    """Most tokens of a batch.

    Parameters
    ----------
    enough : int
        Tokens beyond which a batch is not run faster.
    free_nbytes : int
        Free memory of the device, the weights loaded.
    token_nbytes : int
        What a token in a batch takes while the model runs.
    """
    return max(1, min(enough, int(free_nbytes * _SHARE_OF_FREE) // token_nbytes))


def useful_prefix(
    token_ids: Integer[np.ndarray, " token"], starts: Integer[np.ndarray, " boundary"], n_positions: int
) -> int:
    """Tokens at the beginning of all prompts that are worth running once; the parameters are `shared_prefix`'s."""
    n_shared = shared_prefix(token_ids, starts, n_positions)
    return n_shared if n_shared >= LEAST_PREFIX and len(starts) > 2 else 0


def shared_prefix(
    token_ids: Integer[np.ndarray, " token"], starts: Integer[np.ndarray, " boundary"], n_positions: int
) -> int:
    """Tokens at the beginning that all prompts share, of which none is at a stored position of any prompt.

    Parameters
    ----------
    token_ids : ndarray [token]
        Of all prompts, one after another.
    starts : ndarray [sample + 1]
        Prompt i is ``token_ids[starts[i] : starts[i + 1]]``.
    n_positions : int
        Stored positions at each prompt's end.
    """
    n_shared = int(np.diff(starts).min()) - n_positions
    first = token_ids[:n_shared]
    for chunk in np.array_split(starts[:-1], max(1, len(starts) // _CHUNK_ROWS)):
        heads = token_ids[chunk[:, None] + np.arange(n_shared)]
        differs = (heads != first[:n_shared]).any(axis=0)
        n_shared = int(differs.argmax()) if differs.any() else n_shared
    return n_shared
