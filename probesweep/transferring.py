"""Trained probes scored on other stores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from activation_store import StoreError
from activation_store.files.storage import Location
from activation_store.opening import open_activations
from gpu_probes import ProbeError, shared_prompts
from gpu_probes.evidence.transfer import FittedRows, OtherRows, TransferScore, no_transfer, score_transfer, tabulate
from gpu_probes.results.transfer import DEPTH, FinishedTraining, find_trainings
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.labels import read_labels
from probesweep.errors import RequestError
from probesweep.labels_file import Activations
from probesweep.selection import Selection
from probesweep.stores import another_model, label

logger = logging.getLogger(__name__)
_LENGTH = "prompt_length"


@dataclass(frozen=True)
class Transfer:
    """Scores of trainings on stores.

    Attributes
    ----------
    trainings : list of FinishedTraining
    stores : list of str
    scores : list of lists of TransferScore
        A list for each training, with a score for each store.
    """

    trainings: list[FinishedTraining]
    stores: list[str]
    scores: list[list[TransferScore]]

    def __str__(self) -> str:
        return tabulate(self.trainings, self.stores, self.scores)

    def to_json(self) -> dict[str, Any]:
        """As ``probesweep transfer --output_path`` writes it."""
        rows = {
            str(training.folder): [one.to_json() for one in row]
            for training, row in zip(self.trainings, self.scores, strict=True)
        }
        return {"stores": self.stores, "probes": rows}


def transfer(
    probes: str | Path,
    stores: Sequence[Location],
    *,
    label_column: str | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Transfer:
    """Score the probes of all trainings in a folder on all rows of other stores.

    Parameters
    ----------
    probes : str or Path
        A result folder, or a folder with result folders at any place in it.
    stores : sequence of str or Path
        Stores, by path or address, or ``.pt`` files. One of another model than a training's has no score there, for a
        reason.
    label_column : str, optional
        Label of the stores to score against; by default the training's.
    progress : callable, optional
        Wraps the pairs of training and store, such as `tqdm`.

    Raises
    ------
    ProbesweepError
        There are no trainings or no such stores, rows lack the label or the cells, or no store is of any training's
        model.
    """
    trainings, opened = find_trainings(Path(probes), depth=DEPTH), [open_activations(store) for store in stores]
    pairs = [(training, store, _mismatch(training, store)) for training in trainings for store in opened]
    reasons = [reason for *_, reason in pairs]
    if None not in reasons:
        raise RequestError(f"{reasons[0]}; give stores of the model that a probe was trained on")
    known = {id(training): _Training(training) for training in trainings}
    each = [
        no_transfer(training, reason) if reason else known[id(training)].score(store, label_column)
        for training, store, reason in progress(pairs)
    ]
    rows = [each[start : start + len(opened)] for start in range(0, len(each), len(opened))]
    return Transfer(trainings, list(map(str, stores)), rows)


def _mismatch(training: FinishedTraining, store: Activations) -> str | None:
    """Why probes cannot read a store, if it is another model's."""
    reason = another_model(training.run, store)
    if reason is not None:
        return reason
    if not (training.run.origin or {}).get("knows_places", True):
        return "the probes were fitted to an array, which does not say which layers and positions it holds"
    read = training.cells_of(store).n_features
    wanted = training.probes.coef.shape[-1]
    return (
        None if read == wanted else f"the probes read {wanted} features, and {store.path} has {read}: another model's"
    )


@dataclass(frozen=True)
class _Training:
    """A training and the rows that it was fitted to."""

    training: FinishedTraining

    @property
    def _options(self) -> dict[str, Any]:
        return self.training.run.request.options

    @cached_property
    def _store(self) -> Activations | str:
        """Its training rows, or why they are unknown."""
        used = self.training.run.request.train
        try:
            store = open_activations(used.path)
        except (StoreError, OSError) as error:
            return f"the training rows are not there: {error}"
        return store if store.journal_hash == used.content else f"{used.path} was replaced since the training"

    @cached_property
    def _used(self) -> Selection | str:
        """Those of its rows that were used."""
        store, rows = self._store, self.training.run.request.train.rows
        if isinstance(store, str):
            return store
        whole = Selection.of(store)
        return whole if rows is None else whole.only(np.isin(np.arange(store.n_samples), rows))

    @cached_property
    def _fitted(self) -> FittedRows | str:
        used, groups, best = self._used, self._options.get("groups"), self.training.results.best
        if isinstance(used, str):
            return used
        if used.questions is None or best is None:
            return f"{used.path} holds no prompts" if used.questions is None else "the training chose no best probe"
        of_file = self.training.run.request.train.labels
        if groups and groups not in used.column_names:
            if of_file is not None and groups in of_file.columns:
                return f"the training's groups are those of {', '.join(of_file.paths)}"
            return "the training's groups are not in its store"
        return FittedRows(
            # As they were, wherever they came from.
            labels=np.asarray(best.train_actual, dtype=np.float64),
            prompts=used.questions,
            numbers={} if used.n_tokens is None else {_LENGTH: used.n_tokens},
            groups=used.group(groups) if groups else None,
        )

    def score(self, store: Activations, label_column: str | None) -> TransferScore:
        """Score its probes on a store of the same model."""
        numbers = {} if store.n_tokens is None else {_LENGTH: store.n_tokens}
        values = label(store, label_column or self.training.label)
        if label_column is None and self._label_of_file is not None:
            logger.warning(
                "%s was trained on the label %r of %s, which its store does not hold; %s is scored by its own column",
                self.training.folder,
                self.training.label,
                self._label_of_file,
                store.path,
            )
        other = OtherRows(store, values, store.questions, numbers, self._clusters(store), self._n_known(store))
        fitted = self._fitted
        if store.questions is None and not isinstance(fitted, str):
            fitted = f"{store.path} holds no prompts"
        return score_transfer(self.training, other, fitted)

    @cached_property
    def _label_of_file(self) -> str | None:
        """The file that the training's label came from, where the training store's own column is another one."""
        of_file, name = self.training.run.request.train.labels, self.training.label
        if of_file is None or name not in of_file.columns:
            return None
        used, best = self._used, self.training.results.best
        if not isinstance(used, str) and best is not None and name in used.stored_labels:
            task = self.training.probes.task
            with suppress(ProbeError):
                own = read_labels(used.label(name), name="labels", n_samples=used.n_samples, names=task.names)
                if np.array_equal(own, best.train_actual):
                    return None
        return ", ".join(of_file.paths)

    def _n_known(self, store: Activations) -> int | None:
        """Rows whose prompts were trained on."""
        known = None if isinstance(self._used, str) else self._used.questions
        return None if known is None or store.questions is None else int(shared_prompts(known, store.questions).sum())

    def _clusters(self, store: Activations) -> Int64[np.ndarray, " sample"] | None:
        """Rows that belong together, as for intervals of a training."""
        name = self._options.get("groups")
        side = Selection.of(store)
        groups = side.group(name) if name and name in side.column_names else None
        grouping = group_samples(store.n_samples, groups, store.questions)
        return None if grouping.is_trivial else grouping.group
