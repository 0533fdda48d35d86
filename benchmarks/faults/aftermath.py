"""What must hold after any fault: nothing acknowledged is lost, nothing is wrong, the same job again ends the same."""

from __future__ import annotations

from collections.abc import Collection

from activation_store.files.storage import Location
from benchmarks.faults.counts import Counts
from benchmarks.faults.disk import Tree
from benchmarks.faults.job import Job


def aftermath(job: Job, root: Location, acknowledged: Collection[int], what: str) -> Counts:
    """Look at what a fault left below `root`, run the job again and compare with the uninterrupted one.

    Parameters
    ----------
    job : Job
        That was interrupted.
    root : Path or str
        Where it worked.
    acknowledged : collection of int
        Shards that must be there.
    what : str
        The fault, for messages.
    """
    counts = job.look(root, acknowledged, what)
    counts += run_again(job, root, what)
    return counts


def run_again(job: Job, root: Location, what: str) -> Counts:
    """Run the job to its end and compare the tree."""
    counts = Counts(reruns=1)
    try:
        job.run(root)
    except Exception as error:
        # Whatever it is: the job cannot be finished.
        counts.expect(False, f"{what}: the job run again raised {error!r}")
        return counts
    differing = difference(job.tree(root), job.reference)
    counts.identical += not differing
    counts.expect(not differing, f"{what}: after the job was run again, other than uninterrupted: {differing}")
    return counts


def difference(found: Tree, expected: Tree) -> str:
    """Paths in which two trees differ, and how; empty if they do not."""
    missing = object()
    paths = sorted(path for path in {**found, **expected} if found.get(path, missing) != expected.get(path, missing))
    return ", ".join(
        f"{path} (missing)" if path not in found else f"{path} (too many)" if path not in expected else path
        for path in paths
    )
