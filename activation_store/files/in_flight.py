"""Several requests at the same time, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_flight(n: int, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of a function for each item, in order; at most `n` calls are running or waiting to be taken."""
    if n == 1:
        yield from map(function, items)
        return
    rest = iter(items)
    with ThreadPoolExecutor(n, thread_name_prefix="request") as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(rest, n))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)
