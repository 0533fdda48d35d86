"""Run the model over every pending shard, while another thread writes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from activation_store.capture.batches import BatchPlan
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import States
from activation_store.capture.splitting import SplittingRunner
from activation_store.errors import NonFiniteError, show_rows
from activation_store.extraction.meter import Meter
from activation_store.extraction.model_run import ModelRun
from activation_store.format.spec import StoreSpec
from activation_store.prompts.prompts import Prompts, TokenIds
from activation_store.store.writer import StoreWriter

logger = logging.getLogger(__name__)


@runtime_checkable
class PromptRunner(Protocol):
    """What the loop needs from a loaded model: `activation_store.capture.hidden_states.HiddenStates`, or a stand-in."""

    def start(self, prompts: Sequence[TokenIds]) -> Callable[[], States]:
        """Begin to run some prompts; what it returns waits for their hidden states at their last tokens."""
        ...

    def first_nonfinite_module(self, prompt: TokenIds) -> str | None:
        """Name of the first module that returns NaN or infinity on a prompt."""
        ...


@dataclass(frozen=True)
class Begun:
    """A loaded model, for who plans and records.

    Parameters
    ----------
    plan : BatchPlan
        How prompts are put into batches.
    attention : str
        The implementation that the model uses.
    parity : dict
        How far batches may differ, and did, from single prompts.
    """

    plan: BatchPlan
    attention: str
    parity: dict[str, float]

    @classmethod
    def of(cls, states: HiddenStates, plan: BatchPlan) -> Begun:
        """What is to be known of a model that is loaded."""
        return cls(plan, states.attention, states.parity)


class OneProcess:
    """Fills a store in this process; `activation_store.extraction.distributed.Workers` does it in others."""

    def __init__(self, run: ModelRun) -> None:
        self._run = run
        self._states: HiddenStates | None = None

    def begin(self, prefix_tokens: int, max_rows: int | None, stored: BatchPlan | None = None) -> Begun:
        """Load the model; parameters as of `ModelRun.begin`."""
        self._states, plan = self._run.begin(prefix_tokens, max_rows, stored)
        return Begun.of(self._states, plan)

    def fill(self, writer: StoreWriter, plan: BatchPlan) -> None:
        """Write all pending shards; raises as `fill`."""
        assert self._states is not None
        fill(writer, self._states, self._run.prompts, plan)


def fill(writer: StoreWriter, states: PromptRunner, prompts: Prompts, plan: BatchPlan) -> None:
    """Write all pending shards of a store, with a progress bar; parameters and errors as of `run_shards`."""
    with Meter(writer) as meter:
        run_shards(writer, states, prompts, plan, writer.pending_shards, meter.update)


def run_shards(
    writer: StoreWriter,
    states: PromptRunner,
    prompts: Prompts,
    plan: BatchPlan,
    shards: Iterable[int],
    count: Callable[[int, int], None],
    turn: AbstractContextManager[Any] | None = None,
    runner: SplittingRunner[Callable[[], States]] | None = None,
) -> None:
    """Run the prompts of some shards and write these.

    Memory: the shard that is being collected, at most one shard's worth of values that wait for the disk, and the batch
    that has just been run (which is no larger than a shard, mostly much smaller).

    Parameters
    ----------
    writer : StoreWriter
        Of the store.
    states : PromptRunner
        The model.
    prompts : Prompts
        One per sample.
    plan : BatchPlan
        How they are put into batches.
    shards : iterable of int
        Not committed.
    count : callable
        Told how many rows and tokens went through the model.
    turn : context manager, optional
        Held while the model runs, and not while the last rows are written.
    runner : SplittingRunner, optional
        Of `states`, which knows from earlier shards what fits into the device's memory.

    Raises
    ------
    NonFiniteError
        The model produced NaN or infinity.
    DeviceMemoryError
        A single prompt does not fit in the device's memory.
    OSError, StoreError
        As `StoreWriter.add`.
    """
    spec, n_tokens = writer.spec, prompts.n_tokens
    runner = runner or SplittingRunner(states.start)
    try:
        with _BackgroundWriter(writer) as background, turn or nullcontext():
            for shard in shards:
                for batch in plan.batches(n_tokens, spec.layout.rows(shard)):
                    batch_prompts = [prompts.row(row) for row in batch.tolist()]
                    for rows, wait in runner.run(batch, batch_prompts):
                        background.add(rows, wait)
                        count(len(rows), int(n_tokens[rows].sum()))
    except _BadValuesError as bad:
        with turn or nullcontext():
            module = states.first_nonfinite_module(prompts.row(bad.row))
        origin = f", first returned by {module}" if module else ""
        overflow = "float16 ends at 65504: try dtype='bfloat16' or dtype='float32'"
        way_out = overflow if spec.dtype == "float16" else "try dtype='float32', or drop these rows"
        raise NonFiniteError(
            f"the model returns NaN or infinity for {show_rows(bad.rows)} among those run so far, first at layer "
            f"{bad.layer} (row {bad.row}), in {spec.dtype}{origin}; {way_out}",
            argument="dtype",
        ) from None


class _BackgroundWriter:
    """Takes rows and returns at once; a separate thread waits for their values and writes them, in order.

    The thread's time goes to the device, the disk and memory copies, for which Python lets the others run.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        layout = writer.spec.layout
        self._max_nbytes = layout.shard_nbytes
        self._sample_nbytes = layout.store_nbytes // writer.spec.n_samples
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._waiting: deque[tuple[Future[None], int]] = deque()

    def add(self, rows: Integer[np.ndarray, " row"], wait: Callable[[], States]) -> None:
        """Queue rows; waits while a shard's worth of them is queued. Raises what writing earlier ones raised."""
        n_bytes = len(rows) * self._sample_nbytes
        while self._waiting and (self._waiting[0][0].done() or self._n_waiting_nbytes + n_bytes > self._max_nbytes):
            self._waiting.popleft()[0].result()
        self._waiting.append((self._executor.submit(self._write, rows, wait), n_bytes))

    def _write(self, rows: Integer[np.ndarray, " row"], wait: Callable[[], States]) -> None:
        spec = self._writer.spec
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is reported with its rows
            values = wait().astype(spec.numpy_dtype, copy=False)
        _check_finite(values, rows, spec)
        self._writer.add(rows, values)

    @property
    def _n_waiting_nbytes(self) -> int:
        return sum(n_bytes for _, n_bytes in self._waiting)

    def __enter__(self) -> _BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interrupt too: a shard whose last rows are queued is committed.
        impatient = False
        while True:
            try:
                self._executor.shutdown(wait=True, cancel_futures=impatient)
                break
            except (KeyboardInterrupt, SystemExit):
                # The store's lock is let go of next: not while the thread still writes.
                impatient = True
        if impatient and error is None:
            raise KeyboardInterrupt
        for future, _ in self._waiting:
            problem = None if future.cancelled() else future.exception()
            if problem is not None and error is None:
                raise problem
            if problem is not None and problem is not error:
                logger.warning("writing failed at the end, too: %s", problem)


class _BadValuesError(Exception):
    """Some rows hold NaN or infinity; the first layer where one does, and a row that does there."""

    def __init__(self, rows: list[int], layer: int, row: int) -> None:
        super().__init__(rows, layer, row)
        self.rows = rows
        self.layer = layer
        self.row = row


def _check_finite(values: States, rows: Integer[np.ndarray, " row"], spec: StoreSpec) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.asarray(~finite.all(axis=(2, 3)))
        first_layer = int(bad.any(axis=0).argmax())
        at_first = rows[bad[:, first_layer]]
        raise _BadValuesError(
            np.sort(rows[np.any(bad, axis=1)]).tolist(), spec.layers[first_layer], int(at_first.min())
        )
