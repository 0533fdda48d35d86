"""The same training with several seeds: a folder each, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from activation_store.files.durable import write_output
from gpu_probes import SweepOptions
from gpu_probes.report.seeds import compare_seeds, tabulate_seeds
from gpu_probes.results.documents import Results
from probesweep.errors import RequestError
from probesweep.training import Training, make_way_below

SEEDS = "seeds.json"
_DEFAULT_SEED = SweepOptions().seed


@dataclass(frozen=True)
class SeedRuns:
    """A training with several seeds, which decide the folds and everything else that is drawn at random.

    Parameters
    ----------
    training : Training
        Its results go into a folder ``seed_N`` for each seed in its `output_dir`; its own seed is the default.
    seeds : sequence of int or str
        Text has commas between them: ``1,2,3``.
    """

    training: Training
    seeds: Sequence[int] | str

    def check(self) -> None:
        """Check the arguments by themselves: nothing is read.

        Raises
        ------
        ProbesweepError
            As `Training.check`; also if no seed is given, or one twice.
        """
        seeds = self._read
        if not seeds:
            raise RequestError("seeds=[] is empty; give whole numbers such as 1,2,3, or leave it out", argument="seeds")
        twice = [seed for seed in seeds if seeds.count(seed) > 1]
        if twice:
            raise RequestError(f"seeds={self.seeds!r} has {twice[0]} twice; give each once", argument="seeds")
        if self.training.seed != _DEFAULT_SEED:
            raise RequestError(
                f"seed={self.training.seed} and seeds=... are both given; leave out one of them", argument="seed"
            )
        for training in self.trainings.values():
            training.check()

    @cached_property
    def trainings(self) -> dict[int, Training]:
        """The training of every seed."""
        output_dir = Path(self.training.output_dir)
        return {seed: replace(self.training, seed=seed, output_dir=output_dir / f"seed_{seed}") for seed in self._read}

    @property
    def folders(self) -> dict[str, dict[int, Path]]:
        """Where the results of each label and seed go."""
        by_seed = {seed: training.folders for seed, training in self.trainings.items()}
        return {label: {seed: of[label] for seed, of in by_seed.items()} for label in next(iter(by_seed.values()))}

    def run(self) -> dict[str, dict[int, Path]]:
        """Train with every seed, unless its folder has the results, and compare them in ``seeds.json``.

        Returns
        -------
        dict of dict of Path
            The result folder of every label, by seed.

        Raises
        ------
        ProbesweepError
            As `Training.run`.
        """
        self.check()
        make_way_below(Path(self.training.output_dir))
        for training in self.trainings.values():
            training.run()
        document = {"seeds": self._read, "labels": compare(self.folders)}
        content = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
        write_output(Path(self.training.output_dir) / SEEDS, [content])
        return self.folders

    @cached_property
    def _read(self) -> list[int]:
        if not isinstance(self.seeds, str):
            return list(self.seeds)
        try:
            return [int(seed) for seed in self.seeds.split(",")]
        except ValueError as error:
            raise RequestError(
                f"seeds={self.seeds!r} is unknown; write whole numbers with commas between, such as 1,2,3",
                argument="seeds",
            ) from error


def compare(folders: dict[str, dict[int, Path]]) -> dict[str, dict[str, Any]]:
    """Scores of every label by seed, their mean and standard deviation."""
    return {
        label: compare_seeds({seed: Results.load(folder) for seed, folder in by_seed.items()})
        for label, by_seed in folders.items()
    }


def tabulate(folders: dict[str, dict[int, Path]]) -> str:
    """The same as a table for each label."""
    return "\n\n".join(tabulate_seeds(label, list(folders[label]), found) for label, found in compare(folders).items())
