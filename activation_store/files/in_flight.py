"""Several requests at the same time, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class InFlight:
    """Calls that run ahead of whoever takes their results: so many in all, however many ask.

    Parameters
    ----------
    n : int
        Most calls that are running or waiting to be taken; 1: each is made when its result is asked for.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._room = BoundedSemaphore(n)
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of a function for each item, in order."""
        if self._n == 1:
            yield from map(function, items)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._n, thread_name_prefix="request")
        rest, waiting, more = iter(items), deque[Future[Result]](), True
        try:
            while True:
                while more and self._room.acquire(blocking=False):
                    try:
                        waiting.append(self._pool.submit(function, next(rest)))
                    except StopIteration:
                        more = False
                        self._room.release()
                if waiting:
                    try:
                        result = waiting.popleft().result()
                    finally:
                        self._room.release()
                    yield result
                elif more:
                    # Others have all the room: no more than this one result is held.
                    try:
                        item = next(rest)
                    except StopIteration:
                        return
                    yield function(item)
                else:
                    return
        finally:
            for each in waiting:
                each.cancel()
                self._room.release()


def in_flight(n: int, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """As `InFlight.map`, for one use."""
    return InFlight(n).map(function, items)
