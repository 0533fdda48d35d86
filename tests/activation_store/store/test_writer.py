"""What a writer refuses, and what it does when the disk fails."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from activation_store import ActivationStore, InputError, StoreError, StoreLockedError
from activation_store.files.disk import Disk
from activation_store.files.lock import WriterLock, check_unlocked
from activation_store.store.writer import StoreWriter, check_can_create
from tests.helpers.stores import make_beside, make_spec, make_values, same_bits


def fail_on(monkeypatch, name, number):
    """Make the `number`-th call of a function of os fail from now on, and count the calls."""
    real, calls = getattr(os, name), []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 8))
def test_a_failed_fsync_ends_the_writer_and_is_not_retried(number, tmp_path, monkeypatch):
    spec = make_spec(8)
    values = make_values(spec)
    path = tmp_path / "s.zarr"
    with StoreWriter.create(path, spec, make_beside(8)) as writer:
        (path / "activations/c/0/0/0").mkdir(parents=True)
        calls = fail_on(monkeypatch, "fsync", number)
        # Of one commit: the folder above, the shard, its folder; the same of its record. The seventh is the next one's.
        with pytest.raises(OSError, match=r"Input/output error: '.*s\.zarr/activations"):
            writer.add(np.arange(8), values)
        assert len(calls) == number
        with pytest.raises(StoreError, match="an earlier write failed"):
            writer.add(np.arange(4, 8), values[4:])
        assert len(calls) == number
    monkeypatch.undo()
    store = ActivationStore.open(path)
    assert store.n_committed == (4 if number == 7 else 0)
    with StoreWriter.resume(path, spec.fingerprint) as writer:
        for shard in writer.pending_shards:
            rows = np.array(spec.layout.rows(shard))
            writer.add(rows, values[rows])
    same_bits(ActivationStore.open(path)[:], values)


def test_a_record_that_may_not_be_on_disk_is_taken_back(tmp_path, monkeypatch):
    spec = make_spec(8)
    path = tmp_path / "s.zarr"
    with StoreWriter.create(path, spec, make_beside(8)) as writer:
        (path / "activations/c/0/0/0").mkdir(parents=True)
        fail_on(monkeypatch, "fsync", 6)
        with pytest.raises(OSError, match="journal"):
            writer.add(np.arange(4), make_values(spec)[:4])
    assert [file.name for file in (path / "activations/journal").iterdir()] == ["created"]


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: max(1, len(data) // 3)]))
    spec = make_spec()
    values = make_values(spec)
    with StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)) as writer:
        writer.add(np.arange(11), values)
    monkeypatch.undo()
    same_bits(ActivationStore.open(tmp_path / "s.zarr")[:], values)


def test_rows_that_are_not_there_are_refused(tmp_path):
    spec = make_spec()
    with StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)) as writer:
        for rows in ([11], [-1], [0, 99]):
            with pytest.raises(InputError, match="has rows 0 to 10, not"):
                writer.add(np.array(rows), make_values(spec)[: len(rows)])


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        ([0, 1], (2, 1, 2, 7), r"2 rows need values of shape \[2, 3, 2, 7\], not \[2, 1, 2, 7\]"),
        ([0, 0, 1], (3, 3, 2, 7), "given twice"),
    ],
)
def test_nothing_is_broadcast_or_overwritten(rows, shape, message, tmp_path):
    with StoreWriter.create(tmp_path / "s.zarr", make_spec(), make_beside(11)) as writer:
        with pytest.raises(InputError, match=message):
            writer.add(np.array(rows), np.zeros(shape, dtype=np.float32))
        writer.add(np.array([1]), np.zeros((1, 3, 2, 7), dtype=np.float32))
        with pytest.raises(InputError, match="a row of shard 0 is given again"):
            writer.add(np.array([0, 1]), np.zeros((2, 3, 2, 7), dtype=np.float32))


def test_two_creations_at_once(tmp_path):
    spec = make_spec()
    path = tmp_path / "s.zarr"
    with StoreWriter.create(path, spec, make_beside(11)), pytest.raises(StoreLockedError, match="process"):
        StoreWriter.create(path, spec, make_beside(11))
    with pytest.raises(InputError, match="another process has created a store here; run the same command again"):
        StoreWriter.create(path, spec, make_beside(11))
    draft = tmp_path / ".t.zarr.creating/activations"
    draft.mkdir(parents=True)
    lock = WriterLock.acquire(draft / "writer.lock", tmp_path / "t.zarr")
    for attempt in (
        lambda path: check_can_create(Disk(path)),
        lambda path: StoreWriter.create(path, spec, make_beside(11)),
    ):
        with pytest.raises(StoreLockedError, match="process"):
            attempt(tmp_path / "t.zarr")
    lock.release()


def test_what_a_killed_creation_of_another_store_left_is_not_in_this_one(tmp_path):
    left = tmp_path / ".s.zarr.creating/old label/c/0"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"old")
    StoreWriter.create(tmp_path / "s.zarr", make_spec(), make_beside(11)).__exit__(None, None, None)
    assert not (tmp_path / "s.zarr/old label").exists()


def test_two_readers_of_the_lock_do_not_refuse_each_other(tmp_path):
    lock = tmp_path / "store/activations/lock"
    lock.parent.mkdir(parents=True)
    lock.write_bytes(b"\xff no pid")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        check_unlocked(lock, lock.parent)
        with pytest.raises(StoreLockedError, match="is being written by another process"):
            WriterLock.acquire(lock, lock.parent)


def test_a_lock_on_a_failing_disk_names_its_file(tmp_path, monkeypatch):
    real_close = os.close

    def fail(descriptor, *_):
        raise OSError(errno.EIO, "Input/output error")

    def close_and_fail(descriptor):
        real_close(descriptor)
        fail(descriptor)

    lock = tmp_path / "store/activations/lock"
    lock.parent.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        patch.setattr(os, "close", close_and_fail)
        with pytest.raises(OSError, match="Input/output error") as caught:
            WriterLock.acquire(lock, lock.parent)
    assert caught.value.filename == str(lock)


def test_places_where_no_store_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for path, message in {
        tmp_path / "file": "exists and is not a store",
        tmp_path / "dangling": "exists and is not a store",
        tmp_path / "file/s.zarr": "file is a file",
        Path(): "is the current folder",
    }.items():
        with pytest.raises(InputError, match=message):
            StoreWriter.create(path, make_spec(), make_beside(11))


def test_two_writers_at_once_in_one_process(tmp_path):
    spec = make_spec()
    with StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)):
        for take_up in (StoreWriter.resume, lambda *a: StoreWriter.repair(*a, make_beside(11))):
            with pytest.raises(StoreLockedError, match=f"is being written by process {os.getpid()}"):
                take_up(tmp_path / "s.zarr", spec.fingerprint)
    StoreWriter.resume(tmp_path / "s.zarr", spec.fingerprint).__exit__(None, None, None)


def test_a_failed_creation_leaves_no_store_and_no_lock(tmp_path, monkeypatch):
    spec = make_spec()
    fail_on(monkeypatch, "replace", 1)
    with pytest.raises(OSError, match="Input/output error"):
        StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11))
    monkeypatch.undo()
    assert not (tmp_path / "s.zarr").exists()
    StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)).__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr"]


def test_a_failed_take_up_lets_go_of_the_lock(tmp_path):
    spec = make_spec()
    StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)).__exit__(None, None, None)
    for take_up in (StoreWriter.resume, lambda *a: StoreWriter.repair(*a, make_beside(11))):
        with pytest.raises(InputError, match="model"):
            take_up(tmp_path / "s.zarr", {"model2": "n"})
    StoreWriter.resume(tmp_path / "s.zarr", spec.fingerprint).__exit__(None, None, None)


def test_what_a_killed_process_wrote_is_made_durable_first(tmp_path, monkeypatch):
    spec = make_spec()
    path = tmp_path / "s.zarr"
    with StoreWriter.create(path, spec, make_beside(11)) as writer:
        writer.add(np.arange(4, 8), make_values(spec)[4:8])
    real, synced = os.fsync, []

    def note(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with StoreWriter.resume(path, spec.fingerprint):
        # The rows of a shard that was committed, by a record that may not be on disk.
        journal = path / "activations/journal"
        assert synced == [tmp_path, path / "activations", journal / ".1.partial", journal]


def test_memory_is_one_shard_and_a_spare(tmp_path):
    spec = make_spec(64)
    values = make_values(spec)
    with StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(64)) as writer:
        for row in range(64):
            writer.add(np.array([row]), values[row : row + 1])
            assert len(writer._buffers) + (writer._spare is not None) <= 1
    same_bits(ActivationStore.open(tmp_path / "s.zarr")[:], values)
