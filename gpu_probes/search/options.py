"""The options of a sweep: their meaning, and their checks before any row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

import numpy as np
from jaxtyping import Float64

from gpu_probes.arguments import check_flags, check_whole, is_finite_number
from gpu_probes.errors import BudgetError, FoldError, LabelError, PenaltyError
from gpu_probes.samples.folds import check_split
from gpu_probes.samples.labels import check_probe_name, check_task_type
from gpu_probes.search.alphas import read_alphas
from gpu_probes.search.devices import check_device_name
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.terms import Cell, PermutationStatistic
from probesweep_ray import Machines

Progress = Callable[[Sequence[tuple[Cell, ...]]], Iterable[tuple[Cell, ...]]]

# Enough for p-values of one in a million; all orders of the labels are drawn at once.
_MOST_PERMUTATIONS = 1_000_000
_DEFAULT_ALPHA = 1.0


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What is fitted and how it is chosen: the options that a sweep, `probesweep train` and an experiment share.

    Attributes
    ----------
    task_type : str
        ``regression``, ``classification``, or ``auto``: classification if scikit-learn's `type_of_target` calls the
        training labels binary or multiclass.
    probe : str
        ``auto``: ridge for regression, logistic regression for classes. ``binomial``: logistic regression of rates,
        labels between 0 and 1 that count for both classes by their share; it predicts rates, which are scored as
        numbers are. ``lda``: linear discriminant analysis, `alpha` added to the diagonal of the scatter within classes.
        ``mass_mean``: the difference of the class means (the covariance with a number), without a penalty. The last
        two always have an intercept.
    positive_class : str, optional
        The one of two classes whose probability and scores are given; by default the last in the order of the classes.
    alpha : float
        Penalty of every probe.
    alphas : sequence or array of float, or "auto", optional
        Grid that replaces `alpha`; each cell takes the one with the highest CV score, the first on ties. ``auto``: the
        powers of ten, scaled to the training features.
    k_fold : bool
        Cross-validate; without it no best cell is chosen.
    n_folds, seed : int
        scikit-learn's shuffled ``KFold``, or ``StratifiedKFold`` for binary and multiclass labels.
    nested_cv : bool
        With `k_fold`, also cross-validate the choice of cell and alpha (three folds or more).
    permutations : int
        With `k_fold`, permutations of the labels to compare the CV scores with; each is refitted in every cell.
    permutation_statistic : str
        Whose CV scores are compared where labels are classes, or rates of a binomial probe. ``least_squares``: those of
        least squares on class indicators or rates, with the same folds and alphas, for labels and permutations alike;
        any number of permutations shares its factorisations. ``probe``: those of the probe, refitted for each. For
        other numbers they are the same.
    fit_intercept : bool
        Add an unpenalized intercept.
    standardize : bool
        Scale every feature to mean 0 and deviation 1, fitted on the training rows of each fold.
    device : str
        ``auto``, ``cpu``, ``cuda`` (all GPUs), ``cuda:1`` or ``mps``.
    workers : int, optional
        How many processes share the cells. The results are those of one process.
    ray : str, optional
        Where they run: ``local``, or a Ray cluster, ``auto``, ``host:port`` or ``ray://host:port``, with by default a
        worker for each GPU, or else for each node.
    """

    task_type: str = "auto"
    probe: str = "auto"
    positive_class: str | None = None
    alpha: float = _DEFAULT_ALPHA
    alphas: Sequence[float] | Float64[np.ndarray, " alpha"] | str | None = None
    k_fold: bool = False
    n_folds: int = 5
    seed: int = 42
    nested_cv: bool = True
    permutations: int = 0
    permutation_statistic: str = "least_squares"
    fit_intercept: bool = False
    standardize: bool = False
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None

    @property
    def machines(self) -> Machines:
        """Where the work runs."""
        return Machines(self.workers, self.ray)

    def shared(self) -> dict[str, Any]:
        """These options by name, without those that a subclass adds."""
        return {option.name: getattr(self, option.name) for option in fields(ProbeOptions)}


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ProbeOptions):
    """Options of `sweep` and `sweep_labels`: those of `ProbeOptions`, and what is known of the rows.

    Attributes
    ----------
    folds : one number from 0 per training sample, optional
        With `k_fold`, the fold that each sample is held out in, instead of a split by `n_folds` and `seed`.
    groups : one number or string per training sample, optional
        Samples of a group are held out together: ``GroupKFold`` or ``StratifiedGroupKFold``.
    prompts : one string per training sample, optional
        Samples with the same prompt, ignoring case and whitespace, are held out together, too.
    sample_weight : one number of 0 or more per training sample, optional
        Weights of the losses. Scores are not weighted.
    budget_bytes : int, optional
        Memory for the work on one device and, on a CPU, the results; by default half of what is free on a CPU, and
        four fifths on a GPU. With `workers`, that of each, and half of what is free is shared by those of a machine.
    spill_folder : Path, optional
        Folder for unnamed files with the predictions of all cells, if they are more than a quarter of the budget; by
        default the system's temporary folder.
    progress : callable, optional
        Wraps the list of blocks of cells while they are worked on, such as `tqdm`.
    """

    folds: Any = None
    groups: Any = None
    prompts: Sequence[str] | None = None
    sample_weight: Any = None
    budget_bytes: int | None = None
    spill_folder: Path | None = None
    progress: Progress | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How features are prepared before a fit."""
        return Preprocessing(self.fit_intercept or self.probe in ("lda", "mass_mean"), self.standardize)

    @property
    def statistic(self) -> PermutationStatistic:
        """The checked `permutation_statistic`."""
        return cast(PermutationStatistic, self.permutation_statistic)

    def check(self) -> None:
        """Check the options by themselves, before any row is read.

        Raises
        ------
        ProbeError
            When one is invalid for any features and labels, or two exclude each other.
        """
        check_flags(
            k_fold=self.k_fold,
            nested_cv=self.nested_cv,
            fit_intercept=self.fit_intercept,
            standardize=self.standardize,
        )
        check_task_type(self.task_type)
        check_probe_name(self.probe)
        if self.positive_class is not None and self.task_type == "regression":
            raise LabelError(
                f"positive_class={self.positive_class!r} is for classes, and task_type is 'regression'; leave out one "
                "of them",
                argument="positive_class",
            )
        if self.probe == "binomial" and self.task_type == "classification":
            raise LabelError(
                "probe='binomial' predicts rates, which are numbers, and task_type is 'classification'; leave out "
                "task_type=..., or use probe='logistic'",
                argument="probe",
            )
        read_alphas(self.alpha, self.alphas, k_fold=self.k_fold)
        check_split(self.n_folds, self.seed)
        check_device_name(self.device)
        self.machines.check()
        check_whole("permutations", self.permutations, FoldError)
        if self.permutations < 0:
            raise FoldError(
                f"permutations={self.permutations} is negative; use 0 or more, such as 1000", argument="permutations"
            )
        if self.permutations > _MOST_PERMUTATIONS:
            raise FoldError(
                f"permutations={self.permutations} is too many; use {_MOST_PERMUTATIONS} at most",
                argument="permutations",
            )
        if self.permutation_statistic not in get_args(PermutationStatistic):
            raise FoldError(
                f"permutation_statistic={self.permutation_statistic!r} is unknown; use "
                f"{' or '.join(get_args(PermutationStatistic))}",
                argument="permutation_statistic",
            )
        if self.folds is not None and not self.k_fold:
            raise FoldError("folds are given and there is no cross-validation; use k_fold=True", argument="folds")
        if self.permutations and not self.k_fold:
            raise FoldError(
                f"permutations={self.permutations} compare CV scores, and there is no cross-validation; use "
                "k_fold=True",
                argument="permutations",
            )
        if self.probe == "mass_mean" and self.alphas is not None:
            raise PenaltyError("mass_mean has no alpha to choose; leave out alphas=...", argument="alphas")
        # The default cannot be distinguished from an explicit alpha of 1, which older scripts always give.
        if self.probe == "mass_mean" and self.alpha != _DEFAULT_ALPHA:
            raise PenaltyError("mass_mean has no penalty; leave out alpha=...", argument="alpha")
        if self.alphas is not None and self.alpha != _DEFAULT_ALPHA:
            raise PenaltyError(
                f"alpha={self.alpha} and alphas=... are both given; leave out one of them", argument="alpha"
            )
        if self.budget_bytes is not None and not (is_finite_number(self.budget_bytes) and self.budget_bytes >= 0):
            raise BudgetError(
                f"budget_bytes={self.budget_bytes!r} is not a number of bytes; leave it out, or give one",
                argument="budget_bytes",
            )


class SweepKeywords(TypedDict, total=False):
    """The fields of `SweepOptions` as keyword arguments: for editors and type checkers."""

    task_type: str
    probe: str
    positive_class: str | None
    alpha: float
    alphas: Sequence[float] | Float64[np.ndarray, " alpha"] | str | None
    k_fold: bool
    n_folds: int
    seed: int
    folds: Any
    nested_cv: bool
    groups: Any
    prompts: Sequence[str] | None
    permutations: int
    permutation_statistic: str
    fit_intercept: bool
    standardize: bool
    sample_weight: Any
    device: str
    workers: int | None
    ray: str | None
    budget_bytes: int | None
    spill_folder: Path | None
    progress: Progress | None
