"""One of several processes that fill a store: it runs the shards that it is given, and commits them itself."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import torch

from activation_store.capture.batches import BatchPlan
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import States
from activation_store.capture.splitting import SplittingRunner
from activation_store.errors import InputError
from activation_store.extraction.fill import Begun, run_shards
from activation_store.extraction.model_run import ModelRun
from activation_store.files.storage import Location, Storage, open_storage
from activation_store.format.spec import StoreSpec
from activation_store.models.info import read_model_info
from activation_store.store.claims import writer_of_shard
from activation_store.store.documents import read_spec

# Levels and texts of what a worker would say on a terminal.
Messages = list[tuple[int, str]]


@dataclass(frozen=True)
class Counts:
    """What has gone through a worker's model so far."""

    n_rows: int
    n_tokens: int


class ShardWorker:
    """Runs shards of one store. Its methods are called by several threads: one shard is written while the next runs.

    Parameters
    ----------
    run : ModelRun
        Prompts and model.
    threads : int
        Of torch.
    """

    def __init__(self, run: ModelRun, threads: int) -> None:
        torch.set_num_threads(threads)
        self._run = run
        # Another text for every process: claims say whose they are.
        self._name = secrets.token_hex(8)
        self._messages: Messages = []
        self._turn, self._counting = Lock(), Lock()
        self._n_rows = self._n_tokens = 0
        self._states: HiddenStates | None = None
        self._runner: SplittingRunner[Callable[[], States]] | None = None
        self._plan: BatchPlan | None = None
        self._opened: tuple[Storage, StoreSpec] | None = None
        logging.getLogger("activation_store").addHandler(_Kept(self._messages))

    def begin(
        self, prefix_tokens: int, max_rows: int | None, stored: BatchPlan | None, *, check_model: bool
    ) -> tuple[Begun, Messages]:
        """Load the model.

        Parameters
        ----------
        prefix_tokens, max_rows, stored
            As of `ModelRun.begin`.
        check_model : bool
            Whether this may be another machine, with another model under the same name.
        """
        if check_model:
            found = read_model_info(self._run.source).weights
            if found != self._run.info.weights:
                raise InputError(
                    f"model={self._run.source.name!r} is another model on one of the machines ({found}) than on this "
                    f"({self._run.info.weights}); put the same files there",
                    argument="model",
                )
        self._states, self._plan = self._run.begin(prefix_tokens, max_rows, stored)
        self._runner = SplittingRunner(self._states.start)
        return Begun.of(self._states, self._plan), self._said()

    def write(self, path: Location, shard: int) -> tuple[bytes, Messages]:
        """Run a shard and commit it; returns the checksums of its cells."""
        assert self._states is not None
        assert self._plan is not None
        storage, spec = self._store(path)
        with writer_of_shard(storage, spec, shard, self._name) as writer:
            given = (self._states, self._run.prompts, self._plan, [shard], self._count, self._turn, self._runner)
            run_shards(writer, *given)
            return writer.checksums(shard), self._said()

    def counts(self) -> Counts:
        """What has been run so far."""
        return Counts(self._n_rows, self._n_tokens)

    def _store(self, path: Location) -> tuple[Storage, StoreSpec]:
        """Opened once."""
        if self._opened is None:
            storage = open_storage(path)
            self._opened = storage, read_spec(storage)[0]
        return self._opened

    def _count(self, n_rows: int, n_tokens: int) -> None:
        with self._counting:
            self._n_rows += n_rows
            self._n_tokens += n_tokens

    def _said(self) -> Messages:
        said = self._messages[:]
        del self._messages[: len(said)]
        return said


class _Kept(logging.Handler):
    """Keeps messages for the process that the user sees."""

    def __init__(self, messages: Messages) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self._messages.append((record.levelno, record.getMessage()))
