"""Time: against the original method and the bare forward pass, with and without prefix reuse, of fewer layers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from activation_store.capture.batches import BatchPlan
from activation_store.capture.hidden_states import to_numpy
from activation_store.format.spec import StoreSpec
from activation_store.prompts.prompts import Prompts
from activation_store.store.reader import ActivationStore
from benchmarks.extract.agreement import check_agreement
from benchmarks.extract.methods import (
    extract_original,
    extract_ours,
    make_plan,
    make_spec,
    run_bare,
    run_plainly,
)
from benchmarks.extract.subject import Subject
from benchmarks.shared.card import settle
from benchmarks.shared.measure import Contender, Limit, Spread, Table, Target, Timings, WrongResultError, interleave

ORIGINAL, OURS, BARE = "original method", "ours", "bare forward pass, ours"
REUSED, NOT_REUSED = "prefix reused", "prefix not reused"
ALL_LAYERS = "--layers all"


@dataclass(frozen=True)
class Race:
    """What a race found.

    Parameters
    ----------
    timings : Timings
        Of the contenders.
    n_tokens : int
        Of all prompts, without padding.
    difference : float
        Largest difference between two contenders' states, in units of the layer's rms; of 16 bits, of its
        vector's length.
    """

    timings: Timings
    n_tokens: int
    difference: float


@dataclass(frozen=True)
class Way:
    """How our extraction is done: into which store, in which batches."""

    spec: StoreSpec
    plan: BatchPlan


@dataclass
class _Contenders:
    """The same extraction by several contenders, each checked against the one that the first of them wrote.

    Parameters
    ----------
    subject : Subject
        The model.
    folder : Path
        Empty; every contender writes below it.
    differences : list of float
        Largest difference of every check, in units of the layer's rms.
    """

    subject: Subject
    folder: Path
    differences: list[float] = field(default_factory=list)

    @property
    def _pt(self) -> Path:
        return self.folder / "original.pt"

    def original(self, questions: Sequence[str], n_positions: int) -> Contender:
        def prepare(_: int) -> Callable[[], object]:
            self._pt.unlink(missing_ok=True)
            return _settled(lambda: extract_original(self.subject, questions, n_positions, self._pt))

        def check(_: int) -> None:
            # Read for the checks of the others; here only that every prompt is there.
            if len(self.read_original()) != len(questions):
                raise WrongResultError(f"{ORIGINAL}: rows are missing")

        return Contender(ORIGINAL, prepare, check)

    def ours(
        self, name: str, way: Way, encode: Callable[[], Prompts], reference: Callable[[], np.ndarray]
    ) -> Contender:
        """Our extraction: tokens, a new store, all that makes it durable, and its examination."""
        path = self.store(name)
        states = self.subject.states(way.spec.positions, ",".join(map(str, way.spec.layers)))

        def prepare(_: int) -> Callable[[], object]:
            shutil.rmtree(path, ignore_errors=True)
            return _settled(lambda: extract_ours(states, encode(), way.spec, way.plan, path))

        def check(_: int) -> None:
            self.differences.append(check_agreement(ActivationStore.open(path)[:], reference(), name))

        return Contender(name, prepare, check)

    def bare(self, way: Way, prompts: Prompts) -> Contender:
        """The decoder alone, over the plan of the store that `ours` writes; its first batch is compared with it."""

        def run() -> None:
            n_rows = sum(len(rows) for rows, _ in run_bare(self.subject, prompts, way.spec, way.plan))
            settle(self.subject.device)
            if n_rows != way.spec.n_samples:
                raise WrongResultError(f"{BARE}: ran {n_rows} of {way.spec.n_samples} prompts")

        def check(_: int) -> None:
            rows, hidden = next(run_bare(self.subject, prompts, way.spec, way.plan))
            n_own = prompts.n_tokens[rows] - way.plan.prefix_tokens
            wanted = torch.from_numpy(n_own[:, None] + np.array(way.spec.positions)).to(hidden.device)
            picked = hidden[torch.arange(len(rows), device=hidden.device)[:, None], wanted]
            last = to_numpy(picked[:, None])
            stored = ActivationStore.open(self.store(OURS))[:][rows, -1]
            self.differences.append(check_agreement(last, stored[:, None], BARE))

        return Contender(BARE, lambda _: _settled(run), check)

    def store(self, name: str) -> Path:
        return self.folder / f"{name.strip('-').replace(' ', '_')}.zarr"

    def read_original(self) -> np.ndarray:
        return to_numpy(torch.load(self._pt, mmap=True, weights_only=True)["activations"])


def race_original(
    subject: Subject, questions: Sequence[str], folder: Path, *, n_rounds: int, n_warm_ups: int = 0
) -> Race:
    """Time the original method, ours and the bare forward pass."""
    prompts = subject.encode(questions)
    way = Way(make_spec(subject, prompts), make_plan(subject, prompts))
    made = _Contenders(subject, folder)
    contenders = [
        made.original(questions, len(prompts.positions)),
        made.ours(OURS, way, lambda: subject.encode(questions), made.read_original),
        made.bare(way, prompts),
    ]
    timings = interleave(contenders, n_rounds=n_rounds, n_bytes=way.spec.layout.store_nbytes, n_warm_ups=n_warm_ups)
    return Race(timings, int(prompts.n_tokens.sum()), max(made.differences))


def race_prefix(subject: Subject, prompts: Prompts, folder: Path, *, n_rounds: int) -> Race:
    """Time our extraction with and without reuse of the prefix."""
    spec = make_spec(subject, prompts)
    ways = {name: Way(spec, make_plan(subject, prompts, reuse_prefix=name == REUSED)) for name in (NOT_REUSED, REUSED)}
    return _race_ours(subject, ways, lambda: prompts, folder, n_rounds)


def race_layers(subject: Subject, questions: Sequence[str], folder: Path, few: str, *, n_rounds: int) -> Race:
    """Time our extraction of all layers and of the first few."""
    prompts = subject.encode(questions)
    plan = make_plan(subject, prompts)
    ways = {
        ALL_LAYERS: Way(make_spec(subject, prompts), plan),
        few_layers(few): Way(make_spec(subject, prompts, layers=few), plan),
    }
    return _race_ours(subject, ways, lambda: subject.encode(questions), folder, n_rounds)


def few_layers(few: str) -> str:
    """Name of the contender that extracts these layers, the first ones."""
    return f"--layers {few}"


def _race_ours(
    subject: Subject, ways: Mapping[str, Way], encode: Callable[[], Prompts], folder: Path, n_rounds: int
) -> Race:
    """Time our extraction into stores of several kinds; all are compared with what transformers returns by itself."""
    made = _Contenders(subject, folder)
    prompts = encode()
    expected = run_plainly(subject, prompts)
    contenders = [
        made.ours(name, way, encode, lambda way=way: expected[:, list(way.spec.layers)]) for name, way in ways.items()
    ]
    n_bytes = next(iter(ways.values())).spec.layout.store_nbytes
    timings = interleave(contenders, n_rounds=n_rounds, n_bytes=n_bytes, n_warm_ups=0)
    return Race(timings, int(prompts.n_tokens.sum()), max(made.differences))


def _settled(action: Callable[[], object]) -> Callable[[], object]:
    """The action, once nothing that others wrote waits for the disk any more."""
    os.sync()
    return action


def speed_table(title: str, timings: Timings, n_tokens: int, bases: Mapping[str, str]) -> Table:
    """Seconds, real tokens per second, and ratios to some of the contenders."""
    rows = [
        {
            "contender": name,
            "s": Spread.of(seconds),
            "tokens/s": Spread.of([n_tokens / s for s in seconds]),
            **{heading: timings.ratio(name, base) for heading, base in bases.items()},
        }
        for name, seconds in timings.seconds.items()
    ]
    return Table(title, rows)


def original_targets(name: str, timings: Timings, times_as_fast: float) -> list[Target]:
    return [
        Target(f"{name}: ours / original method", times_as_fast, timings.ratio(OURS, ORIGINAL)),
        Target(f"{name}: ours / bare forward pass", 0.95, timings.ratio(OURS, BARE)),
    ]


def prefix_target(share: float, timings: Timings) -> Target:
    wanted = 1.25 if share >= 0.3 else 1.0
    return Target(f"{share:.0%} shared tokens: prefix reused / not", wanted, timings.ratio(REUSED, NOT_REUSED))


def layers_limit(few: str, timings: Timings) -> Limit:
    return Limit(f"cost of {few_layers(few)} / all", 0.45, timings.ratio(ALL_LAYERS, few_layers(few)))
