"""``sweep``: every cell fitted, as an object that charts, tabulates and saves what was found."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np

from gpu_probes.errors import ProbeWarning
from gpu_probes.evidence.infer import About, compare_overlap, infer
from gpu_probes.features.cells import CellSource, as_source, cells_of
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import (
    Request,
    Run,
    UsedStore,
    has_results,
    hash_files,
    library_versions,
    remove_drawn,
    replacing,
)
from gpu_probes.results.inference import INFERENCE, Overlap
from gpu_probes.results.kept import keep_results
from gpu_probes.results.saving import save_sweep
from gpu_probes.results.sweep_result import SweepResult
from gpu_probes.samples.groups import shared_prompts
from gpu_probes.search.alphas import parse_alphas
from gpu_probes.search.options import ProbeOptions, SweepKeywords, SweepOptions
from gpu_probes.search.sweep import plan_sweep

Function = TypeVar("Function", bound=Callable[..., Any])
# Options that do not affect the results.
_NOT_REQUESTED = ("device", "workers", "ray")


# Without a repr of its own: that of what was found is short.
@dataclass(frozen=True, kw_only=True, repr=False)
class FinishedSweep(SweepResult):
    """What a sweep found, and what it was made from.

    Attributes
    ----------
    label : str
        Name of what is predicted.
    train, test : CellSource
    options : SweepOptions
    """

    label: str
    train: CellSource
    test: CellSource | None
    options: SweepOptions

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the results as ``probesweep train`` does, for `SavedResults.load`, ``Probe.load`` and ``report``.

        Intervals, baselines and the learning curve are computed for it, which fits some cells again. Results of another
        sweep that are there are kept under another name.

        Parameters
        ----------
        folder : str or Path

        Returns
        -------
        Path
            The folder.
        """
        folder = Path(folder)
        request = self._request()
        about = _about(self.train, self.test)
        evidence = infer(self, self.train, self.test, self.options, about)
        evidence = replace(evidence, overlap=self._overlap(self.test, about))
        if has_results(folder) and Run.load(folder).request != request:
            kept = keep_results(folder, [folder])
            message = f"{folder} held the results of another request: kept as {kept.name}"
            warnings.warn(message, ProbeWarning, stacklevel=2)
        with replacing(folder) as draft:
            files = [*save_sweep(self, draft), INFERENCE]
            evidence.save(draft)
            fingerprint = dict(getattr(self.train, "fingerprint", {}))
            provenance = getattr(self.train, "attrs", {}).get("provenance", {})
            Run(
                request=request,
                label=self.label,
                model=fingerprint.get("model"),
                weights=fingerprint.get("weights"),
                position_tokens=list(getattr(self.train, "position_tokens", [None] * len(self.positions))),
                files=hash_files(draft, files),
                dataset=provenance.get("dataset_path"),
                versions=library_versions(provenance),
                origin={
                    "fingerprint": fingerprint,
                    "provenance": provenance,
                    "knows_places": getattr(self.train, "knows_places", True),
                },
            ).save(draft)
            Results.load(draft)
            remove_drawn(folder)
        return folder

    def _overlap(self, test: CellSource | None, about: About) -> Overlap:
        if test is None:
            return Overlap(n_shared=None, reason="there is no test set")
        if about.train_prompts is None or about.test_prompts is None:
            return Overlap(n_shared=None, reason="the rows are not of a store that holds prompts")
        shared = shared_prompts(about.train_prompts, about.test_prompts)
        return compare_overlap(self, test, self.test_labels, shared, dropped=False, are_places=True)

    def _request(self) -> Request:
        given = self.options
        options: dict[str, Any] = {option.name: getattr(given, option.name) for option in fields(ProbeOptions)}
        rows = (given.groups, given.prompts, given.sample_weight, given.folds)
        if self.k_fold:
            # As many as the folds that were given.
            options["n_folds"] = self.n_folds
        options["alphas"] = parse_alphas(given.alphas)
        # Those of a training that name columns of its stores.
        options |= {
            "join": None,
            "weight_column": None if given.sample_weight is None else "sample_weight",
            "groups": None if given.groups is None else "groups",
            "split_repeats": given.prompts is None,
            "drop_overlap": False,
            # What names of columns say for a training.
            "rows": _digest(self.train_labels, self.test_labels, self.class_names, *rows),
        }
        return Request(
            probesweep=version("probesweep"),
            train=_used(self.train),
            test=None if self.test is None else _used(self.test),
            labels=[self.label],
            options={name: _plain(value) for name, value in options.items() if name not in _NOT_REQUESTED},
        )


def _shows(options: type) -> Callable[[Function], Function]:
    """Give a function that takes options as keywords a signature that names them, for notebooks."""

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if option.default is MISSING else option.default,
                annotation=option.type,
            )
            for option in fields(options)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *keywords])  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return show


@_shows(SweepOptions)
def sweep(
    train: Any,
    train_labels: Any,
    test: Any = None,
    test_labels: Any = None,
    **options: Unpack[SweepKeywords],
) -> FinishedSweep:
    """Fit a linear probe at every (layer, position) cell.

    Regression minimises ``|y - Xw|^2 + alpha |w|^2``, classification ``C sum(log loss) + 1/2 |w|^2`` with
    ``C = 1/alpha``: scikit-learn's ``Ridge`` and ``LogisticRegression``, in float64.

    Parameters
    ----------
    train, test : sources of ``[sample, feature]`` cells with the same layers, positions and features
        Stores; or an array ``[sample, layer, position, feature]``; or an array or DataFrame ``[sample, feature]``,
        which is one cell.
    train_labels, test_labels : one number or class per sample
        Numbers, booleans, or words: strings or a categorical. Words are classes, in the order of an ordered categorical
        or else sorted by code points; those of the test rows are matched by name.
    **options
        See `SweepOptions`.

    Returns
    -------
    FinishedSweep
        Scores (Spearman, or ROC-AUC), probes and predictions of every cell, with a status for each.

    Raises
    ------
    ProbeError
        When the input cannot be used; the message says what, where, and how to fix it.
    """
    held_out = None if test_labels is None else {"labels": test_labels}
    return sweep_labels(train, {"labels": train_labels}, test, held_out, **options)["labels"]


@_shows(SweepOptions)
def sweep_labels(
    train: Any,
    train_labels: Mapping[str, Any],
    test: Any = None,
    test_labels: Mapping[str, Any] | None = None,
    **options: Unpack[SweepKeywords],
) -> dict[str, FinishedSweep]:
    """As `sweep`, for several labels by name; regression labels with the same folds share the factorisations.

    Parameters
    ----------
    train, test : as for `sweep`
    train_labels, test_labels : one number or class per sample, for each name
        A mapping, or a DataFrame with a column for each.
    **options
        See `SweepOptions`.

    Returns
    -------
    dict of FinishedSweep
        Results by name.

    Raises
    ------
    ProbeError
        When the input cannot be used; the message says what, where, and how to fix it.
    """
    planned = plan_sweep(
        as_source(train, "train"),
        train_labels,
        None if test is None else as_source(test, "test"),
        test_labels,
        **options,
    )
    made_from: dict[str, Any] = {"train": planned.train, "test": planned.test, "options": planned.given}
    return {name: FinishedSweep(**vars(found), **made_from, label=name) for name, found in planned.run().items()}


def _used(source: CellSource) -> UsedStore:
    """What tells features from others: a store's own mark, or a hash of them."""
    path = getattr(source, "path", None)
    if path is None:
        blocks = (block for cell in cells_of(source) for _, block in source.cell_blocks(*cell))
        return UsedStore("in memory", source.n_samples, _digest(*blocks))
    return UsedStore(str(path.absolute() if isinstance(path, Path) else path), source.n_samples, source.journal_hash)  # pyright: ignore[reportAttributeAccessIssue]


def _digest(*values: Any) -> str:
    """SHA-256 over arrays and lists, of numbers or texts; None among them."""
    digest = hashlib.sha256()
    for value in values:
        array = np.ascontiguousarray(np.asarray(value))
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.view(np.uint8).data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """An option as JSON has it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _about(train: CellSource, test: CellSource | None) -> About:
    """What stores know of their rows besides features and labels."""
    train_length, test_length = (getattr(source, "n_tokens", None) for source in (train, test))
    numbers: dict[str, Any] = {}
    if train_length is not None and (test is None or test_length is not None):
        numbers = {"prompt_length": (train_length, test_length)}
    return About(
        train_prompts=getattr(train, "questions", None), test_prompts=getattr(test, "questions", None), numbers=numbers
    )
