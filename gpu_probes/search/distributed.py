"""The blocks of a sweep in other processes: Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any

import torch

from gpu_probes.errors import CellError
from gpu_probes.search.block import BlockResult
from gpu_probes.search.block_search import BlockSearch
from gpu_probes.search.devices import workers
from gpu_probes.terms import Cell
from probesweep_ray import Cluster, WorkerError

# How often Ray may start a block again whose process ended.
_MOST_RETRIES = 3

Block = tuple[Cell, ...]


def search_blocks(cluster: Cluster, search: BlockSearch) -> Generator[list[BlockResult]]:
    """Search all blocks, each in some worker; yield what is found in the order of the blocks.

    Features are not sent: each worker opens their files. A worker that dies is replaced, and its blocks are searched
    again.

    Raises
    ------
    WorkerError
        When workers die on the same block again and again.
    """
    import ray

    plan = search.plan
    # The sums in a block, and with them its last bits, depend on how many threads it has: as many as in one process
    # with the same plan, even where a worker's share of the machine is smaller.
    threads = max(torch.get_num_threads() // plan.n_workers, 1)
    # A GPU, or a worker with more cores than that, has several blocks at work, but no more than its budget allows for.
    most = plan.n_workers if cluster.num_gpus else min(max(cluster.threads // threads, 1), plan.n_workers)
    at_once = min(most, math.ceil(len(plan.blocks) / cluster.n_workers))
    batches = deque(plan.blocks[start : start + at_once] for start in range(0, len(plan.blocks), at_once))
    try:
        # In a list, so that Ray does not read it again for each task.
        shared = [ray.put(search)]
    except TypeError as error:
        raise CellError(f"the cells cannot be sent to workers: {str(error).splitlines()[0]}") from error
    task = ray.remote(_search_batch).options(**cluster.options, max_retries=_MOST_RETRIES)
    pending: deque[tuple[Any, Sequence[Block]]] = deque()
    running: list[Any] = []
    try:
        while batches or pending:
            # What is done and not yet yielded is bounded, too: results may be large.
            while batches and len(running) < cluster.n_workers and len(pending) < 2 * cluster.n_workers:
                batch = batches.popleft()
                running.append(task.remote(shared, cluster.device, at_once, threads, batch))
                pending.append((running[-1], batch))
            if pending[0][0] in running:
                running = ray.wait(running, num_returns=1, fetch_local=False)[1]
            else:
                yield from _result(*pending.popleft())
    finally:
        for each in running:
            ray.cancel(each, force=True)


def _result(task: Any, batch: Sequence[Block]) -> list[list[BlockResult]]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task)
    except RayTaskError as error:
        # What the worker raised, without Ray's pages around it.
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except RayError as error:
        cells = ", ".join(f"{cell.layer}@{cell.position}" for block in batch for cell in block)
        raise WorkerError(
            f"worker processes died {_MOST_RETRIES + 1} times at the cells {cells} (LAYER@POSITION); if they ran out "
            "of memory, use fewer workers=N or a smaller budget_bytes=..."
        ) from error


def _search_batch(
    shared: list[Any], device: str, at_once: int, threads: int, batch: Sequence[Block]
) -> list[list[BlockResult]]:
    """Search some blocks at the same time, in a worker."""
    where = torch.device(device)
    torch.set_num_threads(threads * at_once)
    search = _opened(shared[0], where)

    def search_one(_: torch.device, block: Block) -> list[BlockResult]:
        return search(block)

    with workers([where], at_once) as submit:
        return [done.result() for done in [submit(search_one, block) for block in batch]]


@lru_cache(maxsize=1)
def _opened(shared: Any, device: torch.device) -> Callable[[Block], list[BlockResult]]:
    """Once for all blocks of a worker."""
    import ray

    search: BlockSearch = ray.get(shared)
    return search.on(device)
