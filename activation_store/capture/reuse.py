"""What one call learns of a loaded model for the next: that its batches are right, and how its prompts begin."""

from __future__ import annotations

import numpy as np

from activation_store.capture.batches import LEAST_PREFIX, shared_prefix
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import choose_rows, first_rows
from activation_store.prompts.prompts import Prompts, TokenIds

# Rows are compared alone, in a batch and, at most, as copies of themselves.
_RUNS_OF_COMPARED = 3
_NOTHING = np.zeros(0, dtype=np.int32)


class Reuse:
    """Keeps the prefix of prompts between calls, and which ways of running them have been compared.

    Nobody knows how many calls there will be. The prefix is run, and compared, as soon as the tokens that it would have
    saved so far are more than that takes: so the cost is never more than about twice what knowing would have cost.

    Parameters
    ----------
    states : HiddenStates
        The model, of which nothing has been compared yet.
    """

    def __init__(self, states: HiddenStates) -> None:
        self._states = states
        self._held: TokenIds = _NOTHING
        self._candidate: TokenIds | None = None
        self._missed_tokens = 0
        self._refused = False
        # Whether the prefix was reused, and whether there were several prompts.
        self._compared: set[tuple[bool, bool]] = set()

    def prepare(self, prompts: Prompts, max_rows: int | None) -> int:
        """Make sure that these prompts can be run in batches.

        Parameters
        ----------
        prompts : Prompts
            Of one call.
        max_rows : int or None
            Most rows of a batch.

        Returns
        -------
        int
            Tokens at the beginning of all of them that are reused.

        Raises
        ------
        ParityError
            Batches give other values than single prompts.
        """
        n_shared = shared_prefix(prompts.token_ids, prompts.starts, len(prompts.positions))
        shared = prompts.row(0)[:n_shared]
        rows = first_rows(prompts.n_tokens)
        first = [prompts.row(row) for row in rows]
        if not self._refused:
            self._consider(shared, len(prompts.n_tokens), sum(len(first[row]) for row in choose_rows(first)))
        n_reused = self._n_reused(shared)
        key = (n_reused > 0, len(prompts.n_tokens) > 1)
        # Several prompts are compared alone as well.
        if not self._compared & {key, (key[0], True)}:
            self._states.check(first, max_rows=max_rows or len(first))
            self._compared.add(key)
            if self._states.n_prefix < len(self._held):
                self._held, self._refused = _NOTHING, True
        return self._n_reused(shared)

    def _n_reused(self, shared: TokenIds) -> int:
        n_held = len(self._held)
        return n_held if n_held and np.array_equal(shared[:n_held], self._held) else 0

    def _consider(self, shared: TokenIds, n_prompts: int, compared_tokens: int) -> None:
        """Run what prompts have had in common for some time, once that would have paid."""
        common = shared if self._candidate is None else _common(self._candidate, shared)
        if len(common) < LEAST_PREFIX:
            # These are prompts of another kind than before.
            common, self._missed_tokens = shared, 0
        self._candidate = common
        more = len(common) - self._n_reused(shared)
        if more < LEAST_PREFIX:
            return
        self._missed_tokens += more * n_prompts
        if self._missed_tokens > len(common) + _RUNS_OF_COMPARED * compared_tokens:
            n_held = self._states.use_prefix(common)
            self._held, self._refused = common[:n_held], n_held < len(common)
            self._candidate, self._missed_tokens = None, 0
            self._compared = {(reused, several) for reused, several in self._compared if not reused}


def _common(one: TokenIds, other: TokenIds) -> TokenIds:
    """What two prompts begin with."""
    n_both = min(len(one), len(other))
    differs = one[:n_both] != other[:n_both]
    return one[: int(differs.argmax()) if differs.any() else n_both]
