"""Which worker does which shard, and when to give up. Pure: no worker, no clock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

# A shard at which workers die again and again would be tried for ever.
MOST_DEATHS = 3


class Schedule:
    """Shards for workers that become free one after another.

    Long shards are given out first, so that no worker begins one when all others are about to be done. A worker has a
    second shard waiting, to begin it while it writes the first, as long as every worker can have one.

    Parameters
    ----------
    n_tokens : mapping of int to int
        Shards to do -> how long they are.
    """

    def __init__(self, n_tokens: Mapping[int, int]) -> None:
        self._queue = deque(sorted(n_tokens, key=lambda shard: (-n_tokens[shard], shard)))
        self._given: dict[int, deque[int]] = {}
        self._deaths: Counter[int] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return not self._queue and not any(self._given.values())

    def join(self, worker: int) -> None:
        """A worker is ready."""
        self._given[worker] = deque()

    def next(self, worker: int) -> int | None:
        """A shard for a worker to do now or next; None: it has enough, or there is none."""
        given = self._given[worker]
        spare = len(self._queue) >= len(self._given)
        if not self._queue or len(given) >= (2 if spare else 1):
            return None
        given.append(self._queue.popleft())
        return given[-1]

    def done(self, worker: int, shard: int) -> None:
        """A shard is committed."""
        self._given[worker].remove(shard)

    def died(self, worker: int) -> tuple[list[int], int | None]:
        """A worker is gone, and what it had is to be done again.

        Returns
        -------
        list of int
            Its shards.
        int or None
            The one at which workers have died too often, if there is one.
        """
        lost = list(self._given.pop(worker))
        # The others had not begun, or only just.
        suspects, others = lost[:1], lost[1:]
        self._deaths.update(suspects)
        self._queue.extendleft(reversed(others))
        for shard in suspects:
            if self._deaths[shard] == 1:
                self._queue.appendleft(shard)
            else:
                # Nothing else is to be missing if this one cannot be done.
                self._queue.append(shard)
        return lost, next((shard for shard in suspects if self._deaths[shard] >= MOST_DEATHS), None)

    def drop(self, shard: int) -> None:
        """A shard need not be done again: the worker that died had committed it."""
        self._queue.remove(shard)
