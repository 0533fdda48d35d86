"""The parts of the benchmark, and how much of each is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.label.agreement import measure_agreement
from benchmarks.label.ceiling import measure_ceiling
from benchmarks.label.memory import measure_memory
from benchmarks.label.speed import measure_speed
from benchmarks.label.subject import Subject
from benchmarks.shared.measure import Limit, Report, StealClock, Table, Target, hardware

LIBRARIES = ("torch", "transformers", "numpy")
PARTS = ("speed", "agreement", "memory", "ceiling")


@dataclass(frozen=True)
class Size:
    """How much is run.

    Parameters
    ----------
    n_questions : int
        Of the embedded test questions.
    n_rounds : int
        Of every contender.
    n_compared : int
        Questions that are sampled in batches of several sizes.
    n_growing : int
        Questions of the smallest run whose memory is watched.
    n_draws : int
        Simulated data sets of each kind.
    """

    n_questions: int
    n_rounds: int
    n_compared: int
    n_growing: int
    n_draws: int


FULL = Size(n_questions=110, n_rounds=3, n_compared=60, n_growing=55, n_draws=200)
QUICK = Size(n_questions=6, n_rounds=1, n_compared=3, n_growing=4, n_draws=2)


def measure_label(size: Size, parts: Sequence[str], model: str, device: str) -> Report:
    """Run the parts one after another."""
    clock = StealClock()
    tables: list[Table] = []
    targets: list[Target | Limit] = []
    subject = Subject.load(model, device, size.n_questions) if {"speed", "agreement"} & set(parts) else None
    for part in parts:
        if part == "speed" and subject is not None:
            more = measure_speed(subject, n_rounds=size.n_rounds)
        elif part == "agreement" and subject is not None:
            more = measure_agreement(subject, n_compared=size.n_compared)
        elif part == "memory":
            more = measure_memory(model, n_questions=size.n_growing)
        else:
            more = measure_ceiling(n_draws=size.n_draws)
        tables += more[0]
        targets += more[1]
    setting = {"model": model, "device": device, "dtype": "float32", "parts": ", ".join(parts), **asdict(size)}
    setting["cpu stolen, %"] = clock.percent()
    return Report("label", hardware(Path(), LIBRARIES), setting, tables, targets)
