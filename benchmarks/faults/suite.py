"""The parts of the suite, and how much of each is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from benchmarks.faults import damage, extraction, failing, kills, power, results
from benchmarks.faults.aftermath import difference
from benchmarks.faults.calls import KINDS, Watch
from benchmarks.faults.counts import Counts
from benchmarks.faults.disk import replayed
from benchmarks.faults.job import STORE, Job, large_job, small_job, tree
from benchmarks.faults.objects import suite as objects
from benchmarks.faults.scenarios import scenarios

Task = Callable[[], Counts]
Item = TypeVar("Item")
COORDINATES = tuple(f"{STORE}/{name}/" for name in damage.coordinates(small_job()))


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Parameters
    ----------
    every : int
        Take every so many kills, failing calls, moments, bytes: 1 is all.
    n_double, n_random, n_extractions : int
        Kills of two runs, kills at random times, kills of ``probesweep extract``.
    n_disks : int
        Disks drawn at each moment of a power loss.
    masks : tuple of int
        With which bytes are flipped.
    n_examples : int
        Of the state machine.
    n_nodes : int
        Nodes and drivers of a Ray cluster that are killed.
    every_object : int
        Take every so many requests to an object store, and damages there: each takes half a second.
    """

    every: int
    n_double: int
    n_random: int
    n_extractions: int
    n_disks: int
    masks: tuple[int, ...]
    n_examples: int
    every_object: int
    n_nodes: int = 0


FULL = Size(
    every=1,
    n_double=500,
    n_random=50,
    n_extractions=5,
    n_disks=6,
    masks=damage.MASKS,
    n_examples=300,
    every_object=1,
    n_nodes=8,
)
QUICK = Size(
    every=23,
    n_double=30,
    n_random=10,
    n_extractions=0,
    n_disks=2,
    masks=damage.MASKS[:1],
    n_examples=10,
    every_object=30,
)


def parts(size: Size, seed: int) -> dict[str, list[Task]]:
    """Every part of the suite: its name and its tasks, which can be run in any order and in other processes."""
    job, jobs = small_job(), scenarios(small_job())
    assert job.reference
    return {
        "every change is seen": [partial(seen_completely, jobs)],
        "SIGKILL at every call": list(_kills(jobs, size)),
        "SIGKILL of two runs": _parcels(size.n_double, 50, lambda n, i: partial(kills.killed_twice, job, seed + i, n)),
        "SIGKILL at random times": _parcels(
            size.n_random, 10, lambda n, i: partial(kills.killed_at_random, large_job(), seed + i, n)
        ),
        "call fails": [
            partial(failing.failing, each, kind, size.every) for each in jobs.values() for kind in (*KINDS, None)
        ],
        "file size limit": [partial(failing.limited, job, limits) for limits in _limits(job, size.every)],
        "power loss": list(_power(jobs, size, seed)),
        "killed, then power loss": list(_power_after_kill(jobs, size, seed)),
        "fsync fails, then power loss": list(_power_after_fsync(jobs, size, seed, killed=False)),
        "the same, killed between": list(_power_after_fsync(jobs, size, seed, killed=True)),
        "byte flipped": list(_flips(size)),
        "file cut off or gone": list(_lengths(size)),
        "repair": list(_repairs(size)),
        "state machine": _parcels(size.n_examples, 50, lambda n, i: partial(random_walks, n, seed + i)),
        "results: SIGKILL at every step": [partial(results.killed, size.every)],
        "results: two processes": [partial(results.together, size.every), partial(results.one_file, size.every)],
        **_workers(size, seed),
        "SIGKILL of probesweep extract": _parcels(
            size.n_extractions, 5, lambda n, i: partial(extraction.killed_extraction, n, 600, seed + i)
        ),
        **objects.parts(size.every_object),
    }


def seen_completely(jobs: dict[str, Job]) -> Counts:
    """The recorded calls of every scenario, applied to its start, give its tree: nothing goes around the shim."""
    counts = Counts()
    for name, job in jobs.items():
        with job.begun() as root:
            with Watch(root) as watch:
                job.run(root)
            differing = difference(replayed(watch.calls, job.start), tree(root))
        counts.cases += 1
        counts.reruns += 1
        counts.identical += not differing
        counts.expect(not differing, f"{name}: a change of {differing} was not seen")
    return counts


def random_walks(n_examples: int, seed: int) -> Counts:
    """Run the state machine; it raises at the first broken promise."""
    # hypothesis is for those who develop probesweep.
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis import seed as seeded
    from hypothesis.stateful import run_state_machine_as_test

    from benchmarks.faults.machine import StoreMachine

    counts = Counts(cases=n_examples)
    limits = settings(
        max_examples=n_examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        # What breaks is shrunk by the test of the same machine, which takes minutes.
        phases=[Phase.generate],
        suppress_health_check=tuple(HealthCheck),  # pyright: ignore[reportArgumentType] - an enum is its members
        print_blob=False,
    )
    try:
        run_state_machine_as_test(seeded(seed)(StoreMachine), settings=limits)
    except Exception as error:
        counts.expect(False, f"state machine, seed {seed}: {error!r} {getattr(error, '__notes__', '')}")
    return counts


def _parcels(n: int, most: int, task: Callable[[int, int], Task]) -> list[Task]:
    """`n` of something in tasks of at most so many."""
    return [task(min(most, n - done), done) for done in range(0, n, most)]


def _kills(jobs: dict[str, Job], size: Size) -> Iterator[Task]:
    for job in jobs.values():
        for calls in _chunks(range(1, kills.count_calls(job) + 1, size.every), 20):
            yield partial(kills.killed_at, job, calls)


def _workers(size: Size, seed: int) -> dict[str, list[Task]]:
    """What several processes and Ray add."""
    phases = ("before", "inside", "after")
    points = [(shard, phase) for shard in range(large_job().n_shards) for phase in phases][:: size.every]
    return {
        "workers: SIGKILL of one": [partial(_killed_workers, some) for some in _chunks(points, 12)],
        "workers: a node killed": _parcels(size.n_nodes, 8, lambda n, i: partial(_killed_nodes, n, seed + i)),
        "workers: the driver killed": _parcels(size.n_nodes, 8, lambda n, i: partial(_killed_drivers, n, seed + i)),
        "workers: two drivers": _parcels(size.n_nodes // 2, 8, lambda n, i: partial(_two_drivers, n)),
    }


# torch and Ray are imported where they are used: the other parts fork processes, which takes long with them.


def _killed_workers(points: Sequence[tuple[int, str]]) -> Counts:
    from benchmarks.faults import workers

    return workers.killed_workers(points)


def _killed_nodes(n_kills: int, seed: int) -> Counts:
    from benchmarks.faults import workers

    return workers.killed_nodes(n_kills, seed)


def _killed_drivers(n_kills: int, seed: int) -> Counts:
    from benchmarks.faults import workers

    return workers.killed_drivers(n_kills, seed)


def _two_drivers(n_times: int) -> Counts:
    from benchmarks.faults import workers

    return workers.two_drivers(n_times)


def _limits(job: Job, every: int) -> Iterable[Sequence[int]]:
    # Both sides of every file's length, and a few in between: a larger limit is met by the same writes.
    lengths = {len(content) for content in job.reference.values() if content}
    edges = {length + step for length in lengths for step in (-1, 0, 1)}
    return _chunks(sorted({*range(0, max(lengths), 5 * every), *edges}), 100)


def _power(jobs: dict[str, Job], size: Size, seed: int) -> Iterator[Task]:
    for job in jobs.values():
        history = power.uninterrupted(job)
        for moments in _chunks(range(1, history.n_calls + 1, size.every), 20):
            yield partial(power.lost_power, job, history, moments, size.n_disks, seed)


def _power_after_kill(jobs: dict[str, Job], size: Size, seed: int) -> Iterator[Task]:
    for job in jobs.values():
        whole = power.uninterrupted(job)
        for calls in _chunks(range(1, whole.n_calls, size.every), 20):
            yield partial(power.lost_power_after_kill, job, whole, calls, size.n_disks // 2, seed)


def _power_after_fsync(jobs: dict[str, Job], size: Size, seed: int, *, killed: bool) -> Iterator[Task]:
    for job in jobs.values():
        n_fsyncs = kills.count_calls(job, "fsync")
        for fsyncs in _chunks(range(1, n_fsyncs + 1, size.every), 20):
            yield partial(power.lost_power_after_failed_fsync, job, fsyncs, size.n_disks, seed, killed=killed)


def _flips(size: Size) -> Iterator[Task]:
    for job, path in _damaged_files():
        # The files next to the activations are hashed as a whole, whatever is in them.
        every_mask = job.spec.dtype == "float32" and not path.startswith(COORDINATES)
        for mask in size.masks if every_mask else size.masks[:1]:
            yield partial(_flipped, job, path, mask, size.every, mask == size.masks[0])


def _flipped(job: Job, path: str, mask: int, every: int, plain: bool) -> Counts:
    return damage.damaged(job, damage.flips(job, path, [mask], every), plain=plain)


def _lengths(size: Size) -> Iterator[Task]:
    for job, path in _damaged_files():
        yield partial(_cut, job, path, size.every)


def _cut(job: Job, path: str, every: int) -> Counts:
    return damage.damaged(job, damage.lengths(job, path, every), plain=True)


def _repairs(size: Size) -> Iterator[Task]:
    for job, path in _damaged_files():
        yield partial(_repaired, job, path, 11 * size.every)


def _repaired(job: Job, path: str, every: int) -> Counts:
    counts = damage.mended(job, damage.flips(job, path, damage.MASKS[:1], every))
    counts += damage.mended(job, damage.lengths(job, path, every))
    return counts


def _damaged_files() -> Iterator[tuple[Job, str]]:
    """Every file of a float32 store, and of a bfloat16 store those in which it differs."""
    whole, half = small_job("float32"), small_job("bfloat16")
    for path in damage.files(whole):
        yield whole, path
    for path in damage.files(half):
        if half.reference[path] != whole.reference[path]:
            yield half, path


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
