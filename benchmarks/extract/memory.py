"""Peak memory at growing numbers of prompts, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress

from activation_store.store.reader import ActivationStore
from benchmarks.extract.agreement import check_agreement
from benchmarks.extract.methods import extract_original, extract_ours, make_plan, make_spec
from benchmarks.extract.speed import ORIGINAL, OURS
from benchmarks.extract.subject import Subject
from benchmarks.shared.measure import Limit, Spread, Table, WrongResultError
from benchmarks.shared.process import Usage, watch

# Contender and number of prompts -> what each process used.
Usages = Mapping[tuple[str, int], Sequence[Usage]]
# Of the most prompts: growth shows against the noise of four sizes.
_PARTS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Growth:
    """Bytes that the peak gains with every byte of activations that is added: least squares over all processes."""

    slope: float
    standard_error: float

    @classmethod
    def of(cls, used: Usages, name: str, sample_nbytes: int) -> Growth:
        """Growth of a contender."""
        points = [
            (n_rows * sample_nbytes, usage.peak_nbytes)
            for (other, n_rows), usages in used.items()
            if other == name
            for usage in usages
        ]
        fit: Any = linregress(*np.array(points, dtype=np.float64).T)
        return cls(float(fit.slope), float(fit.stderr))

    def __str__(self) -> str:
        return f"{self.slope:.3f} (standard error {self.standard_error:.3f})"


def measure_memory(model: Path, questions: Sequence[str], shard_samples: int, folder: Path, *, n_rounds: int) -> Usages:
    """Peak memory of the original method and ours, for an eighth, a quarter, half, and all of the questions.

    Parameters
    ----------
    model : Path
        Folder of the model.
    questions : sequence of str
        Dataset.
    shard_samples : int
        Of our store: few, for the same peak needs more than two shards even in the smallest one.
    folder : Path
        Where they write.
    n_rounds : int
        Processes of ours at each size; the original method has one.

    Returns
    -------
    mapping of (contender, prompts) to list of Usage
    """
    used: dict[tuple[str, int], list[Usage]] = {}
    for n_rows in (len(questions) // part for part in _PARTS):
        part = list(questions[:n_rows])
        pt = folder / f"{n_rows}.pt"
        used[ORIGINAL, n_rows] = [watch(_original, str(model), part, pt, log=folder / "log")]
        _check_done(ORIGINAL, used[ORIGINAL, n_rows][0])
        expected = torch.load(pt, mmap=True, weights_only=True)["activations"].numpy()
        for round_idx in range(n_rounds):
            store = folder / f"{n_rows}-{round_idx}.zarr"
            usage = watch(_ours, str(model), part, shard_samples, store, log=folder / "log")
            _check_done(OURS, usage)
            check_agreement(ActivationStore.open(store)[:], expected, f"{OURS}, {n_rows} prompts")
            used.setdefault((OURS, n_rows), []).append(usage)
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
    """Each size's figures, and how the peak grows with it."""
    rows = [
        {
            "contender": name,
            "prompts": f"{n_rows}",
            "activations, MB": f"{n_rows * sample_nbytes / 1e6:.1f}",
            "model loaded, MB": Spread.of([usage.ready_nbytes / 1e6 for usage in usages]),
            "peak, MB": Spread.of([usage.peak_nbytes / 1e6 for usage in usages]),
            "growth": str(Growth.of(used, name, sample_nbytes)),
        }
        for (name, n_rows), usages in sorted(used.items())
    ]
    return Table(
        "peak anonymous memory (RssAnon, sampled every 5 ms), each in a process of its own; growth: bytes of the peak "
        "per byte of activations, over all sizes",
        rows,
    )


def memory_limit(used: Usages, sample_nbytes: int) -> Limit:
    """No growth that can be told from noise."""
    growth = Growth.of(used, OURS, sample_nbytes)
    return Limit(
        f"memory: growth of ours per byte of activations, in standard errors ({growth})",
        2.0,
        Spread.of([growth.slope / max(growth.standard_error, 1e-9)]),
    )
