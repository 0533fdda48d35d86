"""Objects that changed, are cut short, gone, or hold what belongs elsewhere; then a repair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from activation_store.errors import StoreError
from activation_store.files.storage import Location
from benchmarks.faults.aftermath import difference
from benchmarks.faults.counts import Counts
from benchmarks.faults.damage import flips, harmless, is_reported, lengths, must_mend, read_everything
from benchmarks.faults.disk import Tree
from benchmarks.faults.job import store_at
from benchmarks.faults.objects.place import BucketJob, server
from benchmarks.faults.objects.writers import OTHER_SEED
from benchmarks.faults.scenarios import CREATED_PATH, FINISHED_PATH, JOURNAL_PATH, shard_path
from benchmarks.shared.objects import delete_objects, write_objects

# So many of a file's bytes are flipped in turn, and at so many lengths it is cut off.
_N_PLACES = 4
_MASK = 0x01


@dataclass(frozen=True)
class Change:
    """Objects other than an uninterrupted run leaves them.

    Parameters
    ----------
    what : str
        Said in messages.
    files : mapping of str to bytes
        Path -> content; None where the object is gone.
    mended : bool
        Whether a repair must restore them.
    reported : bool
        Whether opening the store or `verify` must tell.
    resumed : bool
        Whether the same job, without a repair, must restore them.
    """

    what: str
    files: Mapping[str, bytes | None]
    mended: bool = True
    reported: bool = True
    resumed: bool = False


def everywhere(job: BucketJob) -> Iterator[Change]:
    """Every object flipped, cut short, longer and gone, in a finished store and in one that is not."""
    for unfinished in (False, True):
        rest = {FINISHED_PATH: None} if unfinished else {}
        for path, content in job.reference.items():
            if path in rest:
                continue
            step = max(1, len(content or b"") // _N_PLACES)
            for damage in [*flips(job, path, [_MASK], step), *lengths(job, path, step)]:
                yield Change(
                    what=f"{'unfinished: ' * unfinished}{damage.what}",
                    files={**rest, path: damage.content},
                    # Which files there are and what they hold, only one other file says, when the store is finished.
                    mended=must_mend(path) and not (unfinished and path == CREATED_PATH),
                    reported=not harmless(damage),
                )


def misplaced(job: BucketJob) -> Iterator[Change]:
    """What a writer leaves that ended somewhere, and what belongs elsewhere."""
    other = replace(job, seed=OTHER_SEED).reference
    for unfinished in (False, True):
        rest = {FINISHED_PATH: None} if unfinished else {}
        name = "unfinished: " * unfinished
        for shard in range(job.n_shards):
            record, values = f"{JOURNAL_PATH}/{shard}", shard_path(job, shard)
            another = (shard + 1) % job.n_shards
            yield Change(f"{name}record {shard} without its shard", {**rest, values: None})
            yield Change(f"{name}shard {shard} without its record", {**rest, record: None}, resumed=unfinished)
            yield Change(
                f"{name}shard {shard} without its record, of other values",
                {**rest, record: None, values: other[values]},
                resumed=unfinished,
            )
            yield Change(f"{name}shard {shard} of other values", {**rest, values: other[values]})
            yield Change(f"{name}record {shard} of other values", {**rest, record: other[record]})
            yield Change(
                f"{name}record {shard} is another's", {**rest, record: job.reference[f"{JOURNAL_PATH}/{another}"]}
            )
            yield Change(f"{name}shard {shard} is another's", {**rest, values: job.reference[shard_path(job, another)]})
    # A finished store is opened without a look at its records.
    excess = f"{JOURNAL_PATH}/{job.n_shards}"
    yield Change("a record of a shard that there is not", {FINISHED_PATH: None, excess: job.reference[CREATED_PATH]})
    yield Change("`finished` of another store", {FINISHED_PATH: other[FINISHED_PATH]}, mended=False)
    both = {CREATED_PATH: None, FINISHED_PATH: None}
    yield Change("`created` and `finished` are gone", both, mended=False)


def damaged(job: BucketJob, changes: Iterable[Change]) -> Counts:
    """Read the store with each change, and repair it: it is as it was, byte for byte, or it is said why not."""
    counts = Counts()
    finished = replace(job, start=job.reference)
    with finished.begun() as root:
        for change in changes:
            _put(root, change.files)
            _damaged_once(counts, job, root, change)
            found = job.tree(root)
            _put(root, {path: None for path in found if path not in job.reference})
            _put(root, {path: data for path, data in job.reference.items() if found.get(path) != data})
    return counts


def _damaged_once(counts: Counts, job: BucketJob, root: Location, change: Change) -> None:
    counts.cases += 1
    counts.fired += 1
    outcome = read_everything(job, store_at(root))
    setattr(counts, outcome, getattr(counts, outcome) + 1)
    counts.expect(outcome != "wrong", f"{change.what}: read as other values")
    noticed = is_reported(store_at(root))
    counts.unnoticed += not noticed
    counts.expect(noticed or not change.reported, f"{change.what}: verify finds nothing")
    if change.resumed:
        _mend(counts, job, root, change, "the job run again")
        _put(root, change.files)
    _mend(counts, replace(job, repairing=True), root, change, "repair")


def _mend(counts: Counts, job: BucketJob, root: Location, change: Change, how: str) -> None:
    try:
        job.run(root)
    except (StoreError, OSError) as error:
        counts.refused += 1
        counts.expect(not change.mended, f"{change.what}: {how}: {error}")
        return
    counts.reruns += 1
    differing = difference(job.tree(root), job.reference)
    counts.identical += not differing
    counts.expect(not differing, f"{change.what}: after {how} other than it was: {differing}")


def _put(root: Location, files: Mapping[str, bytes | None] | Tree) -> None:
    env = server().env
    write_objects(env, str(root), {path: data for path, data in files.items() if data is not None})
    delete_objects(env, str(root), [path for path, data in files.items() if data is None])
