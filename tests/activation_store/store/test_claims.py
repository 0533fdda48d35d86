"""One shard, one owner."""

import numpy as np
import pytest

from activation_store import ActivationStore, InputError, StoreError, StoreLockedError
from activation_store.files.disk import Disk
from activation_store.store.claims import (
    Claim,
    check_can_share,
    committed_checksums,
    void_claim,
    writer_of_shard,
)
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import HEALTH, make_beside, make_spec, make_values, same_bits, tree, write_store

SPEC = make_spec()
VALUES = make_values(SPEC)
ROWS = [np.array(SPEC.layout.rows(shard)) for shard in range(3)]


@pytest.fixture
def storage(tmp_path):
    StoreWriter.create(tmp_path / "s.zarr", SPEC, make_beside(11)).__exit__(None, None, None)
    return Disk(tmp_path / "s.zarr")


def test_shards_of_several_owners_make_the_store_of_one(storage, tmp_path):
    write_store(tmp_path / "one.zarr", SPEC, VALUES, finish=True)
    with StoreWriter.resume(tmp_path / "s.zarr", SPEC.fingerprint) as driver:
        for shard in (2, 0, 1):
            assert committed_checksums(storage, SPEC, shard) is None
            with writer_of_shard(storage, SPEC, shard, f"worker {shard}") as writer:
                writer.add(ROWS[shard], VALUES[ROWS[shard]])
                driver.note(shard, writer.checksums(shard))
            assert committed_checksums(storage, SPEC, shard) == driver.checksums(shard)
        assert driver.pending_shards == []
        driver.finish(HEALTH)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "one.zarr")


def test_a_shard_has_one_owner(storage):
    with writer_of_shard(storage, SPEC, 1, "a"):
        with pytest.raises(StoreLockedError, match=r"journal/1\.claim: another process writes this shard"):
            writer_of_shard(storage, SPEC, 1, "b")
        writer_of_shard(storage, SPEC, 2, "b").__exit__(None, None, None)
    assert storage.names("activations/journal") == ["created"]


def test_a_worker_that_was_given_up_commits_nothing(storage):
    """Its claim is gone, and another may have the shard: it wakes up and is told so."""
    for successor in (False, True):
        with writer_of_shard(storage, SPEC, 1, "late") as late:
            void_claim(storage, SPEC, 1)
            if successor:
                Claim.take(storage, 1, "next")
            with pytest.raises(StoreLockedError, match="another process has taken this shard over"):
                late.add(ROWS[1], VALUES[ROWS[1]])
        assert committed_checksums(storage, SPEC, 1) is None
    # The claim of the other stays when the late one leaves.
    assert "1.claim" in storage.names("activations/journal")


def test_claims_end_with_the_process_that_holds_the_lock(storage, tmp_path):
    Claim.take(storage, 0, "killed with its driver")
    with StoreWriter.resume(tmp_path / "s.zarr", SPEC.fingerprint):
        assert storage.names("activations/journal") == ["created"]


def test_another_record_of_a_shard_is_not_replaced(storage, tmp_path):
    """Two drivers that do not know of each other: the first record stays, and the second process is told."""
    with StoreWriter.resume(tmp_path / "s.zarr", SPEC.fingerprint) as driver:
        with writer_of_shard(storage, SPEC, 0, "other") as other:
            other.add(ROWS[0], VALUES[ROWS[0]])
        before = tree(tmp_path / "s.zarr")["activations/journal/0"]
        with pytest.raises(StoreError, match="another process has committed other values of this shard"):
            driver.add(ROWS[0], -VALUES[ROWS[0]])
    assert tree(tmp_path / "s.zarr")["activations/journal/0"] == before
    same_bits(ActivationStore.open(tmp_path / "s.zarr")[:4], VALUES[:4])


def test_the_same_values_committed_twice_are_no_fault(storage, tmp_path):
    with StoreWriter.resume(tmp_path / "s.zarr", SPEC.fingerprint) as driver:
        with writer_of_shard(storage, SPEC, 0, "other") as other:
            other.add(ROWS[0], VALUES[ROWS[0]])
        driver.add(ROWS[0], VALUES[ROWS[0]])
    same_bits(ActivationStore.open(tmp_path / "s.zarr")[:4], VALUES[:4])


def test_format_1_has_one_writer():
    with pytest.raises(InputError, match=r"s\.zarr is of store format 1, to which only one process can write"):
        check_can_share(make_spec(version=1), "s.zarr")


@pytest.mark.parametrize("leftover", [False, True])
def test_a_late_worker_touches_nothing_of_its_successor(leftover, storage, tmp_path):
    """It is stopped while it writes; another writes the same shard and commits it; it goes on."""
    name = "activations/c/1/0/0/0"
    if leftover:
        storage.replace(name, [b"of a killed run"])
    late = Claim.take(storage, 1, "late")

    def pieces():
        yield b"late"
        void_claim(storage, SPEC, 1)
        with writer_of_shard(storage, SPEC, 1, "next") as successor:
            successor.add(ROWS[1], VALUES[ROWS[1]])
        yield b" and later"

    with pytest.raises((StoreLockedError, FileNotFoundError)):
        storage.of_owner("late").write_uncommitted(name, pieces, late)
    same_bits(ActivationStore.open(tmp_path / "s.zarr")[4:8], VALUES[4:8])
    with StoreWriter.resume(tmp_path / "s.zarr", SPEC.fingerprint) as driver:
        for shard in driver.pending_shards:
            driver.add(ROWS[shard], VALUES[ROWS[shard]])
        driver.finish(HEALTH)
    write_store(tmp_path / "one.zarr", SPEC, VALUES, finish=True)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "one.zarr")


def test_a_late_record_does_not_take_that_of_its_successor_away(storage):
    late, successor = storage.of_owner("late"), storage.of_owner("next")

    def pieces():
        yield b"late"
        successor.create("activations/journal/1", [b"next"])

    with pytest.raises(FileExistsError):
        late.create("activations/journal/1", pieces())
    assert storage.read("activations/journal/1") == b"next"
    assert storage.names("activations/journal") == ["1", "created"]
