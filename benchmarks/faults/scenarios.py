"""What may be there when a job starts."""

from __future__ import annotations

from dataclasses import replace

from activation_store.format.journal import CREATED, FINISHED, JOURNAL
from activation_store.format.spec import ARRAY
from benchmarks.faults.calls import Effect, Fault
from benchmarks.faults.disk import Tree
from benchmarks.faults.job import STORE, Job, tree
from benchmarks.faults.kills import run_and_die

JOURNAL_PATH = f"{STORE}/{ARRAY}/{JOURNAL}"
CREATED_PATH, FINISHED_PATH = f"{JOURNAL_PATH}/{CREATED}", f"{JOURNAL_PATH}/{FINISHED}"


def scenarios(job: Job) -> dict[str, Job]:
    """The same job from nothing, over the remains of a killed one, and mending a damaged store."""
    damages = {
        "shard": shard_path(job, 1),
        "labels": f"{STORE}/{job.spec.label_columns[0]}/c/0",
        "record": f"{JOURNAL_PATH}/1",
        "journal": FINISHED_PATH,
    }
    return {
        "new": job,
        "over a draft": replace(job, start=_killed(job, Fault(Effect.KILL_BEFORE, 1, "replace"))),
        # In the middle of the second shard's file.
        "over a part": replace(job, start=_killed(job, Fault(Effect.KILL_MIDDLE, len(job.skeleton) + 5, "write"))),
        **{f"repair of {name}": mending(job, path) for name, path in damages.items()},
    }


def mending(job: Job, *paths: str) -> Job:
    """Repair of the finished store, in each of these files the byte in the middle flipped."""
    damaged = dict(job.reference)
    for path in paths:
        content = bytearray(damaged[path] or b"")
        content[len(content) * 9 // 10] ^= 1
        damaged[path] = bytes(content)
    return replace(job, start=damaged, repairing=True)


def shard_path(job: Job, shard: int) -> str:
    """Path of a shard's file below the root."""
    return f"{STORE}/{ARRAY}/{job.spec.layout.shard_key(shard)}"


def _killed(job: Job, fault: Fault) -> Tree:
    with job.begun() as root:
        _, killed = run_and_die(job, root, fault)
        assert killed, f"{fault} never came"
        return tree(root)
