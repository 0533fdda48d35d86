"""One block of cells: folds x penalties, the alpha with the highest CV score, the refit, the scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int8, Int64, Shaped
from torch import Tensor

from gpu_probes.errors import Status
from gpu_probes.labels import Task
from gpu_probes.logistic import fit_logistic
from gpu_probes.objective import ProbeFits, SigmoidLoss, SoftmaxLoss
from gpu_probes.preprocessing import Preprocessing
from gpu_probes.ridge import fit_ridge
from gpu_probes.rows import Overview, Rows, TrainingSets, look_over
from gpu_probes.scoring import is_flat, labels_rank, rounding_level, score


@dataclass(frozen=True)
class LabelPlan:
    """One label: its task, and its targets on the device."""

    task: Task
    train_targets: Float64[Tensor, "train_sample output"]
    test_targets: Float64[Tensor, "test_sample output"]

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing to tell apart."""
        return not bool((self.train_targets != self.train_targets[0]).any())


@dataclass(frozen=True)
class SearchPlan:
    """What is the same for every cell; several labels only for regression."""

    labels: tuple[LabelPlan, ...]
    penalties: tuple[float, ...]
    penalties_at_once: int
    dual: bool
    sets: TrainingSets
    preprocessing: Preprocessing

    @property
    def n_folds(self) -> int:
        """Folds that are held out; 0 without cross-validation."""
        return self.sets.n_fits - 1

    def fold_rows(self, fold: int) -> Int64[Tensor, " row"]:
        """Samples that a fold holds out."""
        return torch.nonzero(self.sets.lot_of_sample == fold).flatten()


@dataclass(frozen=True)
class BlockResult:
    """One label of a block of cells, in host memory. Undefined numbers are NaN; `status` says why."""

    status: Shaped[np.ndarray, " cell"]
    coef: Float64[np.ndarray, "cell output feature"]
    intercept: Float64[np.ndarray, "cell output"]
    certificate: Float64[np.ndarray, "cell fit alpha"]
    solver: Int8[np.ndarray, "cell fit alpha"]
    selected: Int64[np.ndarray, " cell"]
    train_score: Float64[np.ndarray, " cell"]
    test_score: Float64[np.ndarray, " cell"]
    cv_score: Float64[np.ndarray, " cell"]
    alpha_cv_score: Float64[np.ndarray, "cell alpha"]
    train_predictions: Float64[np.ndarray, "cell train_sample output"]
    test_predictions: Float64[np.ndarray, "cell test_sample output"]
    cv_predictions: Float64[np.ndarray, "cell train_sample output"]


@dataclass(frozen=True)
class Evaluation:
    """Predictions of some columns of each cell, their scores, and which of them are flat."""

    predictions: Float64[Tensor, "cell column sample output"]
    scores: Float64[Tensor, "cell column"]
    flat: Bool[Tensor, "cell column"]


def search_block(plan: SearchPlan, train: Rows, test: Rows | None) -> list[BlockResult]:
    """Fit and score some cells; one result for each label."""
    seen = look_over(train)
    if plan.preprocessing.centres:
        train.shift(seen.first_row)
    train.blank(~seen.finite | seen.constant)
    fitted = _fit(plan, train)
    if plan.preprocessing.centres:
        fitted = [fits.moved(seen.first_row) for fits in fitted]
    seen_test = None if test is None else look_over(test)
    return [
        _search_label(plan, label, fits, seen, test, seen_test) for label, fits in zip(plan.labels, fitted, strict=True)
    ]


def _fit(plan: SearchPlan, train: Rows) -> list[ProbeFits]:
    first = plan.labels[0]
    if first.task.task_type == "regression":
        targets = torch.cat([label.train_targets for label in plan.labels], 1)
        return fit_ridge(train, targets, plan.sets, plan.penalties, plan.preprocessing, dual=plan.dual)
    loss = SigmoidLoss() if first.task.n_outputs == 1 else SoftmaxLoss()
    at_once = plan.penalties_at_once
    groups = [plan.penalties[start : start + at_once] for start in range(0, len(plan.penalties), at_once)]
    parts = [fit_logistic(train, first.train_targets, plan.sets, few, loss, plan.preprocessing) for few in groups]
    return [ProbeFits.joined(parts)]


def _search_label(
    plan: SearchPlan,
    label: LabelPlan,
    fits: ProbeFits,
    seen: Overview,
    test: Rows | None,
    seen_test: Overview | None,
) -> BlockResult:
    cv = _cross_validate(plan, label, fits, seen)
    # argmax takes the first of equals; an alpha without a score never wins, unless none has one.
    chosen = cv.scores.nan_to_num(-torch.inf).argmax(1)
    unchosen = cv.scores.isnan().all(1) if len(plan.penalties) > 1 else torch.zeros_like(chosen, dtype=torch.bool)
    coef, intercept = (_at(values[:, -1], chosen) for values in (fits.coef, fits.intercept))
    on_train = _evaluate(label.task, label.train_targets, _at(fits.decision[:, -1], chosen)[:, None], coef, seen)
    decision = _decide(test, coef, intercept) if test is not None else coef.new_zeros(len(coef), 0, coef.shape[1])
    on_test = _evaluate(label.task, label.test_targets, decision[:, None], coef, seen_test)
    reasons = [
        *_train_reasons(plan, label, fits, seen, chosen, cv, on_train),
        # At any alpha: it had a part in the choice.
        (Status.NOT_CONVERGED, (~fits.converged & fits.coef.isfinite().flatten(3).all(3)).flatten(1).any(1)),
        *([] if seen_test is None else _test_reasons(label, seen_test, on_test)),
    ]
    no_probe = unchosen | torch.stack([affected for reason, affected in reasons if reason in _NO_PROBE]).any(0)

    def host(values: Tensor) -> Shaped[np.ndarray, "cell ..."]:
        mask = no_probe.reshape(-1, *[1] * (values.dim() - 1))
        return torch.where(mask, torch.nan if values.is_floating_point() else 0, values).cpu().numpy()

    return BlockResult(
        status=_first_reason(reasons),
        coef=host(coef),
        intercept=host(intercept),
        certificate=host(fits.certificate),
        solver=host(fits.solver),
        selected=torch.where(no_probe, -1, chosen).cpu().numpy(),
        train_score=host(on_train.scores[:, 0]),
        test_score=host(on_test.scores[:, 0]),
        cv_score=host(_at(cv.scores, chosen)),
        alpha_cv_score=host(cv.scores),
        train_predictions=host(on_train.predictions[:, 0]),
        test_predictions=host(on_test.predictions[:, 0]),
        cv_predictions=host(_at(cv.predictions, chosen)),
    )


# Statuses that leave nothing to predict with.
_NO_PROBE = (Status.CONSTANT_LABELS, Status.NON_FINITE, Status.CONSTANT_CELL)

Reason = tuple[Status, Bool[Tensor, " cell"]]


def _train_reasons(
    plan: SearchPlan,
    label: LabelPlan,
    fits: ProbeFits,
    seen: Overview,
    chosen: Int64[Tensor, " cell"],
    cv: Evaluation,
    on_train: Evaluation,
) -> list[Reason]:
    """What may be wrong with a cell's training, worst first."""
    nowhere = torch.zeros_like(seen.finite)
    folds = [label.train_targets[plan.fold_rows(fold)] for fold in range(plan.n_folds)]
    unranked = not all(labels_rank(label.task.task_type, targets) for targets in folds)
    flat = on_train.flat[:, 0] | _at(cv.flat, chosen)
    return [
        (Status.CONSTANT_LABELS, nowhere | label.is_constant),
        (Status.NON_FINITE, ~seen.finite),
        (Status.CONSTANT_CELL, seen.constant),
        (Status.SINGULAR, ~_at(fits.coef.transpose(1, 2), chosen).isfinite().flatten(1).all(1)),
        (Status.CONSTANT_FOLD, nowhere | unranked),
        (Status.CONSTANT_PREDICTIONS, flat),
    ]


def _test_reasons(label: LabelPlan, seen: Overview, on_test: Evaluation) -> list[Reason]:
    """What may be wrong with a cell's test rows, worst first."""
    unranked = not labels_rank(label.task.task_type, label.test_targets)
    return [
        (Status.TEST_CONSTANT_LABELS, torch.zeros_like(seen.finite) | unranked),
        (Status.TEST_NON_FINITE, ~seen.finite),
        (Status.TEST_CONSTANT_CELL, seen.constant),
        (Status.TEST_CONSTANT_PREDICTIONS, on_test.flat[:, 0]),
    ]


def _first_reason(reasons: list[Reason]) -> Shaped[np.ndarray, " cell"]:
    affected = torch.stack([cells for _, cells in reasons]).cpu().numpy()
    statuses = np.array([*(reason for reason, _ in reasons), Status.OK], dtype=object)
    first = np.where(affected.any(0), affected.argmax(0), len(reasons))
    return statuses[first]


def _cross_validate(plan: SearchPlan, label: LabelPlan, fits: ProbeFits, seen: Overview) -> Evaluation:
    """Predict each sample with the fit that left it out; a score is the mean of its fold scores."""
    n_cells, _, n_penalties, n_samples, n_outputs = fits.decision.shape
    predictions = fits.decision.new_full((n_cells, n_penalties, n_samples, n_outputs), torch.nan)
    scores = fits.decision.new_full((max(plan.n_folds, 1), n_cells, n_penalties), torch.nan)
    flat = torch.zeros(n_cells, n_penalties, dtype=torch.bool, device=predictions.device)
    for fold in range(plan.n_folds):
        rows = plan.fold_rows(fold)
        held_out = _evaluate(
            label.task, label.train_targets[rows], fits.decision[:, fold][:, :, rows], fits.coef[:, fold], seen
        )
        predictions[:, :, rows] = held_out.predictions
        scores[fold] = held_out.scores
        flat |= held_out.flat
    return Evaluation(predictions, scores.mean(0), flat)


def _evaluate(
    task: Task,
    targets: Float64[Tensor, "sample output"],
    decision: Float64[Tensor, "cell column sample output"],
    coef: Float64[Tensor, "cell *column output feature"],
    seen: Overview | None,
) -> Evaluation:
    """Turn decision values into predictions and scores."""
    predictions = _predict(task, decision)
    if seen is None:
        nothing = decision.new_full(decision.shape[:2], torch.nan)
        return Evaluation(predictions, nothing, nothing.isnan())
    columns = coef.reshape(*decision.shape[:2], *coef.shape[-2:])
    level = rounding_level(seen.largest_norm, columns)
    flat = is_flat(decision, level)
    flattened = score(task.task_type, targets, predictions.flatten(0, 1), flat.flatten())
    return Evaluation(predictions, flattened.unflatten(0, flat.shape), flat)


def _predict(task: Task, decision: Float64[Tensor, "*batch output"]) -> Float64[Tensor, "*batch output"]:
    if task.task_type == "regression":
        return decision
    return (SigmoidLoss() if task.n_outputs == 1 else SoftmaxLoss()).predictions(decision)


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
