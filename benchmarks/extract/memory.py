"""Peak memory at two numbers of prompts, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from activation_store.store.reader import ActivationStore
from benchmarks.extract.agreement import check_agreement
from benchmarks.extract.methods import extract_original, extract_ours, make_plan, make_spec
from benchmarks.extract.speed import ORIGINAL, OURS
from benchmarks.extract.subject import Subject
from benchmarks.shared.measure import Limit, Spread, Table, WrongResultError
from benchmarks.shared.process import Usage, watch

Usages = Mapping[tuple[str, int], Usage]


def measure_memory(model: Path, questions: Sequence[str], shard_samples: int, folder: Path) -> Usages:
    """Peak memory of the original method and ours, for a quarter of the questions and for all.

    Parameters
    ----------
    model : Path
        Folder of the model.
    questions : sequence of str
        Dataset.
    shard_samples : int
        Of our store: few, for the same peak needs more than two shards even in the smaller one.
    folder : Path
        Where they write.

    Returns
    -------
    mapping of (contender, prompts) to Usage
    """
    used: dict[tuple[str, int], Usage] = {}
    for n_rows in (len(questions) // 4, len(questions)):
        part = list(questions[:n_rows])
        pt, store = folder / f"{n_rows}.pt", folder / f"{n_rows}.zarr"
        used[ORIGINAL, n_rows] = watch(_original, str(model), part, pt, log=folder / "log")
        _check_done(ORIGINAL, used[ORIGINAL, n_rows])
        used[OURS, n_rows] = watch(_ours, str(model), part, shard_samples, store, log=folder / "log")
        _check_done(OURS, used[OURS, n_rows])
        expected = torch.load(pt, mmap=True, weights_only=True)["activations"].numpy()
        check_agreement(ActivationStore.open(store)[:], expected, f"{OURS}, {n_rows} prompts")
    return used


def _check_done(name: str, usage: Usage) -> None:
    if usage.exit_code:
        raise WrongResultError(f"{name} ended with {usage.exit_code}: {usage.message}")


def _original(ready: Callable[[], None], model: str, questions: list[str], path: Path) -> None:
    subject = Subject.load(model)
    n_positions = len(subject.encode(questions).positions)
    ready()
    extract_original(subject, questions, n_positions, path)


def _ours(ready: Callable[[], None], model: str, questions: list[str], shard_samples: int, path: Path) -> None:
    subject = Subject.load(model)
    states = subject.states(subject.encode(questions).positions)
    ready()
    prompts = subject.encode(questions)
    spec = make_spec(subject, prompts, shard_samples=shard_samples)
    extract_ours(states, prompts, spec, make_plan(subject, prompts), path)


def memory_table(used: Usages, sample_nbytes: int) -> Table:
    rows = [
        {
            "contender": name,
            "prompts": f"{n_rows}",
            "activations, MB": f"{n_rows * sample_nbytes / 1e6:.1f}",
            "model loaded, MB": f"{usage.ready_nbytes / 1e6:.0f}",
            "peak, MB": f"{usage.peak_nbytes / 1e6:.0f}",
        }
        for (name, n_rows), usage in sorted(used.items())
    ]
    return Table("peak anonymous memory (RssAnon, sampled every 5 ms), each in a process of its own", rows)


def growth(used: Usages, name: str, sample_nbytes: int) -> float:
    """Bytes that the peak gains with every byte of activations that is added."""
    few, many = sorted(n_rows for other, n_rows in used if other == name)
    return (used[name, many].peak_nbytes - used[name, few].peak_nbytes) / ((many - few) * sample_nbytes)


def memory_limit(used: Usages, sample_nbytes: int) -> Limit:
    what = "memory: growth of ours / activations added"
    return Limit(what, 0.1, Spread.of([growth(used, OURS, sample_nbytes)]))
