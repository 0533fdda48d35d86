"""Many workers without machines: how long they stand idle under the schedule that real ones get."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from activation_store.extraction.schedule import Schedule


@dataclass(frozen=True)
class Crowd:
    """What is simulated.

    Parameters
    ----------
    n_workers : int
        All alike.
    shards_per_worker : int
        On average.
    sigma : float
        Standard deviation of the logarithm of a shard's time; the median is 1.
    known : float
        Share of the variance of that logarithm that the number of tokens tells.
    deaths : float
        Probability that a worker dies during a shard, at a random moment of it.
    start : float
        Time until a new worker has loaded the model, in median shards.
    """

    n_workers: int = 64
    shards_per_worker: int = 50
    sigma: float = 0.25
    known: float = 0.5
    deaths: float = 0.01
    start: float = 0.5


def idle_share(crowd: Crowd, seed: int) -> float:
    """Share of the workers' time, from the first shard to the last, in which they neither run shards nor load models.

    What a worker that died had begun is not idle time: it is lost, and done again.
    """
    rng = np.random.default_rng(seed)
    n_shards = crowd.n_workers * crowd.shards_per_worker
    known = rng.normal(0, crowd.sigma * crowd.known**0.5, n_shards)
    seconds = np.exp(known + rng.normal(0, crowd.sigma * (1 - crowd.known) ** 0.5, n_shards))
    n_tokens = np.rint(1000 * np.exp(known)).astype(int)
    schedule = Schedule(dict(enumerate(n_tokens.tolist())))
    # Time, worker, what happens then.
    events: list[tuple[float, int, str]] = [(0.0, worker, "ready") for worker in range(crowd.n_workers)]
    heapq.heapify(events)
    given: dict[int, list[int]] = {}
    at_work: dict[int, int] = {}
    busy = now = 0.0
    n_started = crowd.n_workers
    while not schedule.is_done:
        now, worker, what = heapq.heappop(events)
        if what == "ready":
            schedule.join(worker)
            given[worker] = []
        elif what == "done":
            shard = at_work.pop(worker)
            given[worker].remove(shard)
            schedule.done(worker, shard)
        elif what == "died":
            schedule.died(worker)
            del given[worker], at_work[worker]
            heapq.heappush(events, (now + crowd.start, n_started, "ready"))
            busy += crowd.start
            n_started += 1
        for each, shards in given.items():
            while (shard := schedule.next(each)) is not None:
                shards.append(shard)
            if each not in at_work and shards:
                at_work[each] = shards[0]
                length = float(seconds[shards[0]])
                dies = rng.random() < crowd.deaths
                length *= rng.random() if dies else 1
                busy += length
                heapq.heappush(events, (now + length, each, "died" if dies else "done"))
    return 1 - busy / (crowd.n_workers * now)
