"""One block of cells: folds x penalties, the alpha with the highest CV score, the refit, the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from gpu_probes.errors import Status
from gpu_probes.features.rows import Overview, Rows, look_over
from gpu_probes.results.cell_arrays import CellArrays
from gpu_probes.samples.labels import Task
from gpu_probes.samples.shuffles import Shuffles
from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.scores.ranks import (
    correlate_ranks,
    labels_rank,
    ranked,
    roc_auc,
    score_decision,
    unit_ranks_of_places,
)
from gpu_probes.search.inputs import Label
from gpu_probes.solvers.closed_form import decide_held_out_means, fit_covariance, fit_lda, fit_mass_mean
from gpu_probes.solvers.logistic import decide_held_out_logistic, fit_logistic
from gpu_probes.solvers.losses import SigmoidLoss, SoftmaxLoss
from gpu_probes.solvers.objective import HeldOut, ProbeFits
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.solvers.ridge import decide_held_out_ridge, fit_ridge
from gpu_probes.solvers.systems import Dual, Framed, Primal
from gpu_probes.terms import PermutationStatistic, ProbeKind


@dataclass(frozen=True)
class LabelPlan:
    """One label, for all blocks: on the device before any work on them, whose threads share it.

    Attributes
    ----------
    task : Task
    train_targets : Tensor [train_sample, output]
    test_targets : Tensor [test_sample, output]
    shuffles : Shuffles, optional
        The orders in which to shuffle them.
    statistic : str
        Whose scores those of shuffles are, and are compared with.
    shuffled_targets : Tensor [train_sample, output]
        Targets as they are fitted once they are shuffled. For least squares, class indicators less the share that a
        class has of equally many: without an intercept, features should tell what differs from it, as a softmax, too,
        begins with equal shares. Rates are those of two.
    places : Tensor [train_sample]
        Place of each sample's first target among all `n_places` distinct ones.
    is_constant, ranks_in_folds, ranks_in_test : bool
        Whether all labels are equal, and whether a score is defined for the labels of every fold and of the test set.
    """

    task: Task
    train_targets: Float64[Tensor, "train_sample output"]
    test_targets: Float64[Tensor, "test_sample output"]
    shuffles: Shuffles | None
    statistic: PermutationStatistic
    shuffled_targets: Float64[Tensor, "train_sample output"]
    places: Int64[Tensor, " train_sample"]
    n_places: int
    is_constant: bool
    ranks_in_folds: bool
    ranks_in_test: bool

    @classmethod
    def of(cls, label: Label, device: torch.device) -> LabelPlan:
        """Find out on the host what can be found there, and put the rest on the device."""
        task, folds = label.task, label.folds
        # torch must not wrap pandas' read-only memory.
        train = torch.from_numpy(task.targets(label.train, "train_labels").copy())
        test = torch.zeros(0, task.n_outputs, dtype=torch.float64)
        if label.test is not None:
            test = torch.from_numpy(task.targets(label.test, "test_labels").copy())
        values, places = train[:, 0].unique(return_inverse=True)
        least = 0.0 if label.statistic == "probe" else 1 / (2 if task.classes is None else len(task.classes))
        in_folds = [torch.from_numpy(folds.fold_of_sample == fold) for fold in range(folds.n_folds)]
        on_device = train.to(device)
        return cls(
            task=task,
            train_targets=on_device,
            test_targets=test.to(device),
            shuffles=None if isinstance(label.shuffles, str) else label.shuffles,
            statistic=label.statistic,
            shuffled_targets=on_device - least,
            places=places.to(device),
            n_places=len(values),
            is_constant=not bool((train != train[0]).any()),
            ranks_in_folds=all(labels_rank(task.task_type, train[held_out]) for held_out in in_folds),
            ranks_in_test=labels_rank(task.task_type, test),
        )


# Scores decision values ``[cell, shuffle, row, output]`` of a fold against shuffled targets: ``[cell, shuffle]``.
ScoreFold = Callable[[Float64[Tensor, "cell shuffle row output"]], Float64[Tensor, "cell shuffle"]]


@dataclass(frozen=True)
class Shuffled:
    """Some orders of a label: its targets, as they are fitted, and what scores decision values of each fold."""

    targets: Float64[Tensor, "train_sample shuffle output"]
    score_fold: tuple[ScoreFold, ...]

    @classmethod
    def of(
        cls,
        label: LabelPlan,
        drawn: Int64[np.ndarray, "shuffle train_sample"],
        rows_of_fold: Sequence[Int64[Tensor, " _"]],
    ) -> Shuffled:
        """Put them on the device."""
        orders = torch.from_numpy(drawn).to(label.train_targets.device)
        scorers = tuple(_scorer(label, orders[:, rows]) for rows in rows_of_fold)
        return cls(label.shuffled_targets[orders.mT], scorers)

    @classmethod
    def batches(cls, label: LabelPlan, at_once: int, rows_of_fold: Sequence[Int64[Tensor, " _"]]) -> Iterator[Shuffled]:
        """All shuffles of a label; where the probe's own scores are not compared, the labels as they are go first."""
        assert label.shuffles is not None
        # One factorisation serves them, too.
        first = [np.arange(len(label.train_targets))[None]] if label.statistic == "least_squares" else []
        for drawn in label.shuffles.batches(at_once):
            yield cls.of(label, np.concatenate([*first, drawn]), rows_of_fold)
            first = []


@dataclass(frozen=True)
class SearchPlan:
    """What all cells share; several labels only for ridge. `penalties` are those of the `alphas`.

    `shuffled` are all shuffles of the only label, if so many are worked on at once: made once for all blocks.
    """

    probe: ProbeKind
    labels: tuple[LabelPlan, ...]
    alphas: tuple[float, ...]
    penalties: tuple[float, ...]
    penalties_at_once: int
    shuffles_at_once: int
    dual: bool
    sets: TrainingSets
    preprocessing: Preprocessing
    shuffled: Shuffled | None

    @property
    def n_folds(self) -> int:
        """Folds that are held out; 0 without cross-validation."""
        return self.sets.n_folds

    def fold_rows(self, fold: int) -> Int64[Tensor, " row"]:
        """Samples that a fold holds out."""
        return self.sets.rows_of_fold[fold]


@dataclass(frozen=True)
class BlockResult:
    """One label of a block of cells, in host memory; `nested_decision` is of the alphas that `inner_alpha` names."""

    cells: CellArrays
    nested_decision: Float64[np.ndarray, "cell train_sample output"]


@dataclass(frozen=True)
class Evaluation:
    """Decision values of some columns of each cell, their scores, and which of them are flat."""

    decision: Float64[Tensor, "cell column sample output"]
    scores: Float64[Tensor, "cell column"]
    flat: Bool[Tensor, "cell column"]


@dataclass(frozen=True)
class CrossValidation:
    """Held-out decision values of every penalty, and their scores fold by fold."""

    decision: Float64[Tensor, "cell penalty sample output"]
    fold_scores: Float64[Tensor, "fold cell penalty"]
    scores: Float64[Tensor, "cell penalty"]
    flat: Bool[Tensor, "cell penalty"]


@dataclass(frozen=True)
class Nested:
    """Cross-validation of the choice of alpha: for each fold, the alpha that the other folds choose."""

    inner_score: Float64[Tensor, "cell fold"]
    selected: Int64[Tensor, "cell fold"]
    outer_score: Float64[Tensor, "cell fold"]
    decision: Float64[Tensor, "cell sample output"]


def search_block(plan: SearchPlan, train: Rows, test: Rows | None) -> list[BlockResult]:
    """Fit and score some cells; one result for each label."""
    seen = look_over(train, plan.sets.drawn if plan.preprocessing.centres else None)
    if plan.preprocessing.centres:
        train.shift(seen.median)
    train.blank(~seen.finite | seen.constant)
    fitted, decide = _FITS[plan.probe](plan, train)
    shuffled = [_score_shuffles(plan, label, decide, train.n_cells) for label in plan.labels]
    seen_test = None if test is None else look_over(test)
    if test is not None and plan.preprocessing.centres:
        test.shift(seen.median)
    return [
        _search_label(plan, label, fits, null, seen, test, seen_test)
        for label, fits, null in zip(plan.labels, fitted, shuffled, strict=True)
    ]


# Held-out decision values of shuffled targets, which are ``[sample, shuffle, output]``.
Decide = Callable[[Float64[Tensor, "sample shuffle output"]], HeldOut]


def _fit_ridge(plan: SearchPlan, rows: Rows) -> tuple[list[ProbeFits], Decide]:
    """Fits of each label; shuffles share the sums over the rows."""
    space = _space_of(plan, rows, torch.cat([label.train_targets for label in plan.labels], 1))
    return fit_ridge(space, plan.penalties), partial(decide_held_out_ridge, space, plan.penalties)


def _space_of(plan: SearchPlan, rows: Rows, targets: Float64[Tensor, "sample target"]) -> Primal | Dual:
    return (Dual if plan.dual else Primal)(rows, targets, plan.sets, plan.preprocessing)


def _fit_logistic(plan: SearchPlan, rows: Rows) -> tuple[list[ProbeFits], Decide]:
    """Fits of the only label, a few penalties at a time; its shuffles are fitted likewise, or by least squares."""
    (label,) = plan.labels
    loss = SigmoidLoss() if label.task.n_outputs == 1 else SoftmaxLoss()
    at_once = plan.penalties_at_once
    groups = [plan.penalties[start : start + at_once] for start in range(0, len(plan.penalties), at_once)]
    parts = [fit_logistic(rows, label.train_targets, plan.sets, few, loss, plan.preprocessing) for few in groups]

    def decide(shuffled: Float64[Tensor, "sample shuffle output"]) -> HeldOut:
        for few in groups:
            yield from decide_held_out_logistic(rows, shuffled, plan.sets, few, loss, plan.preprocessing)

    if label.shuffles is not None and label.statistic == "least_squares":
        space = _space_of(plan, rows, label.train_targets)
        decide = partial(decide_held_out_ridge, space, plan.penalties)
    return [ProbeFits.joined(parts)], decide


def _fit_lda(plan: SearchPlan, rows: Rows) -> tuple[list[ProbeFits], Decide]:
    """Fits of the only label, by way of ridges on its classes."""
    (label,) = plan.labels
    space = _space_of(plan, rows, _one_hot(label.train_targets))
    # For two classes the ridge's decision is the LDA's, scaled.
    return [fit_lda(space, plan.penalties)], partial(decide_held_out_ridge, space, plan.penalties)


def _fit_mass_mean(plan: SearchPlan, rows: Rows) -> tuple[list[ProbeFits], Decide]:
    """Fits of each label along the difference of means, or the covariance with a number."""
    space = Framed.of(rows, plan.sets, plan.preprocessing)
    fitted = [
        fit_covariance(space, label.train_targets, len(plan.penalties))
        if label.task.classes is None
        else fit_mass_mean(space, _one_hot(label.train_targets), len(plan.penalties))
        for label in plan.labels
    ]
    return fitted, partial(decide_held_out_means, space, plan.penalties)


def _one_hot(targets: Float64[Tensor, "sample output"]) -> Float64[Tensor, "sample class"]:
    return torch.cat([1 - targets, targets], 1) if targets.shape[1] == 1 else targets


_FITS: dict[ProbeKind, Callable[[SearchPlan, Rows], tuple[list[ProbeFits], Decide]]] = {
    "ridge": _fit_ridge,
    "logistic": _fit_logistic,
    # The log loss takes shares as it takes classes.
    "binomial": _fit_logistic,
    "lda": _fit_lda,
    "mass_mean": _fit_mass_mean,
}


@dataclass(frozen=True)
class NullScores:
    """CV scores of shuffled labels; `unshuffled`: of the labels themselves by the same fits, None for the probe's own.

    They are compared with each other, or with the CV scores of the probe.
    """

    unshuffled: Float64[Tensor, "cell penalty"] | None
    scores: Float64[Tensor, "cell penalty shuffle"]


def _score_shuffles(plan: SearchPlan, label: LabelPlan, decide: Decide, n_cells: int) -> NullScores:
    """CV scores of each shuffle of the labels, a few shuffles at a time."""
    if label.shuffles is None:
        return NullScores(None, label.train_targets.new_empty(n_cells, len(plan.penalties), 0))
    batches = Shuffled.batches(label, plan.shuffles_at_once, plan.sets.rows_of_fold)
    if plan.shuffled is not None:
        batches = iter([plan.shuffled])
    parts = []
    for batch in batches:
        parts.append(_score_batch(plan, batch, decide, n_cells))
        del batch  # It is given back before the next is drawn.
    scores = torch.cat(parts, 2)
    if label.statistic == "least_squares":
        return NullScores(scores[:, :, 0], scores[:, :, 1:])
    return NullScores(None, scores)


def _score_batch(
    plan: SearchPlan, shuffled: Shuffled, decide: Decide, n_cells: int
) -> Float64[Tensor, "cell penalty shuffle"]:
    """CV scores of some shuffles."""
    targets = shuffled.targets
    scores = targets.new_zeros(n_cells, len(plan.penalties), targets.shape[1])
    for fold, penalty, decision in decide(targets):
        scores[:, plan.penalties.index(penalty)] += shuffled.score_fold[fold](decision) / plan.n_folds
    return scores


def _scorer(label: LabelPlan, orders: Int64[Tensor, "shuffle sample"]) -> ScoreFold:
    """Score decision values against shuffled targets, whose ranks are the same for all penalties."""
    if label.task.task_type == "regression":
        ranks = unit_ranks_of_places(label.places[orders], label.n_places)[None]
        return lambda decision: correlate_ranks(ranks, decision[..., 0])
    by_shuffle = label.train_targets[orders][None]
    if label.statistic == "probe":
        return lambda decision: roc_auc(by_shuffle, ranked(decision))

    def areas(decision: Float64[Tensor, "cell shuffle sample output"]) -> Float64[Tensor, "cell shuffle"]:
        # Each output estimates the probability of its class by itself. A singular system, which all shuffles share,
        # estimates nothing.
        solved = decision[:, :1].isfinite().flatten(2).all(2)
        return torch.where(solved, roc_auc(by_shuffle, decision), torch.nan)

    return areas


def _search_label(
    plan: SearchPlan,
    label: LabelPlan,
    fits: ProbeFits,
    shuffled: NullScores,
    seen: Overview,
    test: Rows | None,
    seen_test: Overview | None,
) -> BlockResult:
    cv = _cross_validate(plan, label, fits, seen)
    nested = _nest(plan, label, fits, seen, cv)
    # argmax takes the first of equals; an alpha without a score never wins, unless none has one.
    chosen = cv.scores.nan_to_num(-torch.inf).argmax(1)
    unchosen = cv.scores.isnan().all(1) if len(plan.penalties) > 1 else torch.zeros_like(chosen, dtype=torch.bool)
    coef, intercept = (_at(values[:, -1], chosen) for values in (fits.coef, fits.intercept))
    on_train = _evaluate(label.task, label.train_targets, _at(fits.decision[:, -1], chosen)[:, None], coef, seen)
    decision = _decide(test, coef, intercept) if test is not None else coef.new_zeros(len(coef), 0, coef.shape[1])
    on_test = _evaluate(label.task, label.test_targets, decision[:, None], coef, seen_test)
    observed, null_score = _compare(shuffled, cv.scores)
    own = plan.sets.of_own_fits
    alphas = coef.new_tensor(plan.alphas)
    reasons = [
        *_train_reasons(plan, label, fits, seen, chosen, cv, on_train),
        # At any alpha: it played a part in the choice.
        (Status.NOT_CONVERGED, own(~fits.converged & fits.coef.isfinite().flatten(3).all(3)).flatten(1).any(1)),
        *([] if seen_test is None else _test_reasons(label, seen_test, on_test)),
    ]
    no_probe = unchosen | torch.stack([affected for reason, affected in reasons if reason in _NO_PROBE]).any(0)

    def host(values: Tensor) -> Shaped[np.ndarray, "cell ..."]:
        mask = no_probe.reshape(-1, *[1] * (values.dim() - 1))
        return torch.where(mask, torch.nan if values.is_floating_point() else 0, values).cpu().numpy()

    cells = CellArrays(
        status=_first_reason(reasons),
        coef=host(coef),
        intercept=host(intercept - (coef * seen.median[:, None]).sum(-1) if plan.preprocessing.centres else intercept),
        certificate=host(own(fits.certificate)),
        solver=host(own(fits.solver)),
        selected_alpha=host(alphas[chosen]),
        train_score=host(on_train.scores[:, 0]),
        test_score=host(on_test.scores[:, 0]),
        cv_score=host(_at(cv.scores, chosen)),
        alpha_cv_score=host(cv.scores),
        train_decision=host(on_train.decision[:, 0]),
        test_decision=None if test is None else host(on_test.decision[:, 0]),
        cv_decision=host(_at(cv.decision, chosen)) if plan.n_folds else None,
        inner_score=host(nested.inner_score),
        inner_alpha=alphas[nested.selected].cpu().numpy(),
        outer_score=host(nested.outer_score),
        observed_score=host(observed),
        null_score=host(null_score),
    )
    return BlockResult(cells, host(nested.decision))


def _compare(
    shuffled: NullScores, cv_scores: Float64[Tensor, "cell penalty"]
) -> tuple[Float64[Tensor, " cell"], Float64[Tensor, "cell shuffle"]]:
    """Scores at the best penalty of the labels and of each shuffle, of penalties that the labels could choose from."""
    unshuffled = cv_scores if shuffled.unshuffled is None else shuffled.unshuffled
    scores = torch.cat([unshuffled[:, :, None], shuffled.scores], 2)
    usable = torch.where((cv_scores.isnan() | unshuffled.isnan())[:, :, None], torch.nan, scores)
    best = usable.nan_to_num(-torch.inf).amax(1)
    best = torch.where(best.isinf(), torch.nan, best)
    return best[:, 0], best[:, 1:]


# Statuses that leave nothing to predict with.
_NO_PROBE = (Status.CONSTANT_LABELS, Status.NON_FINITE, Status.CONSTANT_CELL, Status.OUT_OF_RANGE)

# The squares of what is between, summed over any number of rows, have float64's full precision.
_SMALLEST, _LARGEST = 1e-100, 1e100
_DENORMAL = 1e-290

Reason = tuple[Status, Bool[Tensor, " cell"]]


def _train_reasons(
    plan: SearchPlan,
    label: LabelPlan,
    fits: ProbeFits,
    seen: Overview,
    chosen: Int64[Tensor, " cell"],
    cv: CrossValidation,
    on_train: Evaluation,
) -> list[Reason]:
    """Possible problems of a cell's training, worst first."""
    nowhere = torch.zeros_like(seen.finite)
    flat = on_train.flat[:, 0] | _at(cv.flat, chosen)
    singular = ~_at(plan.sets.of_own_fits(fits.coef).transpose(1, 2), chosen).isfinite().flatten(1).all(1)
    return [
        (Status.CONSTANT_LABELS, nowhere | label.is_constant),
        (Status.NON_FINITE, ~seen.finite),
        (Status.CONSTANT_CELL, seen.constant),
        # If a fold holds out a complete class, lda and mass_mean have nothing to fit: the fold is to blame.
        (Status.CONSTANT_FOLD, nowhere | (not label.ranks_in_folds)),
        # If it works nevertheless, nothing is reported.
        (Status.OUT_OF_RANGE, (singular | flat) & _out_of_range(plan.sets, label, seen) | _vanishing(plan.sets)),
        (Status.SINGULAR, singular),
        (Status.CONSTANT_PREDICTIONS, flat),
    ]


def _out_of_range(sets: TrainingSets, label: LabelPlan, seen: Overview) -> Bool[Tensor, " cell"]:
    """Whether products of features, labels or weights may overflow or vanish."""
    longest, weights = seen.largest_norm, not _SMALLEST <= sets.heaviest <= _LARGEST
    return (longest < _SMALLEST) | (longest > _LARGEST) | (label.train_targets.abs().amax() > _LARGEST) | weights


def _vanishing(sets: TrainingSets) -> bool:
    """Whether all weights are so small that products with them lose digits without a sign of it."""
    return sets.heaviest < _DENORMAL


def _test_reasons(label: LabelPlan, seen: Overview, on_test: Evaluation) -> list[Reason]:
    """Possible problems of a cell's test rows, worst first."""
    return [
        (Status.TEST_CONSTANT_LABELS, torch.zeros_like(seen.finite) | (not label.ranks_in_test)),
        (Status.TEST_NON_FINITE, ~seen.finite),
        (Status.TEST_CONSTANT_CELL, seen.constant),
        (Status.TEST_CONSTANT_PREDICTIONS, on_test.flat[:, 0]),
    ]


def _first_reason(reasons: list[Reason]) -> Shaped[np.ndarray, " cell"]:
    affected = torch.stack([cells for _, cells in reasons]).cpu().numpy()
    statuses = np.array([*(reason for reason, _ in reasons), Status.OK], dtype=object)
    first = np.where(affected.any(0), affected.argmax(0), len(reasons))
    return statuses[first]


def _cross_validate(plan: SearchPlan, label: LabelPlan, fits: ProbeFits, seen: Overview) -> CrossValidation:
    """Predict each sample with the fit that left it out; a score is the mean of its fold scores."""
    n_cells, _, n_penalties, n_samples, n_outputs = fits.decision.shape
    decision = fits.decision.new_full((n_cells, n_penalties, n_samples, n_outputs), torch.nan)
    scores = fits.decision.new_full((max(plan.n_folds, 1), n_cells, n_penalties), torch.nan)
    flat = torch.zeros(n_cells, n_penalties, dtype=torch.bool, device=decision.device)
    for fold in range(plan.n_folds):
        held_out = _hold_out(plan, label, fits, seen, fold, fit=fold)
        decision[:, :, plan.fold_rows(fold)] = held_out.decision
        scores[fold] = held_out.scores
        flat |= held_out.flat
    return CrossValidation(decision, scores, scores.mean(0), flat)


def _nest(plan: SearchPlan, label: LabelPlan, fits: ProbeFits, seen: Overview, cv: CrossValidation) -> Nested:
    """For each fold, choose the alpha by cross-validation over the other folds alone.

    The fit that leaves out folds j and k is scored on j when k is to stay unseen, and on k when j is.
    """
    n_cells, _, n_penalties, n_samples, n_outputs = fits.decision.shape
    nowhere = fits.decision.new_full((n_cells, n_samples, n_outputs), torch.nan)
    if not plan.sets.pairs:
        nothing = fits.decision.new_empty(n_cells, 0)
        return Nested(nothing, nothing.long(), nothing, nowhere)
    scores = fits.decision.new_zeros(plan.n_folds, n_cells, n_penalties)
    for index, pair in enumerate(plan.sets.pairs):
        for scored, unseen in (pair, pair[::-1]):
            held_out = _hold_out(plan, label, fits, seen, scored, fit=plan.n_folds + index)
            scores[unseen] += held_out.scores / (plan.n_folds - 1)
    best = scores.nan_to_num(-torch.inf).max(2)
    selected, unchosen = best.indices.mT, scores.isnan().all(2).mT
    outer = cv.fold_scores.permute(1, 2, 0).gather(1, selected[:, None]).squeeze(1)
    for fold in range(plan.n_folds):
        rows = plan.fold_rows(fold)
        nowhere[:, rows] = _at(cv.decision[:, :, rows], selected[:, fold])
    return Nested(
        inner_score=torch.where(unchosen, torch.nan, best.values.mT),
        selected=selected,
        outer_score=torch.where(unchosen, torch.nan, outer),
        decision=nowhere,
    )


def _hold_out(
    plan: SearchPlan, label: LabelPlan, fits: ProbeFits, seen: Overview, fold: int, *, fit: int
) -> Evaluation:
    """Score a fit on a fold that it left out."""
    rows = plan.fold_rows(fold)
    decision = fits.decision[:, fit][:, :, rows]
    return _evaluate(label.task, label.train_targets[rows], decision, fits.coef[:, fit], seen)


def _evaluate(
    task: Task,
    targets: Float64[Tensor, "sample output"],
    decision: Float64[Tensor, "cell column sample output"],
    coef: Float64[Tensor, "cell *column output feature"],
    seen: Overview | None,
) -> Evaluation:
    """Score decision values."""
    if seen is None:
        nothing = decision.new_full(decision.shape[:2], torch.nan)
        return Evaluation(decision, nothing, nothing.isnan())
    columns = coef.reshape(*decision.shape[:2], *coef.shape[-2:])
    scores, flat = score_decision(task.task_type, targets[None, None], decision, columns, seen.largest_norm)
    return Evaluation(decision, scores, flat)


def _decide(
    rows: Rows, coef: Float64[Tensor, "cell output feature"], intercept: Float64[Tensor, "cell output"]
) -> Float64[Tensor, "cell sample output"]:
    decision = coef.new_empty(len(coef), rows.n_samples, coef.shape[1])
    for chunk in rows.chunks():
        decision[:, chunk.samples] = chunk.features @ coef.mT + intercept[:, None]
    return decision


def _at(values: Tensor, chosen: Int64[Tensor, " cell"]) -> Tensor:
    """The chosen entry of each cell along the second axis."""
    return values[torch.arange(len(values), device=values.device), chosen]
