"""Several workers fill a store together: Ray actors, each with the model, on this machine or on a cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from activation_store.capture.batches import BatchPlan
from activation_store.errors import StoreError
from activation_store.extraction.fill import Begun
from activation_store.extraction.meter import Meter
from activation_store.extraction.model_run import ModelRun
from activation_store.extraction.schedule import MOST_DEATHS, Schedule
from activation_store.extraction.worker import Counts, Messages, ShardWorker
from activation_store.store.claims import check_can_share, committed_checksums, void_claim
from activation_store.store.writer import StoreWriter
from probesweep_ray import Cluster, Machines, connected

logger = logging.getLogger(__name__)

# Two shards, and how far it is.
_CALLS_AT_ONCE = 4
_PROGRESS_S, _SHOW_S = 1.0, 0.2
# A first worker that takes longer is worth a word: the model is large, or the cluster is busy.
_LONG_S = 60.0
# How long to wait for another worker when all have died, at least; or so many times as long as the first one took.
_START_S, _START_TIMES = 600.0, 5


@contextmanager
def workers(machines: Machines, run: ModelRun, *, gpus: bool | None) -> Generator[Workers]:
    """Workers for one extraction, ended with it.

    Parameters
    ----------
    machines : Machines
        Where they are.
    run : ModelRun
        What each of them runs.
    gpus : bool, optional
        Whether each has a GPU of its own; None: if there are any.

    Raises
    ------
    MachinesError
        They cannot be had.
    """
    with connected(machines, gpus=gpus) as cluster:
        crew = Workers(cluster, run, check_model=not machines.is_local)
        try:
            yield crew
        finally:
            crew.end()


@dataclass
class _Worker:
    """One actor, and what it was asked."""

    actor: Any
    ready: bool = False
    counts: Counts = field(default_factory=lambda: Counts(0, 0))
    n_committed_rows: int = 0


@dataclass(frozen=True)
class _Question:
    """What a worker was asked: to load the model, for a shard, or how far it is."""

    worker: int
    shard: int | None = None
    is_progress: bool = False


class Workers:
    """Ray actors that share the shards of a store.

    Parameters
    ----------
    cluster : Cluster
        Where they run.
    run : ModelRun
        What each runs.
    check_model : bool
        Whether other machines may have another model under the same name.
    """

    def __init__(self, cluster: Cluster, run: ModelRun, *, check_model: bool) -> None:
        import ray

        self._cluster = cluster
        self._check_model = check_model
        # Sent once to each machine.
        self._run = ray.put(replace(run, device=torch.device(cluster.device)))
        self._lengths = run.prompts.n_tokens
        self._workers: dict[int, _Worker] = {}
        self._asked: dict[Any, _Question] = {}
        self._n_started = 0
        self._said: set[str] = set()
        self._last_alive = time.monotonic()
        # Tokens of workers that are gone.
        self._n_tokens_before = 0
        self._n_deaths_at_start = 0
        self._last_death = ""
        self._start_s = _START_S
        self._last_asked = self._last_shown = 0.0

    def begin(self, prefix_tokens: int, max_rows: int | None, stored: BatchPlan | None = None) -> Begun:
        """Load the model in one worker, which plans; parameters as of `ModelRun.begin`."""
        import ray

        for _ in range(MOST_DEATHS):
            started = time.monotonic()
            number = self._start(prefix_tokens, max_rows, stored)
            if not ray.wait(list(self._asked), timeout=_LONG_S)[0]:
                logger.warning("waiting for a first worker: it loads the model, or the cluster has no room for it yet")
            begun = self._loaded(next(iter(self._asked)))
            self._start_s = max(_START_S, _START_TIMES * (time.monotonic() - started))
            if begun is not None:
                self._workers[number].ready = True
                return begun
        raise StoreError(
            f"{MOST_DEATHS} worker processes died while they loaded the model ({self._last_death}); if there was too "
            "little memory, use fewer workers=N, or a 16-bit dtype=..."
        )

    def fill(self, writer: StoreWriter, plan: BatchPlan) -> None:
        """Write all pending shards.

        Parameters
        ----------
        writer : StoreWriter
            Holds the store's lock; the workers write.
        plan : BatchPlan
            Of `begin`.

        Raises
        ------
        StoreError
            Workers died again and again at one shard; names its rows.
        NonFiniteError, DeviceMemoryError, OSError
            As `activation_store.extraction.fill.run_shards`, of whichever worker met it first.
        """
        import ray

        check_can_share(writer.spec, str(writer.path))
        layout, pending = writer.spec.layout, writer.pending_shards
        schedule = Schedule({shard: self._n_tokens(layout.rows(shard)) for shard in pending})
        for number in self._workers:
            schedule.join(number)
        n_workers = min(self._cluster.n_workers, len(pending))
        if n_workers < self._cluster.n_workers:
            logger.warning(
                "%d of %d workers have something to do: %s has %d shards to write; make more with a smaller "
                "shard_samples=...",
                n_workers,
                self._cluster.n_workers,
                writer.path,
                len(pending),
            )
        try:
            with Meter(writer) as meter:
                while not schedule.is_done:
                    while len(self._workers) < n_workers:
                        self._start(plan.prefix_tokens, plan.max_rows, plan)
                    self._give(schedule, writer)
                    answered, _ = ray.wait(list(self._asked), num_returns=1, timeout=_PROGRESS_S)
                    for answer in answered:
                        self._take(answer, schedule, writer, plan)
                    self._check_alive()
                    self._ask_progress()
                    self._show(meter, at_once=schedule.is_done)
        except BaseException:
            # Before the store's lock is let go of: nobody else is to write while workers do.
            self.end()
            raise

    def end(self) -> None:
        """End all workers; what they have committed stays."""
        import ray

        for worker in self._workers.values():
            ray.kill(worker.actor)
        self._workers.clear()
        self._asked.clear()

    def _start(self, prefix_tokens: int, max_rows: int | None, stored: BatchPlan | None) -> int:
        import ray

        number, self._n_started = self._n_started, self._n_started + 1
        actor_class: Any = ray.remote(ShardWorker)
        actor = actor_class.options(**self._cluster.options, max_concurrency=_CALLS_AT_ONCE).remote(
            self._run, self._cluster.threads
        )
        self._workers[number] = _Worker(actor)
        asked = actor.begin.remote(prefix_tokens, max_rows, stored, check_model=self._check_model)
        self._asked[asked] = _Question(number)
        return number

    def _loaded(self, answer: Any) -> Begun | None:
        """Of the first worker; None if it died."""
        question = self._asked.pop(answer)
        found = self._answer(answer)
        if found is None:
            del self._workers[question.worker]
            return None
        begun, messages = found
        self._say(messages)
        return begun

    def _give(self, schedule: Schedule, writer: StoreWriter) -> None:
        """Shards to workers that can take one."""
        # Workers may be in another folder.
        path = writer.path.absolute() if isinstance(writer.path, Path) else writer.path
        for number, worker in self._workers.items():
            while worker.ready and (shard := schedule.next(number)) is not None:
                self._asked[worker.actor.write.remote(path, shard)] = _Question(number, shard)

    def _take(self, answer: Any, schedule: Schedule, writer: StoreWriter, plan: BatchPlan) -> None:
        """One answer of a worker."""
        question = self._asked.pop(answer)
        worker = self._workers.get(question.worker)
        if worker is None:
            # It died, which another answer has told.
            return
        found = self._answer(answer)
        if found is None:
            self._bury(question.worker, schedule, writer)
        elif question.is_progress:
            worker.counts = found
        elif question.shard is not None:
            checksums, messages = found
            self._say(messages)
            writer.note(question.shard, checksums)
            schedule.done(question.worker, question.shard)
            worker.n_committed_rows += len(writer.spec.layout.rows(question.shard))
        else:
            begun, messages = found
            self._say(messages)
            if begun.plan != plan:
                logger.warning(
                    "a worker has less free memory than the first, so its batches differ (%s, not %s): the last bits "
                    "of its values may differ",
                    begun.plan.describe(),
                    plan.describe(),
                )
            worker.ready = True
            schedule.join(question.worker)

    def _bury(self, number: int, schedule: Schedule, writer: StoreWriter) -> None:
        """Take its shards from a worker that died, unless it had committed them."""
        import ray

        worker = self._workers.pop(number)
        # Ray may be wrong, and the worker only out of reach.
        ray.kill(worker.actor)
        self._n_tokens_before += worker.counts.n_tokens
        if not worker.ready:
            self._count_death_at_start()
            return
        lost, hopeless = schedule.died(number)
        for shard in lost:
            void_claim(writer.storage, writer.spec, shard)
            checksums = committed_checksums(writer.storage, writer.spec, shard)
            if checksums is not None:
                writer.note(shard, checksums)
                schedule.drop(shard)
        if hopeless is not None and hopeless in writer.pending_shards:
            rows = writer.spec.layout.rows(hopeless)
            raise StoreError(
                f"{writer.path}: workers died {MOST_DEATHS} times at rows {rows.start}-{rows.stop - 1}; all other "
                "shards that were committed are kept. If they ran out of memory, use fewer workers=N, a smaller "
                "batch_size=... or a smaller shard_samples=..."
            )

    def _count_death_at_start(self) -> None:
        self._n_deaths_at_start += 1
        if self._n_deaths_at_start >= MOST_DEATHS * self._cluster.n_workers:
            raise StoreError(
                f"{self._n_deaths_at_start} worker processes died while they loaded the model ({self._last_death}); "
                "what was committed is kept. If there was too little memory, use fewer workers=N, or a 16-bit dtype=..."
            )

    def _answer(self, answer: Any) -> Any:
        """What a worker answers; None if it died. What it raised is raised here."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(answer)
        except RayTaskError as error:
            # What the worker raised, without Ray's pages around it.
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except RayError as error:
            self._last_death = next(iter(str(error).splitlines()), type(error).__name__)
            return None

    def _check_alive(self) -> None:
        """Give up where the cluster starts no worker any more."""
        if any(worker.ready for worker in self._workers.values()):
            self._last_alive = time.monotonic()
        if time.monotonic() - self._last_alive > self._start_s:
            raise StoreError(
                f"no worker was started for {self._start_s / 60:.0f} minutes; what was committed is kept. Does the "
                "cluster still have room for one?"
            )

    def _ask_progress(self) -> None:
        if time.monotonic() - self._last_asked < _PROGRESS_S:
            return
        self._last_asked = time.monotonic()
        asked = {question.worker for question in self._asked.values() if question.is_progress}
        for number, worker in self._workers.items():
            if worker.ready and number not in asked:
                self._asked[worker.actor.counts.remote()] = _Question(number, is_progress=True)

    def _show(self, meter: Meter, *, at_once: bool) -> None:
        # With many small shards this would be most of the driver's work.
        if time.monotonic() - self._last_shown < _SHOW_S and not at_once:
            return
        self._last_shown = time.monotonic()
        begun = sum(max(worker.counts.n_rows - worker.n_committed_rows, 0) for worker in self._workers.values())
        n_tokens = self._n_tokens_before + sum(worker.counts.n_tokens for worker in self._workers.values())
        meter.show(begun, n_tokens, sum(worker.ready for worker in self._workers.values()))

    def _say(self, messages: Messages) -> None:
        """What workers would have said, each text once."""
        for level, text in messages:
            if text not in self._said:
                self._said.add(text)
                logger.log(level, "%s", text)

    def _n_tokens(self, rows: range) -> int:
        return int(self._lengths[rows.start : rows.stop].sum())
