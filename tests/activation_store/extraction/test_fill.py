"""The loop over shards: what it keeps in memory, what overlaps, what an error or an interrupt leaves behind."""

import errno
import signal
import threading
import time

import numpy as np
import pytest

from activation_store import ActivationStore, NonFiniteError
from activation_store.capture.batches import BatchPlan
from activation_store.extraction.fill import fill
from activation_store.files import durable
from activation_store.prompts.prompts import ControlRows, Prompts
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import make_beside, make_spec, make_values

PLAN = BatchPlan(max_tokens=1000, max_rows=2, prefix_tokens=0)


class Recorded:
    """Stands for a model: returns known values; a prompt is its row's number, repeated."""

    def __init__(self, values, before=lambda _rows: None):
        self.values = values
        self.before = before
        self.rows = []

    def start(self, prompts):
        rows = [int(prompt[0]) for prompt in prompts]
        self.before(rows)
        self.rows += rows
        return lambda: self.values[rows]

    def first_nonfinite_module(self, prompt):
        return f"module of row {prompt[0]}"


def numbered_prompts(n_samples):
    lengths = 2 + np.arange(n_samples) % 3
    return Prompts(
        token_ids=np.repeat(np.arange(n_samples), lengths).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        text_hash=np.arange(n_samples, dtype=np.uint64),
        positions=(-2, -1),
        tail="",
        truncated_rows=(),
        control_rows=ControlRows(),
    )


@pytest.fixture
def writer(tmp_path):
    with StoreWriter.create(tmp_path / "s.zarr", make_spec(), make_beside(11)) as writer:
        yield writer


def test_every_row_lands_in_its_place(writer):
    values = make_values(writer.spec)
    states = Recorded(values)
    fill(writer, states, numbered_prompts(11), PLAN)
    assert sorted(states.rows) == list(range(11))
    assert np.array_equal(ActivationStore.open(writer.path)[:], values)


def test_the_model_runs_while_a_shard_is_written(writer, monkeypatch):
    """The first shard's commit waits here until the model has begun with the second: one thread would never get on."""
    next_shard = threading.Event()
    real = durable.write_file

    def commit_later(path, pieces):
        assert next_shard.wait(timeout=60)
        real(path, pieces)

    monkeypatch.setattr("activation_store.files.disk.write_file", commit_later)
    values = make_values(writer.spec)
    fill(
        writer, Recorded(values, lambda rows: next_shard.set() if min(rows) >= 4 else None), numbered_prompts(11), PLAN
    )
    assert np.array_equal(ActivationStore.open(writer.path)[:], values)


def test_no_more_than_a_shard_waits_for_the_disk(writer, monkeypatch):
    disk = threading.Semaphore(0)
    real, n_added, n_run = writer.add, [], []

    def add_later(rows, block):
        assert disk.acquire(timeout=60)
        n_added.extend(rows)
        real(rows, block)

    def before(rows):
        assert len(n_run) - len(n_added) <= 4
        n_run.extend(rows)

    monkeypatch.setattr(writer, "add", add_later)
    threading.Timer(0.5, lambda: disk.release(99)).start()
    fill(writer, Recorded(make_values(writer.spec), before), numbered_prompts(11), PLAN)
    assert len(n_added) == 11


def test_the_first_failure_of_the_disk_is_told(writer, monkeypatch):
    def full(path, _pieces):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("activation_store.files.disk.write_file", full)
    states = Recorded(make_values(writer.spec))
    with pytest.raises(OSError, match=r"No space left on device.*c/0/0/0/\.0\.partial"):
        fill(writer, states, numbered_prompts(11), PLAN)


def test_an_interrupt_keeps_the_shard_whose_rows_are_in(writer):
    def interrupt(rows):
        if 4 in rows:
            raise KeyboardInterrupt

    values = make_values(writer.spec)
    with pytest.raises(KeyboardInterrupt):
        fill(writer, Recorded(values, interrupt), numbered_prompts(11), PLAN)
    assert writer.pending_shards == [1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_stop_it(writer, bad):
    values = make_values(writer.spec)
    values[6, 1, 0, 3] = bad
    with pytest.raises(
        NonFiniteError,
        match=r"for row 6 among those run so far, first at layer 2 \(row 6\), in float32, .* module of row 6",
    ):
        fill(writer, Recorded(values), numbered_prompts(11), PLAN)
    assert 1 in writer.pending_shards


@pytest.mark.slow
def test_a_second_interrupt_does_not_leave_the_thread_writing(writer, monkeypatch):
    """The lock is let go of when `fill` returns: nothing may be written after that."""
    real, begun, finished = writer.add, threading.Event(), []

    def add_slowly(rows, block):
        begun.set()
        time.sleep(0.5)
        real(rows, block)
        finished.append(rows)

    def impatient(rows):
        if len(states.rows) >= 2:
            begun.wait(timeout=60)
            threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "add", add_slowly)
    states = Recorded(make_values(writer.spec), impatient)
    with pytest.raises(KeyboardInterrupt):
        fill(writer, states, numbered_prompts(11), PLAN)
    n_finished = len(finished)
    assert n_finished == 1
    time.sleep(1)
    assert len(finished) == n_finished


def test_the_named_module_is_that_of_a_row_that_breaks_first(writer):
    values = make_values(writer.spec)
    values[4, 2, 0, 3], values[5, 0, 0, 3] = np.nan, np.inf
    layer = writer.spec.layers[0]
    with pytest.raises(NonFiniteError, match=rf"first at layer {layer} \(row 5\), .* module of row 5"):
        fill(writer, Recorded(values), numbered_prompts(11), BatchPlan(100, 4, 0))
