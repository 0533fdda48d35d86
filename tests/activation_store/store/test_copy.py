"""Copies on a disk: stopped at every change of a file, and of stores that are written meanwhile."""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from activation_store import ActivationStore, CorruptStoreError, InputError, StoreLockedError
from activation_store.files import disk
from activation_store.files.disk import Disk
from activation_store.store.documents import is_store
from activation_store.store.writer import LOCK_PATH, StoreWriter
from tests.helpers.stores import HEALTH, damage, make_beside, make_spec, make_values, same_bits, tree, write_store

versions = pytest.mark.parametrize("version", [1, 2])


class StopError(BaseException):
    """As a signal: nothing catches it to go on."""


def fail_at(patch: pytest.MonkeyPatch, last: int, failure: BaseException) -> list[str]:
    """Raise at one of the calls that change files; returns a list that will hold its name."""
    calls, ended = itertools.count(1), []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any, **options: Any) -> Any:
            if next(calls) == last:
                ended.append(name)
                raise failure
            return call(*args, **options)

        return one

    for name in ("write", "fsync", "replace", "mkdir", "unlink", "ftruncate"):
        patch.setattr(os, name, counted(name, getattr(os, name)))
    return ended


@pytest.mark.slow
@versions
@pytest.mark.parametrize("failure", [OSError(errno.EIO, os.strerror(errno.EIO)), StopError()], ids=["fails", "stops"])
def test_a_copy_that_ends_at_any_call_is_unfinished_and_taken_up(tmp_path, version, failure, monkeypatch):
    # Thousands of them take minutes; what a power cut leaves is the fault suite's.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    spec = make_spec(version=version)
    values, source = make_values(spec), tmp_path / "source.zarr"
    write_store(source, spec, values, finish=True)
    expected = tree(source)
    # A sample, of other calls in each format.
    for last in itertools.count(version, 17):
        target = tmp_path / f"{last}" / "target.zarr"
        with monkeypatch.context() as patch:
            ended = fail_at(patch, last, failure)
            with suppress(OSError, StopError):
                ActivationStore.open(source).copy_to(target)
        if is_store(target):
            found = ActivationStore.open(target)
            for shard in sorted(found._journal.shards):
                rows = spec.layout.rows(shard)
                same_bits(found[rows.start : rows.stop], values[rows.start : rows.stop])
            assert found.n_committed == 11 or not found.health
        ActivationStore.open(source).copy_to(target)
        assert tree(target) == expected
        assert [path.name for path in target.parent.iterdir()] == ["target.zarr"]
        if not ended:
            break
    assert last > 90


@versions
def test_a_store_that_is_written_is_copied_up_to_what_is_committed(tmp_path, version):
    spec = make_spec(version=version)
    values = make_values(spec)
    with StoreWriter.create(tmp_path / "source.zarr", spec, make_beside(11)) as writer:
        writer.add(np.arange(4), values[:4])
        opened = ActivationStore.open(tmp_path / "source.zarr")
        writer.add(np.arange(4, 11), values[4:])
        found = opened.copy_to(tmp_path / "target.zarr")
        assert found.n_committed == 4
        same_bits(found[:4], values[:4])
        writer.finish(HEALTH)
    found = ActivationStore.open(tmp_path / "source.zarr").copy_to(tmp_path / "target.zarr")
    assert found.health == HEALTH
    assert tree(tmp_path / "target.zarr") == tree(tmp_path / "source.zarr")


def test_a_copy_can_be_extracted_further(tmp_path):
    spec = make_spec()
    values = make_values(spec)
    with StoreWriter.create(tmp_path / "source.zarr", spec, make_beside(11)) as writer:
        writer.add(np.arange(4), values[:4])
    ActivationStore.open(tmp_path / "source.zarr").copy_to(tmp_path / "target.zarr")
    with StoreWriter.resume(tmp_path / "target.zarr", spec.fingerprint) as writer:
        assert writer.pending_shards == [1, 2]
        writer.add(np.arange(4, 11), values[4:])
    same_bits(ActivationStore.open(tmp_path / "target.zarr")[:], values)


@versions
def test_what_is_damaged_in_a_copy_is_sent_again(tmp_path, version):
    """A shard that is committed there was read back; of it only the length is looked at."""
    spec = make_spec(version=version)
    write_store(tmp_path / "source.zarr", spec, make_values(spec), finish=True)
    source, target = ActivationStore.open(tmp_path / "source.zarr"), tmp_path / "target.zarr"
    source.copy_to(target)
    damage(target / "success_rate/c/0", 3)
    (target / "activations/c/1/0/0/0").unlink()
    with (target / "activations/c/2/0/0/0").open("ab") as file:
        file.write(b"more")
    source.copy_to(target)
    assert tree(target) == tree(tmp_path / "source.zarr")


@pytest.mark.parametrize("place", [0, 28 * 4, -1, -5])
def test_damage_in_the_source_is_not_copied(tmp_path, place):
    """In values, in the checksum next to them, in the index."""
    spec = make_spec()
    write_store(tmp_path / "source.zarr", spec, make_values(spec), finish=True)
    damage(tmp_path / "source.zarr/activations/c/2/0/0/0", place)
    with pytest.raises(CorruptStoreError, match=r"c/2/0/0/0 \(rows 8-10\): the .* not what was committed"):
        ActivationStore.open(tmp_path / "source.zarr").copy_to(tmp_path / "target.zarr")
    assert ActivationStore.open(tmp_path / "target.zarr").n_committed == 8


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    spec = make_spec()
    write_store(tmp_path / "source.zarr", spec, make_values(spec), finish=True)
    write = Disk.write_uncommitted

    def bad(self, name, pieces, lock):
        write(self, name, pieces, lock)
        if "/c/1/" in name:
            damage(self.location / name, 50)

    monkeypatch.setattr(Disk, "write_uncommitted", bad)
    with pytest.raises(CorruptStoreError, match=r"c/1/0/0/0: what was written is not what is read back"):
        ActivationStore.open(tmp_path / "source.zarr").copy_to(tmp_path / "target.zarr")
    monkeypatch.undo()
    assert ActivationStore.open(tmp_path / "target.zarr").n_committed == 4
    ActivationStore.open(tmp_path / "source.zarr").copy_to(tmp_path / "target.zarr")
    assert tree(tmp_path / "target.zarr") == tree(tmp_path / "source.zarr")


def test_places_that_are_refused(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "source.zarr", spec, make_values(spec), finish=True)
    write_store(tmp_path / "other.zarr", make_spec(dataset="e"), make_values(spec))
    (tmp_path / "link.zarr").symlink_to("source.zarr")
    source = ActivationStore.open(tmp_path / "source.zarr")
    refused = {"source.zarr": "is the store that", "link.zarr/in": "or in it", "other.zarr": "another store"}
    for name, said in refused.items():
        with pytest.raises(InputError, match=said) as error:
            source.copy_to(tmp_path / name)
        assert error.value.argument == "target"
    source.copy_to(tmp_path / "target.zarr")
    lock = Disk(tmp_path / "target.zarr").acquire(LOCK_PATH)
    with pytest.raises(StoreLockedError, match=f"target.zarr is being written by process {os.getpid()}"):
        source.copy_to(tmp_path / "target.zarr")
    lock.release()


@versions
def test_a_copy_that_is_ahead_is_not_overwritten(tmp_path, version):
    spec = make_spec(version=version)
    write_store(tmp_path / "ahead.zarr", spec, make_values(spec), finish=True)
    write_store(tmp_path / "behind.zarr", spec, make_values(spec))
    before = tree(tmp_path / "ahead.zarr")
    with pytest.raises(InputError, match=r"written since it was copied \(its end is not that of"):
        ActivationStore.open(tmp_path / "behind.zarr").copy_to(tmp_path / "ahead.zarr")
    assert tree(tmp_path / "ahead.zarr") == before


def test_a_shard_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    spec = make_spec(4096, shard_samples=2048)
    write_store(tmp_path / "source.zarr", spec, make_values(spec), finish=True)
    monkeypatch.setattr(disk, "_PIECE_NBYTES", 10_000)
    held: list[int] = []
    read = Disk.pieces
    monkeypatch.setattr(Disk, "pieces", lambda self, name: _counted(read(self, name), held))
    ActivationStore.open(tmp_path / "source.zarr").copy_to(tmp_path / "target.zarr")
    assert sum(held) >= 4 * spec.layout.shard_nbytes
    assert max(held) == 10_000
    assert tree(tmp_path / "target.zarr") == tree(tmp_path / "source.zarr")


def _counted(pieces: Iterator[bytes], held: list[int]) -> Iterator[bytes]:
    for piece in pieces:
        held.append(len(piece))
        yield piece
