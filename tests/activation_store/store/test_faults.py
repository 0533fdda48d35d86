"""A sample of the fault suite, `python -m benchmarks faults`; and that it notices when a guard is taken out."""

import os
from contextlib import suppress

import pytest

from activation_store.files import disk, durable
from activation_store.format.layout import checksum_bytes
from activation_store.store import journals, shards, writer
from benchmarks.faults import damage, extraction, failing, kills, power, suite
from benchmarks.faults.aftermath import run_again
from benchmarks.faults.calls import Effect, Fault, Watch
from benchmarks.faults.command import run
from benchmarks.faults.counts import Counts, broken_list, table
from benchmarks.faults.disk import Disk, Fate, replayed
from benchmarks.faults.job import STORE, small_job, tree
from benchmarks.faults.scenarios import JOURNAL_PATH, mending, shard_path

pytestmark = pytest.mark.slow

SAMPLE = suite.Size(
    every=53, n_double=16, n_random=4, n_extractions=0, n_disks=1, masks=(0xFF,), n_examples=0, every_object=30
)


@pytest.fixture(scope="module")
def rows():
    """Counts of every part; in other processes, because a fork of this one, which has torch, takes a while."""
    parts = suite.parts(SAMPLE, seed=0).items()
    # Result folders and object stores have a sample of their own: tests/benchmarks/.
    others = ("results", "objects")
    return run({name: tasks for name, tasks in parts if tasks and not name.startswith(others)}, n_processes=2)


def holds(counts: Counts):
    """Every promise was kept."""
    assert not counts.broken, broken_list({"": counts})
    assert counts.lost == counts.wrong == 0
    assert counts.identical == counts.reruns
    assert counts.cases > 0


def test_every_change_is_seen(rows):
    holds(rows["every change is seen"])
    assert rows["every change is seen"].identical == 7


@pytest.mark.parametrize("kind", ["at every call", "of two runs", "at random times"])
def test_sigkill(kind, rows):
    counts = rows[f"SIGKILL {kind}"]
    holds(counts)
    assert counts.fired >= 4
    assert counts.reruns > 0


@pytest.mark.parametrize("part", ["call fails", "file size limit"])
def test_failing_calls(part, rows):
    holds(rows[part])
    assert rows[part].fired >= 50


@pytest.mark.parametrize(
    "part", ["power loss", "killed, then power loss", "fsync fails, then power loss", "the same, killed between"]
)
def test_power_loss(part, rows):
    holds(rows[part])
    assert rows[part].fired >= 50


def test_power_loss_after_a_killed_repair():
    """The damaged shard is replaced, its new name not on disk; the next repair finds nothing to do."""
    job = mending(small_job(), shard_path(small_job(), 1))
    whole = power.uninterrupted(job)
    (n,) = (n for n, call in enumerate(whole.runs[0], start=1) if call.target == shard_path(job, 1))
    holds(power.lost_power_after_kill(job, whole, [n], n_random=0, seed=0))


def test_power_loss_after_a_failed_fsync_of_the_journal():
    """The record can be read until the power fails; the process is killed before it takes it back."""
    job = small_job()
    with job.begun() as root, Watch(root) as watch:
        job.run(root)
    fsyncs = [call.path for call in watch.calls if call.kind == "fsync"]
    chosen = [n for n, path in enumerate(fsyncs, start=1) if path == JOURNAL_PATH]
    # Once when the store is made; then of every shard and at the end.
    assert len(chosen) == 4
    for killed in (False, True):
        holds(power.lost_power_after_failed_fsync(job, chosen, n_random=0, seed=0, killed=killed))


@pytest.mark.parametrize("part", ["byte flipped", "file cut off or gone"])
def test_damage(part, rows):
    counts = rows[part]
    holds(counts)
    assert counts.fired >= 300
    # Plain Zarr reads around what is missing.
    assert counts.plain_wrong > 0 or part == "byte flipped"
    assert counts.unnoticed <= counts.right


def test_repair(rows):
    holds(rows["repair"])
    assert rows["repair"].identical > 30


def test_sigkill_of_the_command():
    holds(extraction.killed_extraction(n_kills=1, n_samples=200, seed=1))


def test_power_loss_after_a_kill_that_left_a_folder():
    """A folder that a killed process made may not be on disk: the next one must see to it."""
    job = small_job()
    whole = power.uninterrupted(job)
    made = [n for n, call in enumerate(whole.runs[0], start=1) if call.kind == "mkdir"]
    chosen = [n for n in made if "/.s.zarr.creating/" not in whole.runs[0][n - 1].path]
    assert len(chosen) == 12
    holds(power.lost_power_after_kill(job, whole, chosen, n_random=0, seed=0))


def test_the_nth_call_fails_for_every_n():
    """As many faults fire as there are calls of that kind, each alone."""
    counts = failing.failing(small_job(), "replace")
    holds(counts)
    assert counts.fired == kills.count_calls(small_job(), "replace") * len(failing.ways("replace"))


def test_a_change_that_goes_around_the_shim_is_noticed(tmp_path):
    with Watch(tmp_path) as watch:
        durable.make_folder(tmp_path / "a")
        (tmp_path / "a" / "note").write_text("not through os")
    assert replayed(watch.calls) != tree(tmp_path)


def test_the_model_of_a_disk_knows_what_may_be_lost(tmp_path):
    with Watch(tmp_path) as watch:
        durable.make_folder(tmp_path / "a")
        durable.commit_file(tmp_path / "a" / "b", [b"12", b"34"])
        durable.append_file(tmp_path / "a" / "b", b"56", 3)
    before = Disk()
    for call in watch.calls[: [call.kind for call in watch.calls].index("replace") + 1]:
        before.apply(call)
    (rename,) = (change for change in before.pending() if change.old_name)
    assert before.tree(dict.fromkeys(before.pending(), Fate.DROPPED)) == {"a": None}
    assert before.tree({rename: Fate.DROPPED}) == {"a": None, "a/.b.partial": b"1234"}
    assert replayed(watch.calls) == tree(tmp_path) == {"a": None, "a/b": b"12356"}
    unsynced = Disk()
    for call in watch.calls[:-2]:
        unsynced.apply(call)
    cut, write = unsynced.pending()
    assert unsynced.tree({cut: Fate.DROPPED, write: Fate.DROPPED})["a/b"] == b"1234"
    assert unsynced.tree({write: Fate.ZEROS})["a/b"] == b"123\0\0"


def test_counts_are_told(rows):
    lines = table(rows).splitlines()
    assert "wrong" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:]] == list(rows)


# The suite notices: each guard is taken out, and the part that should see it does.


def unsynced_write(path, pieces):
    with durable._opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        for piece in pieces:
            durable.write_all(descriptor, piece)


@pytest.mark.parametrize(
    ("guard", "without"), [("fsync_path", lambda path: None), ("write_file", unsynced_write)], ids=["folders", "files"]
)
def test_missing_fsync_is_noticed(guard, without, monkeypatch):
    job = small_job()
    assert job.reference
    monkeypatch.setattr(durable, guard, without)
    history = power.uninterrupted(job)
    counts = power.lost_power(job, history, history.acknowledgements, n_random=0, seed=0)
    assert counts.lost > 0
    assert "was acknowledged and is lost" in broken_list({"": counts})


def test_missing_fsync_on_taking_up_is_noticed(monkeypatch):
    """The rename that shows the store is made, its folder not fsynced, the process killed."""
    job = small_job()
    whole = power.uninterrupted(job)
    n = next(n for n, call in enumerate(whole.runs[0], start=1) if call.target == STORE)
    monkeypatch.setattr(disk, "fsync_path", lambda path: None)
    assert power.lost_power_after_kill(job, whole, [n], n_random=0, seed=0).lost > 0


def test_journal_before_shard_is_noticed(monkeypatch):
    job, held = small_job(), []
    assert job.reference
    real_write, real_commit = writer.write_shard, journals.RecordFiles.commit

    def write_later(storage, name, layout, cells, lock):
        held.append((storage, name, layout, cells, lock))
        return b"".join(checksum_bytes(chunk.view("u1")) for chunk in cells.reshape(layout.n_cells, -1))

    def commit_first(*record):
        contents = real_commit(*record)
        real_write(*held.pop())
        return contents

    monkeypatch.setattr(writer, "write_shard", write_later)
    monkeypatch.setattr(journals.RecordFiles, "commit", commit_first)
    n_calls = kills.count_calls(job)
    assert kills.killed_at(job, range(n_calls - 8, n_calls - 2)).broken


def test_record_written_in_place_is_noticed(monkeypatch):
    job = small_job()
    assert job.reference

    def in_place(self, name, pieces):
        durable.write_file(self.location / name, pieces)

    monkeypatch.setattr(disk.Disk, "create", in_place)
    # The last is that of the last file; before it comes the last record.
    n_writes = kills.count_calls(job, "write") - 1
    with job.begun() as root:
        kills.run_and_die(job, root, Fault(Effect.KILL_MIDDLE, n_writes, "write"))
        assert run_again(job, root, "killed").broken


def test_records_not_settled_are_noticed(monkeypatch):
    """A record whose folder's fsync failed, the process killed: the next one must not rely on what it finds."""
    job = small_job()
    with job.begun() as root, Watch(root) as watch:
        job.run(root)
    fsyncs = [call.path for call in watch.calls if call.kind == "fsync"]
    chosen = [n for n, path in enumerate(fsyncs, start=1) if path == JOURNAL_PATH]
    monkeypatch.setattr(disk.Disk, "settle", lambda *names: None)
    assert power.lost_power_after_failed_fsync(job, chosen, n_random=0, seed=0, killed=True).broken


def test_retried_fsync_is_noticed(monkeypatch):
    job = small_job()
    assert job.reference
    real = durable.fsync_path

    def stubborn(path):
        try:
            real(path)
        except OSError:
            real(path)

    monkeypatch.setattr(durable, "fsync_path", stubborn)
    counts = failing.failing(job, "fsync", every=9)
    assert "fsync called again" in broken_list({"": counts})


def test_swallowed_error_is_noticed(monkeypatch):
    job, real = small_job(), disk.Disk.create

    def silent(*file):
        with suppress(OSError):
            real(*file)

    monkeypatch.setattr(disk.Disk, "create", silent)
    counts = failing.failing(job, "write", every=kills.count_calls(job, "write") - 2)
    assert counts.lost > 0
    assert "the caller got None" in broken_list({"": counts})


def test_unchecked_values_are_noticed(monkeypatch):
    job = small_job()
    real = shards.Shard.cell
    monkeypatch.setattr(shards.Shard, "cell", lambda *which, verify: real(*which, verify=False))
    counts = damage.damaged(job, damage.flips(job, shard_path(job, 0), [1], every=7), plain=False)
    assert counts.wrong > 0
    assert counts.broken


def test_unmended_damage_is_noticed(monkeypatch):
    job = small_job()
    assert job.reference
    monkeypatch.setattr(writer, "damaged_shards", lambda *store: {})
    counts = damage.mended(job, damage.flips(job, shard_path(job, 1), [1], every=41))
    assert counts.identical == 0
    assert counts.broken
