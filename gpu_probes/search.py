"""One cell: folds x penalties, the alpha with the highest CV score, the refit, the scores."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.errors import Status
from gpu_probes.folds import FoldPlan
from gpu_probes.labels import Task
from gpu_probes.logistic import fit_logistic
from gpu_probes.objective import ProbeFits, SigmoidLoss, SoftmaxLoss
from gpu_probes.results import CellResult
from gpu_probes.ridge import fit_ridge
from gpu_probes.scoring import is_flat, labels_rank, rounding_level, score


@dataclass(frozen=True)
class SearchPlan:
    """What is the same for every cell."""

    task: Task
    alphas: tuple[float, ...]
    penalties: tuple[float, ...]
    folds: FoldPlan
    train_targets: Float64[Tensor, "train_sample output"]
    test_targets: Float64[Tensor, "test_sample output"]

    @property
    def fold_of_sample(self) -> Int64[Tensor, " train_sample"]:
        """Fold numbers on the device of the targets."""
        return torch.as_tensor(self.folds.fold_of_sample, device=self.train_targets.device)


@dataclass(frozen=True)
class Evaluation:
    """Predictions of some columns, their scores, and which of them are flat."""

    predictions: Float64[Tensor, "column sample output"]
    scores: Float64[Tensor, " column"]
    flat: Bool[Tensor, " column"]


def search_cell(
    plan: SearchPlan, train: Float64[Tensor, "train_sample feature"], test: Float64[Tensor, "test_sample feature"]
) -> CellResult:
    """Fit and score one cell; without a test set, `test` has no rows."""
    status = _train_status(plan, train)
    if status is not Status.OK:
        return _undefined_cell(plan, train.shape[1], status)
    fits = _fit(plan, train)
    cv = _cross_validate(plan, train, fits)
    cv_score = cv.scores.cpu().numpy()
    # argmax takes the first of equals; an alpha without a score never wins, unless none has one.
    chosen = int(np.argmax(np.where(np.isnan(cv_score), -np.inf, cv_score)))
    refit = fits.coef[-1, chosen][None]
    on_train = _evaluate(plan.task, plan.train_targets, train, refit)
    test_status = _test_status(plan, test)
    on_test = _evaluate(plan.task, plan.test_targets, test, refit)
    test_score = float(on_test.scores[0]) if test_status is Status.OK else np.nan
    return CellResult(
        status=_status(plan, fits, chosen, cv, on_train, test_status, on_test),
        coef=refit[0].cpu().numpy(),
        certificate=float(fits.certificate[:, chosen].max()),
        selected_alpha=plan.alphas[chosen],
        train_score=float(on_train.scores[0]),
        test_score=test_score,
        cv_score=float(cv_score[chosen]),
        alpha_cv_score=cv_score,
        train_predictions=on_train.predictions[0].cpu().numpy(),
        test_predictions=on_test.predictions[0].cpu().numpy(),
        cv_predictions=cv.predictions[chosen].cpu().numpy(),
    )


def _fit(plan: SearchPlan, train: Float64[Tensor, "sample feature"]) -> ProbeFits:
    if plan.task.task_type == "regression":
        return fit_ridge(train, plan.train_targets, plan.folds, plan.penalties)
    loss = SigmoidLoss() if plan.task.n_outputs == 1 else SoftmaxLoss()
    return fit_logistic(train, plan.train_targets, plan.folds, plan.penalties, loss)


def _predict(task: Task, decision: Float64[Tensor, "*batch output"]) -> Float64[Tensor, "*batch output"]:
    if task.task_type == "regression":
        return decision
    return (SigmoidLoss() if task.n_outputs == 1 else SoftmaxLoss()).predictions(decision)


def _evaluate(
    task: Task,
    targets: Float64[Tensor, "sample output"],
    features: Float64[Tensor, "sample feature"],
    coef: Float64[Tensor, "column output feature"],
) -> Evaluation:
    decision = torch.einsum("nd,cod->cno", features, coef)
    predictions = _predict(task, decision)
    if not len(targets):
        nothing = coef.new_full((len(coef),), torch.nan)
        return Evaluation(predictions, nothing, nothing.isnan())
    flat = is_flat(decision, rounding_level(features, coef))
    return Evaluation(predictions, score(task.task_type, targets, predictions, flat), flat)


def _cross_validate(plan: SearchPlan, train: Float64[Tensor, "sample feature"], fits: ProbeFits) -> Evaluation:
    """Predict each sample with the fit that left it out; a score is the mean of its fold scores."""
    n_penalties = len(plan.penalties)
    shape = (n_penalties, *plan.train_targets.shape)
    predictions = torch.full(shape, torch.nan, dtype=train.dtype, device=train.device)
    scores = train.new_full((max(plan.folds.n_folds, 1), n_penalties), torch.nan)
    flat = torch.zeros(n_penalties, dtype=torch.bool, device=train.device)
    for fold in range(plan.folds.n_folds):
        rows = torch.nonzero(plan.fold_of_sample == fold).flatten()
        held_out = _evaluate(plan.task, plan.train_targets[rows], train[rows], fits.coef[fold])
        predictions[:, rows] = held_out.predictions
        scores[fold] = held_out.scores
        flat |= held_out.flat
    return Evaluation(predictions, scores.mean(0), flat)


def _features_status(features: Float64[Tensor, "sample feature"], non_finite: Status, constant: Status) -> Status:
    if not bool(features.isfinite().all()):
        return non_finite
    return constant if bool((features == features[0]).all()) else Status.OK


def _train_status(plan: SearchPlan, train: Float64[Tensor, "sample feature"]) -> Status:
    if not bool((plan.train_targets != plan.train_targets[0]).any()):
        return Status.CONSTANT_LABELS
    return _features_status(train, Status.NON_FINITE, Status.CONSTANT_CELL)


def _test_status(plan: SearchPlan, test: Float64[Tensor, "sample feature"]) -> Status:
    if not len(test):
        return Status.OK
    if not labels_rank(plan.task.task_type, plan.test_targets):
        return Status.TEST_CONSTANT_LABELS
    return _features_status(test, Status.TEST_NON_FINITE, Status.TEST_CONSTANT_CELL)


def _status(
    plan: SearchPlan,
    fits: ProbeFits,
    chosen: int,
    cv: Evaluation,
    on_train: Evaluation,
    test_status: Status,
    on_test: Evaluation,
) -> Status:
    """The first reason for an undefined score, train before CV before test; else whether the solver converged."""
    if not bool(fits.coef[:, chosen].isfinite().all()):
        return Status.SINGULAR
    folds = [plan.train_targets[plan.fold_of_sample == fold] for fold in range(plan.folds.n_folds)]
    if not all(labels_rank(plan.task.task_type, fold) for fold in folds):
        return Status.CONSTANT_FOLD
    if bool(on_train.flat[0]) or bool(cv.flat[chosen]):
        return Status.CONSTANT_PREDICTIONS
    if test_status is not Status.OK:
        return test_status
    if len(plan.test_targets) and bool(on_test.flat[0]):
        return Status.TEST_CONSTANT_PREDICTIONS
    return Status.OK if bool(fits.converged[:, chosen].all()) else Status.NOT_CONVERGED


def _undefined_cell(plan: SearchPlan, n_features: int, status: Status) -> CellResult:
    """A cell without a probe."""

    def nan(*shape: int) -> Float64[np.ndarray, "..."]:
        return np.full(shape, np.nan)

    n_train, n_outputs = plan.train_targets.shape
    return CellResult(
        status=status,
        coef=nan(n_outputs, n_features),
        certificate=np.nan,
        selected_alpha=np.nan,
        train_score=np.nan,
        test_score=np.nan,
        cv_score=np.nan,
        alpha_cv_score=nan(len(plan.alphas)),
        train_predictions=nan(n_train, n_outputs),
        test_predictions=nan(len(plan.test_targets), n_outputs),
        cv_predictions=nan(n_train, n_outputs),
    )
