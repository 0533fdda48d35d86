"""From two stores to result folders: fit every cell, test how far the scores can be trusted, write everything."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from activation_store.extraction.arguments import read_layers
from activation_store.opening import open_activations
from activation_store.store.reader import PlannedStore
from gpu_probes import (
    About,
    ProbeOptions,
    SweepOptions,
    SweepResult,
    check_statistics,
    check_sweep,
    compare_overlap,
    infer,
    plan_sweep,
)
from gpu_probes.arguments import check_flags, is_finite_number
from gpu_probes.evidence.timing import Timing, time_cells
from gpu_probes.features.cells import CellSource
from gpu_probes.features.combine import SomeRows, combine, parse_join
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import (
    Request,
    Run,
    has_results,
    hash_files,
    library_versions,
    remove_drawn,
    replacing,
)
from gpu_probes.results.forms import CARD
from gpu_probes.results.inference import INFERENCE, Evidence, Overlap
from gpu_probes.results.kept import keep_results, put_aside
from gpu_probes.results.saving import save_sweep
from gpu_probes.samples.attempts import N_CORRECT, N_SAMPLES
from gpu_probes.search.alphas import parse_alphas
from gpu_probes.search.storage import Memory
from probesweep.errors import RequestError
from probesweep.labels_file import Activations, JoinedColumns, LabelsFile
from probesweep.outputs import check_folder, check_on_disk, check_room, writing
from probesweep.selection import Selection, check_group_column, read_positions, read_test_rows, split_rows
from probesweep.stores import (
    check_same_origin,
    check_unchanged,
    choose_labels,
    origin_of,
    shared_rows,
    warn_of_another_day,
)
from probesweep.use.card import Card, describe_probe
from probesweep_errors import ProbesweepError, naming

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
_STATISTICS = partial(tqdm, unit="part", desc="statistics")
_MOST_GIB = 2**20
# Options of later versions: without them a request is that of an earlier version.
_ADDED = ("positive_class",)
# Options that do not affect the results, say where they go, or are recorded with the stores.
_NOT_REQUESTED = (
    *("train_activations", "test_activations", "test_rows", "test_fraction"),
    *("label_column", "labels", "test_labels", "question_column", "max_samples"),
    *("output_dir", "device", "workers", "ray", "budget_gib"),
)


@dataclass(frozen=True)
class Training(ProbeOptions):
    """Fit a linear probe at every layer and position of a store, and write the results.

    Parameters
    ----------
    train_activations, test_activations : str or Path
        Stores, by their paths or by their addresses in an object store, or ``.pt`` files of the original scripts.
        Without `test_activations` (None) there is no test set, or it is a part of `train_activations`.
    output_dir : str or Path
        Folder for the results; several labels get a folder each inside it.
    label_column : str or sequence of str
        Labels to predict; by default all in the training store.
    labels : str, Path or sequence of them, optional
        File of labels, groups and weights: a column in it goes before the store's of the same name. Its rows are joined
        to those of both stores by the column ``prompt_hash``, by the column of questions, or row by row: see
        `probesweep.labels_file.LabelsFile`. Of several files the rows follow one another.
    test_labels : str, Path or sequence of them, optional
        File for the test rows; `labels` is then for the training rows alone.
    question_column : str, optional
        Column of questions in these files; by default as in the store's dataset.
    max_samples : int, optional
        Use only the first N rows of these files.
    layers, positions : str or sequence of int
        Some of those in the stores: "10-20" or "-1" (the last one stored); "-1", "-4,-1" or "-4..-1".
    test_rows : str or sequence of int, optional
        Rows of `train_activations` to test on, such as "0-99,200", or a column and its value, such as "split=test".
    test_fraction : float, optional
        Test on a part of `train_activations`, drawn with `seed`: of all groups, if there are `groups`. Rows with the
        same prompt are never on both sides.
    weight_column : str, optional
        Label of the training rows that holds sample weights; by default ``n_samples`` for a binomial probe, where there
        is such a label.
    groups : str, optional
        Column of the training rows whose samples are held out together.
    split_repeats : bool
        Let folds separate repeated training prompts.
    drop_overlap : bool
        Score test prompts that also occur in training separately, not as test rows.
    join : str, optional
        Probe on joined cells: ``layers``, ``mean``, or cells such as ``20@-4,18@-1``.
    budget_gib : float, optional
        Memory for fits, statistics and results; by default half of what is free, four fifths on a GPU. With `workers`,
        that of each, and half of what is free is shared by those of a machine.
    task_type, probe, alpha, alphas, fit_intercept, standardize, k_fold, n_folds, seed, permutations
    permutation_statistic, nested_cv
        As `gpu_probes.ProbeOptions`.
    positive_class
        As `gpu_probes.ProbeOptions`.
    device, workers, ray
        As `gpu_probes.ProbeOptions`.
    """

    train_activations: str | Path
    test_activations: str | Path | None
    output_dir: str | Path
    label_column: str | Sequence[str] = ()
    _: KW_ONLY
    labels: str | Path | Sequence[str | Path] | None = None
    test_labels: str | Path | Sequence[str | Path] | None = None
    question_column: str | None = None
    max_samples: int | None = None
    layers: str | Sequence[int] = "all"
    positions: str | Sequence[int] = "all"
    test_rows: str | Sequence[int] | None = None
    test_fraction: float | None = None
    join: str | None = None
    # Lists only: a file holds no arrays.
    alphas: Sequence[float] | str | None = None
    weight_column: str | None = None
    groups: str | None = None
    split_repeats: bool = False
    drop_overlap: bool = False
    budget_gib: float | None = None

    def check(self) -> None:
        """Check the arguments by themselves: nothing is read.

        Raises
        ------
        ProbesweepError
            One of them is invalid for any activations.
        """
        check_on_disk(self.output_dir, "output_dir")
        for name in ("weight_column", "groups"):
            if getattr(self, name) == "":
                raise RequestError(f"{name}='' is empty; name a column, or leave it out", argument=name)
        named = [self.label_column] if isinstance(self.label_column, str) else self.label_column
        if self.weight_column in named:
            raise RequestError(
                f"weight_column={self.weight_column!r} is a label_column=... as well; it can be only one of them",
                argument="weight_column",
            )
        check_flags(split_repeats=self.split_repeats, drop_overlap=self.drop_overlap)
        budget = self.budget_gib
        if budget is not None and not (is_finite_number(budget) and 0 < budget <= _MOST_GIB):
            raise RequestError(
                f"budget_gib={budget!r} must be a number above 0, {_MOST_GIB} at most", argument="budget_gib"
            )
        if self.join is not None:
            parse_join(self.join)
        read_layers(self.layers)
        read_positions(self.positions)
        self._check_test()
        self._check_files()
        self._options().check()

    def _check_test(self) -> None:
        """Check what says which rows are tested on."""
        ways = {name: getattr(self, name) for name in ("test_activations", "test_rows", "test_fraction")}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise RequestError(
                f"{given[0]}=... and {given[1]}=... both say what to test on; leave out one of them", argument=given[1]
            )
        if not given and not self.k_fold:
            raise RequestError(
                "there is neither cross-validation nor anything to test on, so nothing would be scored; use "
                "k_fold=True, or give test_activations=..., test_rows=... or test_fraction=...",
                argument="k_fold",
            )
        fraction = self.test_fraction
        if fraction is not None and not (is_finite_number(fraction) and 0 < fraction < 1):
            raise RequestError(
                f"test_fraction={fraction!r} must be between 0 and 1, such as 0.2", argument="test_fraction"
            )
        if self.test_rows is not None:
            read_test_rows(self.test_rows)
        if self.drop_overlap and (not given or fraction is not None):
            raise RequestError(
                "drop_overlap=True is about prompts of other test rows, and there are none; leave it out",
                argument="drop_overlap",
            )

    def _check_files(self) -> None:
        """Check what says where labels come from."""
        if self.test_labels is not None and (self.labels is None or self.test_activations is None):
            lacking = "labels=..." if self.labels is None else "test_activations=..."
            raise RequestError(f"test_labels=... needs {lacking} as well; give it", argument="test_labels")
        for name in ("question_column", "max_samples"):
            if getattr(self, name) is not None and self.labels is None:
                raise RequestError(f"{name}=... is about a file of labels; give labels=..., too", argument=name)

    def run(self) -> dict[str, Path]:
        """Train, unless the folder already has the results of this request.

        Returns
        -------
        dict of Path
            The result folder of every label.

        Raises
        ------
        ProbesweepError
            The request cannot be carried out; the message says what, where, and how to fix it.
        """
        self.check()
        if not self.is_finished():
            self._check_folders(self.folders)
            with writing(*self.folders.values()):
                if not self.is_finished():
                    self._train()
        return self.folders

    def is_finished(self) -> bool:
        """Whether the folders have all files of this request, unchanged."""
        return all(_holds(folder, self._request) for folder in self.folders.values())

    def check_rows(self, train: Activations, test: Activations | None) -> None:
        """Check what is known about the rows without their activations: the stores need not exist yet.

        Parameters
        ----------
        train, test : ActivationStore or PtActivations
            Instead of those that the arguments name; None where they name none.

        Raises
        ------
        ProbesweepError
            As `run`; also if no cell can get a score.
        """
        self.check()
        check_same_origin(train, test)
        sides = self._select(train, test)
        names = self._choose(*sides)
        self._check_folders(self._folders(names))
        work = self._plan(*sides, names)
        memory, workloads = check_sweep(
            work.rows.train_cells, work.train_labels, work.rows.test_cells, work.test_labels, **vars(work.given)
        )
        about = work.rows.about(self.groups)
        check_statistics(workloads, memory, about.train_prompts, about.test_prompts)
        self._check_room(memory)

    def time_cells(self, train: Activations, test: Activations | None) -> Timing:
        """Fit a few cells and say what all would take; nothing is written.

        Parameters
        ----------
        train, test : ActivationStore or PtActivations
            As for `check_rows`: of stores that are not written yet, random numbers stand in for hidden states.
        """
        sides = self._select(train, test)
        work = self._plan(*sides, self._choose(*sides))
        return time_cells(
            work.rows.train_cells,
            work.train_labels,
            work.rows.test_cells,
            work.test_labels,
            work.given,
            work.rows.about(self.groups),
            at_random=any(isinstance(store, PlannedStore) for store in (train, test)),
        )

    def check_contents(self, *contents: str) -> None:
        """Make sure that the stores have these contents (`ActivationStore.journal_hash`).

        Raises
        ------
        RequestError
            A store was replaced.
        """
        for store, content in zip(filter(None, self._stores), contents, strict=True):
            if store.journal_hash != content:
                raise RequestError(
                    f"{store.path} is not what was extracted: it was replaced; run the same command again"
                )

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Where the results of each label go."""
        return self._folders(self._labels)

    def _folders(self, names: Sequence[str]) -> dict[str, Path]:
        output_dir = Path(self.output_dir)
        return {name: output_dir / name if len(names) > 1 else output_dir for name in names}

    def _check_folders(self, folders: dict[str, Path]) -> None:
        for folder in folders.values():
            check_folder(folder, "output_dir")

    @cached_property
    def _stores(self) -> tuple[Activations, Activations | None]:
        with naming("train_activations"):
            train = open_activations(self.train_activations)
        if self.test_activations is None:
            return train, None
        with naming("test_activations"):
            test = open_activations(self.test_activations)
        check_same_origin(train, test)
        warn_of_another_day(train, test)
        return train, test

    @cached_property
    def _sides(self) -> tuple[Selection, Selection | None]:
        return self._select(*self._stores)

    def _select(self, train: Activations, test: Activations | None) -> tuple[Selection, Selection | None]:
        """What is used of the stores, to train on and to test on."""
        of_train, of_test = self._join_files(train, test)
        whole = Selection.of(train, self.layers, self.positions, of_train)
        if self.test_rows is not None or self.test_fraction is not None:
            return split_rows(whole, self.test_rows, self.test_fraction, groups=self.groups, seed=self.seed)
        return whole, None if test is None else Selection.of(test, self.layers, self.positions, of_test)

    def _join_files(
        self, train: Activations, test: Activations | None
    ) -> tuple[JoinedColumns | None, JoinedColumns | None]:
        if self.labels is None:
            return None, None
        read = partial(LabelsFile.read, question_column=self.question_column, max_samples=self.max_samples)
        of_train = read(self.labels, argument="labels")
        if test is None:
            return of_train.join(train)[0], None
        if self.test_labels is None:
            joined = of_train.join(train, test)
            return joined[0], joined[1]
        return of_train.join(train)[0], read(self.test_labels, argument="test_labels").join(test)[0]

    @cached_property
    def _labels(self) -> list[str]:
        return self._choose(*self._sides)

    def _choose(self, train: Selection, test: Selection | None) -> list[str]:
        wanted = [self.label_column] if isinstance(self.label_column, str) else self.label_column
        tested = None if self.test_rows is None else read_test_rows(self.test_rows)
        split = tested[0] if isinstance(tested, tuple) else None
        taken = {"weights": self._weights(train), "groups": self.groups, "split": split}
        return choose_labels(wanted, **taken, train=train, test=test)

    @cached_property
    def _request(self) -> Request:
        train, test = self._sides
        weight_column = self._weights(train)
        weights, groups = ([] if name is None else [name] for name in (weight_column, self.groups))
        counts = [N_SAMPLES, N_CORRECT]
        places = {"layers": list(train.layers), "positions": list(train.positions)} if train.has_some_cells else {}
        given = {"alphas": parse_alphas(self.alphas), "layers": None, "positions": None} | places
        given["weight_column"] = weight_column
        return Request(
            probesweep=version("probesweep"),
            train=train.used([*self._labels, *weights, *counts], groups),
            test=None if test is None else test.used([*self._labels, *counts], groups),
            labels=self._labels,
            options={
                name: list(value) if isinstance(value, tuple) else value
                for name, value in (asdict(self) | given).items()
                if name not in _NOT_REQUESTED and not (name in _ADDED and value is None)
            },
        )

    def _train(self) -> None:
        others = self._other_results()
        if others:
            # They will be kept beside it.
            check_folder(Path(self.output_dir).absolute().parent, "output_dir")
        work = self._plan(*self._sides, self._labels)
        rows, given = work.rows, work.given
        planned = plan_sweep(rows.train_cells, work.train_labels, rows.test_cells, work.test_labels, **vars(given))
        about = rows.about(self.groups)
        check_statistics(planned.workloads, planned.memory, about.train_prompts, about.test_prompts)
        self._check_room(planned.memory)
        results = planned.run()
        # The results are still in memory.
        given = replace(given, budget_bytes=planned.memory.free_nbytes)
        if others:
            self._keep(others)
        above = Path(self.output_dir)
        if above not in self.folders.values():
            make_way_below(above)
        for name, folder in self.folders.items():
            found = infer(results[name], rows.train_cells, rows.test_cells, given, about, progress=_STATISTICS)
            overlap = self._overlap(results[name], rows, name, work.shared)
            for store in filter(None, self._stores):
                check_unchanged(store)
            self._write(name, folder, results[name], replace(found, overlap=overlap))

    def _other_results(self) -> dict[Path, Request]:
        """What is in the folders and was asked for otherwise."""
        found = {folder: Run.load(folder).request for folder in self.folders.values() if has_results(folder)}
        return {folder: request for folder, request in found.items() if request != self._request}

    def _keep(self, others: dict[Path, Request]) -> None:
        """Results are not lost: they can be hours of work."""
        kept = keep_results(Path(self.output_dir), list(others))
        differences = ", ".join(next(iter(others.values())).differences(self._request))
        logger.warning(
            "%s held the results of another request (%s): kept as %s", self.output_dir, differences, kept.name
        )

    def _check_room(self, memory: Memory) -> None:
        """Predictions take about 20 characters in the files, plus 8 bytes on disk if they do not stay in memory."""
        n_bytes = memory.result_nbytes * (2.5 if memory.spill_folder is None else 3.5)
        check_room(Path(self.output_dir), int(n_bytes), "output_dir")

    def _plan(self, train: Selection, test: Selection | None, names: Sequence[str]) -> _Work:
        shared = np.zeros(0, dtype=bool) if test is None else shared_rows(train, test, dropped=self.drop_overlap)
        kept = ~shared if self.drop_overlap else np.ones(len(shared), dtype=bool)
        return _Work(
            rows=_Rows(train, test, self.join, kept),
            shared=shared,
            given=self._options(train),
            train_labels={name: train.label(name) for name in names},
            test_labels=None if test is None else {name: test.label(name)[kept] for name in names},
        )

    def _options(self, train: Selection | None = None) -> SweepOptions:
        """As the sweep takes them; without the training rows, only those that do not depend on rows."""
        weights, groups = None if train is None else self._weights(train), self.groups
        return SweepOptions(
            **self.shared(),
            groups=None if train is None or groups is None else train.group(check_group_column(train, groups)),
            prompts=None if train is None or self.split_repeats else train.questions,
            sample_weight=None if train is None or weights is None else train.label(weights),
            budget_bytes=None if self.budget_gib is None else int(self.budget_gib * 2**30),
            spill_folder=_nearest_folder(Path(self.output_dir)),
            progress=partial(tqdm, unit="block of cells", desc="train"),
        )

    def _weights(self, train: Selection) -> str | None:
        """The column of weights: of a binomial probe the number of attempts, unless another one is named."""
        counted = self.probe == "binomial" and N_SAMPLES in train.label_names and train.names_labels
        return N_SAMPLES if self.weight_column is None and counted else self.weight_column

    def _overlap(self, result: SweepResult, rows: _Rows, name: str, shared: Bool[np.ndarray, " row"]) -> Overlap:
        if rows.test is None or rows.all_test_cells is None:
            return Overlap(n_shared=None, reason="there is no test set")
        unknown = [name for name, one in (("training", rows.train), ("test", rows.test)) if one.questions is None]
        if unknown:
            reason = f"the {' and '.join(unknown)} rows are of a .pt, which holds no prompts"
            return Overlap(n_shared=None, reason=reason)
        labels = rows.test.label(name)
        return compare_overlap(result, rows.all_test_cells, labels, shared, dropped=self.drop_overlap)

    def _write(self, name: str, folder: Path, result: SweepResult, evidence: Evidence) -> None:
        train = self._sides[0]
        # The old results' page and figures go first: they can be drawn again.
        remove_drawn(folder)
        with replacing(folder) as draft:
            files = [*save_sweep(result, draft), INFERENCE]
            evidence.save(draft)
            card = describe_probe(name, result, evidence, train, self.join)
            if card is not None:
                card.save(draft)
                files.append(CARD)
            run = Run(
                request=self._request,
                label=name,
                model=train.store.fingerprint.get("model"),
                weights=train.store.fingerprint.get("weights"),
                position_tokens=list(train.position_tokens),
                files=hash_files(draft, files),
                dataset=origin_of(train.store).get("dataset_path"),
                versions=library_versions(origin_of(train.store)),
            )
            run.save(draft)


def make_way_below(output_dir: Path) -> None:
    """Put a folder's own results aside before others come into folders below it, where they would not be found."""
    if has_results(output_dir):
        logger.warning("%s held the results of another request: moved to %s", output_dir, put_aside(output_dir).name)


@dataclass(frozen=True)
class _Rows:
    """The rows to train and to test on, and which of the test rows are scored."""

    train: Selection
    test: Selection | None
    join: str | None
    kept: Bool[np.ndarray, " test_sample"]

    @cached_property
    def train_cells(self) -> CellSource:
        return combine(self.train.cells, self.join)

    @cached_property
    def all_test_cells(self) -> CellSource | None:
        return None if self.test is None else combine(self.test.cells, self.join)

    @cached_property
    def test_cells(self) -> CellSource | None:
        cells = self.all_test_cells
        return cells if cells is None or self.kept.all() else SomeRows(cells, self.kept)

    def about(self, groups: str | None) -> About:
        """What the stores know about their rows besides features and labels."""
        train, test = self.train, self.test
        lengths = train.n_tokens
        if test is None:
            numbers = {} if lengths is None else {"prompt_length": (lengths, None)}
            return About(train_prompts=train.questions, numbers=numbers, train_attempts=train.attempts)
        test_lengths, prompts = test.n_tokens, test.questions
        numbers = {}
        if lengths is not None and test_lengths is not None:
            numbers = {"prompt_length": (lengths, test_lengths[self.kept])}
        grouped = groups is not None and groups in test.column_names
        tested = test.attempts
        return About(
            train_prompts=train.questions,
            test_prompts=None if prompts is None else _kept(prompts, self.kept),
            test_groups=test.group(groups)[self.kept] if groups and grouped else None,
            numbers=numbers,
            train_attempts=train.attempts,
            test_attempts=None if tested is None else tested.of_rows(self.kept),
        )


@dataclass(frozen=True)
class _Work:
    """The inputs of a sweep, and which of all test rows also occur in training."""

    rows: _Rows
    shared: Bool[np.ndarray, " test_sample"]
    given: SweepOptions
    train_labels: dict[str, pd.Series]
    test_labels: dict[str, Any] | None


def _nearest_folder(path: Path) -> Path:
    """An existing folder on the disk of a path that need not exist yet."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


def _kept(texts: Iterable[str], kept: Bool[np.ndarray, " row"]) -> list[str]:
    return [text for text, keep in zip(texts, kept, strict=True) if keep]


def _holds(folder: Path, request: Request) -> bool:
    """Whether a folder has all files of a request."""
    if not has_results(folder):
        return False
    run = Run.load(folder)
    return run.request == request and run.is_whole(folder) and _can_be_read(folder)


def _can_be_read(folder: Path) -> bool:
    """Whether its unchanged files are valid results: they may come from anywhere."""
    try:
        results = Results.load(folder)
        if CARD in results.run.files:
            Card.of(results)
    except ProbesweepError:
        return False
    return True
