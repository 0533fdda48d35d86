"""All parts in turn, and how large each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from activation_store.models.loading import resolve_device
from benchmarks.extract.large import Large, measure_large
from benchmarks.extract.larger import Larger, larger_table, larger_target, measure_larger
from benchmarks.extract.memory import measure_memory, memory_limit, memory_table
from benchmarks.extract.methods import BATCH_ROWS
from benchmarks.extract.speed import (
    ALL_LAYERS,
    BARE,
    NOT_REUSED,
    ORIGINAL,
    layers_limit,
    original_targets,
    prefix_target,
    race_layers,
    race_original,
    race_prefix,
    speed_table,
)
from benchmarks.extract.subject import Subject
from benchmarks.shared.card import device_facts, device_name
from benchmarks.shared.measure import Limit, Report, StealClock, Table, Target, hardware, progress, scratch_folder
from benchmarks.shared.prompts import embedded_questions, sharing_prompts, skewed_questions

# Those of SmolLM2; the other one is meant for cards and only run when it is asked for.
PARTS, LARGE_MODEL = ("original", "layers", "prefix", "memory", "larger"), "large-model"
LIBRARIES = ("torch", "transformers", "numpy")
SHARES = (0.1, 0.3, 0.6)
# Stored of the prompts that share a prefix: as many as SmolLM2's template has behind the text.
N_POSITIONS = 6


@dataclass(frozen=True)
class Size:
    """How much is extracted, and how often.

    Parameters
    ----------
    embedded_rows, skewed_rows : int
        Prompts of the two sets.
    median_tokens, longest_tokens : int
        Of the skewed set.
    prefix_rows, prefix_mean_tokens : int
        Prompts of each set that shares a prefix, and their mean length.
    few_layers, layers_rows : str, int
        Layers that are compared with all of them, on so many embedded questions.
    memory_rows, memory_shard_samples, memory_rounds : int
        Prompts whose peak memory is compared with that of fewer of them, samples of a shard in it, and how often.
    n_rounds : int
        Rounds of everything that is timed.
    larger : Larger
        The store that does not fit in memory.
    large : Large
        The model that is for cards.
    """

    embedded_rows: int
    skewed_rows: int
    median_tokens: int
    longest_tokens: int
    prefix_rows: int
    prefix_mean_tokens: int
    few_layers: str
    layers_rows: int
    memory_rows: int
    memory_shard_samples: int
    memory_rounds: int
    n_rounds: int
    larger: Larger
    large: Large

    def describe(self) -> dict[str, Any]:
        """What a reader of the figures must know."""
        return {name: value for name, value in asdict(self).items() if name not in ("larger", "large")}

    def disk_nbytes(self, parts: Sequence[str]) -> int:
        """Room that is needed at any time, roughly: the larger store and a model, or what the large model gives."""
        of_smollm2 = self.larger.store_nbytes + 2 * 2**30 if {*parts} & {*PARTS} else 0
        return max(of_smollm2, self.large.disk_nbytes if LARGE_MODEL in parts else 0)


FULL = Size(
    embedded_rows=192,
    skewed_rows=96,
    median_tokens=60,
    longest_tokens=500,
    prefix_rows=32,
    prefix_mean_tokens=120,
    few_layers="0-10",
    layers_rows=64,
    memory_rows=1024,
    memory_shard_samples=16,
    memory_rounds=2,
    n_rounds=3,
    larger=Larger(n_blocks=64, n_features=512, n_positions=6, store_nbytes=4 * 2**30, limit_nbytes=3 * 2**29),
    # Qwen2.5-1.5B.
    large=Large(28, 1536, 8960, 12, 2, 151936, n_rows=4096, median_tokens=100, longest_tokens=500, n_rounds=2),
)
QUICK = Size(
    embedded_rows=32,
    skewed_rows=32,
    median_tokens=60,
    longest_tokens=300,
    prefix_rows=8,
    prefix_mean_tokens=60,
    few_layers="0-10",
    layers_rows=16,
    memory_rows=64,
    memory_shard_samples=2,
    memory_rounds=1,
    n_rounds=1,
    larger=Larger(16, 256, 6, store_nbytes=2**26, limit_nbytes=3 * 2**29, shard_samples=64),
    large=Large(3, 64, 128, 4, 2, 2500, n_rows=32, median_tokens=100, longest_tokens=300, n_rounds=1),
)


@dataclass
class _Findings:
    tables: list[Table] = field(default_factory=list)
    targets: list[Target | Limit] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def measure_extract(size: Size, parts: Sequence[str], folder: Path, model: str, device: str) -> Report:
    """Measure time, memory, and a store larger than memory; or what a card makes of a large model."""
    clock = StealClock()
    found = _Findings()
    setting: dict[str, Any] = {"parts": ", ".join(parts), "device": device_name(resolve_device(device))}
    with scratch_folder(folder, size.disk_nbytes(parts)) as workplace:
        if {*parts} & {*PARTS}:
            setting |= {"model": model, "dtype": "float32", **size.describe()}
            _measure_smollm2(size, parts, workplace, (model, device), found)
        if LARGE_MODEL in parts:
            progress("a large model")
            large = measure_large(size.large, _new(workplace / "large"), resolve_device(device))
            setting |= {f"{LARGE_MODEL}: {name}": value for name, value in asdict(size.large).items()}
            found.tables += large.tables
            found.targets += large.targets
            found.facts |= large.facts
    setting |= {**found.facts, "cpu stolen, %": clock.percent()}
    facts = hardware(folder, LIBRARIES) | device_facts(resolve_device(device))
    return Report("extract", facts, setting, found.tables, found.targets)


def _measure_smollm2(size: Size, parts: Sequence[str], folder: Path, where: tuple[str, str], found: _Findings) -> None:
    on_model = {
        "original": _measure_original,
        "layers": _measure_layers,
        "prefix": _measure_prefix,
        "memory": _measure_memory,
    }
    if {*parts} & {*on_model}:
        progress("loading the model")
        subject = Subject.load(*where)
        for part, measure in on_model.items():
            if part in parts:
                measure(size, subject, folder, found)
    if "larger" in parts:
        progress("a store larger than memory")
        used = measure_larger(size.larger, _new(folder / "larger"))
        found.tables.append(larger_table(size.larger, used))
        found.targets.append(larger_target(size.larger, used))


def _measure_original(size: Size, subject: Subject, folder: Path, found: _Findings) -> None:
    embedded = embedded_questions()
    median, longest = size.median_tokens, size.longest_tokens
    skewed = skewed_questions(subject.tokenizer, size.skewed_rows, median_tokens=median, longest_tokens=longest)
    race_original(subject, embedded[:BATCH_ROWS], _new(folder / "warm_up"), n_rounds=0, n_warm_ups=1)
    for name, questions, times_as_fast in (
        ("skewed", skewed, 3.5),
        ("embedded", embedded[: size.embedded_rows], 2.5),
    ):
        progress(f"{name} questions")
        race = race_original(subject, questions, _new(folder / name), n_rounds=size.n_rounds)
        lengths = subject.encode(questions).n_tokens
        title = (
            f"{name} questions: {len(lengths)} prompts of {lengths.min()} to {lengths.max()} tokens, "
            f"median {np.median(lengths):.0f}"
        )
        bases = {"x original": ORIGINAL, "x bare": BARE}
        found.tables.append(speed_table(title, race.timings, race.n_tokens, bases))
        found.targets += original_targets(name, race.timings, times_as_fast)
        found.facts[f"{name}: largest difference, of the layer's rms"] = f"{race.difference:.1e}"


def _measure_layers(size: Size, subject: Subject, folder: Path, found: _Findings) -> None:
    progress("fewer layers")
    questions = embedded_questions()[: size.layers_rows]
    race = race_layers(subject, questions, _new(folder / "layers"), size.few_layers, n_rounds=size.n_rounds)
    title = f"layers, {size.layers_rows} embedded questions"
    found.tables.append(speed_table(title, race.timings, race.n_tokens, {"x all": ALL_LAYERS}))
    found.targets.append(layers_limit(size.few_layers, race.timings))


def _measure_prefix(size: Size, subject: Subject, folder: Path, found: _Findings) -> None:
    n_rows, mean_tokens = size.prefix_rows, size.prefix_mean_tokens
    for share in SHARES:
        progress(f"{share:.0%} shared tokens")
        prompts = sharing_prompts(subject.tokenizer, n_rows, share, mean_tokens=mean_tokens, n_positions=N_POSITIONS)
        race = race_prefix(subject, prompts, _new(folder / f"prefix_{share}"), n_rounds=size.n_rounds)
        title = f"{share:.0%} of the tokens shared, {n_rows} prompts of {mean_tokens} tokens in the mean"
        found.tables.append(speed_table(title, race.timings, race.n_tokens, {"x not reused": NOT_REUSED}))
        found.targets.append(prefix_target(share, race.timings))


def _measure_memory(size: Size, subject: Subject, folder: Path, found: _Findings) -> None:
    progress("memory")
    subject.save(folder / "model")
    embedded = embedded_questions()
    # Some of them several times where that many are wanted.
    questions = (embedded * (1 + size.memory_rows // len(embedded)))[: size.memory_rows]
    n_positions = len(subject.encode(questions[:1]).positions)
    sample_nbytes = (subject.n_blocks + 1) * n_positions * subject.n_features * subject.dtype.itemsize
    used = measure_memory(
        folder / "model",
        questions,
        size.memory_shard_samples,
        _new(folder / "memory"),
        n_rounds=size.memory_rounds,
    )
    found.tables.append(memory_table(used, sample_nbytes))
    found.targets.append(memory_limit(used, sample_nbytes))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
