from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from gpu_probes import ArrayCellSource, sweep
from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.solvers import logistic, newton
from gpu_probes.solvers.logistic_problem import Problem
from gpu_probes.solvers.losses import SigmoidLoss, SoftmaxLoss
from gpu_probes.solvers.preprocessing import Preprocessing
from tests.helpers.blocks import block_of, only_cell

CS = [1e-3, 1.0, 1e3]


def classes_of(n_samples: int, n_features: int, n_classes: int, outliers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Low-rank plus noise, off centre, and with outliers three features at 30x the others, as activations have."""
    rng = np.random.default_rng(n_samples + n_classes)
    features = rng.standard_normal((n_samples, 8)) @ rng.standard_normal((8, n_features)) / 2
    features += 0.3 * rng.standard_normal(features.shape) + rng.standard_normal(n_features)
    if outliers:
        features[:, :3] *= 30
    decision = features[:, 3:] @ rng.standard_normal((n_features - 3, n_classes))
    decision = (decision - decision.mean(0)) / decision.std()
    return features, (2 * decision + rng.gumbel(size=decision.shape)).argmax(1).astype(np.float64)


def fit(
    features: np.ndarray, labels: np.ndarray, alphas: list[float], folds: FoldPlan, device: str = "cpu"
) -> SimpleNamespace:
    one_hot = torch.tensor((labels[:, None] == np.unique(labels)).astype(np.float64), device=device)
    binary = one_hot.shape[1] == 2
    targets, loss = (one_hot[:, 1:], SigmoidLoss()) if binary else (one_hot, SoftmaxLoss())
    rows, sets = block_of(features, folds, device)
    return only_cell(logistic.fit_logistic(rows, targets, sets, alphas, loss, Preprocessing()))


def converged_reference(features: np.ndarray, labels: np.ndarray, c: float) -> np.ndarray:
    model = LogisticRegression(C=c, fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    return model.fit(features, labels).coef_


@pytest.mark.slow
@pytest.mark.parametrize("outliers", [False, True], ids=["plain", "activation-like"])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("shape", [(300, 40), (50, 70)], ids=str)
def test_every_fold_and_c_equals_converged_scikit_learn(
    shape: tuple[int, int], n_classes: int, outliers: bool, device: str
):
    features, labels = classes_of(*shape, n_classes, outliers)
    folds = plan_folds(labels, n_folds=3, seed=42)
    fits = fit(features, labels, [1 / c for c in CS], folds, device)
    assert fits.converged.all()
    assert fits.certificate.max() <= logistic.CERTIFICATE_LIMIT
    for k in (0, folds.n_folds):
        train = folds.fold_of_sample != k
        for i, c in enumerate(CS):
            reference = converged_reference(features[train], labels[train], c)
            error = np.linalg.norm(fits.coef[k, i].cpu().numpy() - reference) / np.linalg.norm(reference)
            assert error < 1e-5, (k, c)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
def test_columns_together_equal_one_by_one(n_classes: int):
    features, labels = classes_of(120, 20, n_classes, outliers=True)
    folds = plan_folds(labels, n_folds=3, seed=0)
    alphas = [1e-2, 1.0, 1e2]
    together = fit(features, labels, alphas, folds)
    for a, alpha in enumerate(alphas):
        alone = fit(features, labels, [alpha], folds)
        torch.testing.assert_close(together.coef[:, a], alone.coef[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_separable_data_at_large_c_converges():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 30))
    labels = (features[:, 0] > 0).astype(np.float64)
    fits = fit(features, labels, [1e-6], FoldPlan.without_folds(200))
    assert fits.converged.all()
    reference = converged_reference(features, labels, 1e6)
    assert np.linalg.norm(fits.coef[0, 0].numpy() - reference) < 1e-5 * np.linalg.norm(reference)


def test_running_out_of_steps_is_reported_for_the_columns_it_concerns(monkeypatch: pytest.MonkeyPatch):
    features, labels = classes_of(120, 20, 2, outliers=True)
    monkeypatch.setattr(newton, "MAX_NEWTON_STEPS", 3)
    fits = fit(features, labels, [1e-6, 1e9], FoldPlan.without_folds(120))
    assert fits.converged.tolist() == [[False, True]]
    assert fits.coef.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e9, 1e12])
def test_a_fit_whose_gap_rounding_hides_has_not_converged(scale: float):
    """One row so far out that no float64 gradient tells the minimum: seen, 1e-3 above it and called OK."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(200, 20))
    labels = (features @ rng.normal(size=20) + rng.normal(size=200) > 0).astype(np.float64)
    features[0] *= scale
    fits = fit(features, labels, [1e-3, 1.0, 1e3], FoldPlan.without_folds(200))
    assert fits.certificate[fits.converged].le(1e-4).all()
    assert fits.converged.all() == (scale < 1e9)


def test_swapping_two_classes_flips_the_probe():
    features, labels = classes_of(100, 10, 2, outliers=False)
    folds = FoldPlan.without_folds(100)
    torch.testing.assert_close(
        fit(features, labels, [0.1], folds).coef, -fit(features, 1 - labels, [0.1], folds).coef, rtol=1e-7, atol=1e-10
    )


def test_softmax_coefficients_sum_to_zero_over_classes():
    features, labels = classes_of(100, 10, 4, outliers=False)
    coef = fit(features, labels, [0.1], FoldPlan.without_folds(100)).coef[0, 0]
    assert coef.sum(0).abs().max() < 1e-9 * coef.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("shape", [(100, 20), (30, 50)], ids=str)
def test_half_the_features_twice_with_half_the_alpha_is_the_same_fit(shape: tuple[int, int], n_classes: int):
    features, labels = classes_of(*shape, n_classes, outliers=True)
    folds = FoldPlan.without_folds(len(labels))
    once = fit(features, labels, [2.0], folds)
    twice = fit(np.hstack([features, features]) / 2, labels, [1.0], folds)
    torch.testing.assert_close(twice.decision, once.decision, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [20, 90], ids=["N>D", "N<D"])
@given(row=st.integers(0, 59))
@settings(max_examples=5)
def test_what_is_predicted_for_a_row_that_is_held_out_does_not_depend_on_its_class(n_features: int, row: int):
    features, labels = classes_of(60, n_features, 3, outliers=False)
    folds = plan_folds(labels, n_folds=3, seed=0)
    changed = labels.copy()
    changed[row] = (labels[row] + 1) % 3
    before, after = (fit(features, given, [1.0], folds).decision for given in (labels, changed))
    fold = int(folds.fold_of_sample[row])
    torch.testing.assert_close(after[fold, 0, row], before[fold, 0, row], rtol=1e-6, atol=1e-7)
    others = [other for other in range(3) if other != fold]
    assert not torch.allclose(after[others, 0, row], before[others, 0, row], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("alpha", [1e-5, 1e-3])
def test_features_that_leave_the_preconditioner_without_a_factor(n_classes: int, alpha: float):
    rng = np.random.default_rng(0)
    features, labels = classes_of(400, 20, n_classes, outliers=False)
    features[:, :2] = 3e4 * rng.standard_normal((400, 1))
    features = features.astype(np.float32).astype(np.float64)
    fits = fit(features, labels, [alpha], FoldPlan.without_folds(400))
    assert fits.converged.all()
    assert fits.certificate.max() <= logistic.CERTIFICATE_LIMIT
    # One copy of the duplicate feature, made larger, is the same problem without the trouble.
    merged = np.column_stack([features[:, 0] * np.sqrt(2), features[:, 2:]])
    alone = fit(merged, labels, [alpha], FoldPlan.without_folds(400))
    torch.testing.assert_close(fits.decision, alone.decision, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_a_cell_without_a_fit_costs_the_others_of_its_block_nothing(
    fit_intercept: bool, monkeypatch: pytest.MonkeyPatch
):
    steps: list[int] = []
    direction = newton.newton_direction

    def counted(*arguments, **options):
        steps.append(1)
        return direction(*arguments, **options)

    monkeypatch.setattr(newton, "newton_direction", counted)
    labels = np.arange(80) % 2.0
    array = np.random.default_rng(1).standard_normal((80, 3, 1, 10)) + 0.5 * labels[:, None, None, None]

    def n_steps(cells: np.ndarray) -> int:
        steps.clear()
        sweep(
            ArrayCellSource(cells), labels, task_type="classification", alphas=[0.1, 1.0, 10.0], k_fold=True,
            n_folds=4, fit_intercept=fit_intercept, nested_cv=False, device="cpu",
        )  # fmt: skip
        return len(steps)

    whole = n_steps(array)
    for value in (1.0, np.nan):
        without = array.copy()
        without[:, 0] = value
        assert n_steps(without) <= whole


def test_rounding_of_the_objective_does_not_keep_a_fit_going(monkeypatch: pytest.MonkeyPatch):
    products: list[int] = []
    times = Problem.hessian_times

    def counted(self, *arguments):
        products.append(1)
        return times(self, *arguments)

    monkeypatch.setattr(Problem, "hessian_times", counted)
    rng = np.random.default_rng(12)
    features, labels = rng.standard_normal((46, 13)), rng.integers(0, 4, 46)
    labels[:12] = np.repeat(np.arange(4), 3)
    rows, sets = block_of(features, plan_folds(labels.astype(float), n_folds=3, seed=0))
    fits = logistic.fit_logistic(
        rows, torch.tensor(np.eye(4)[labels]), sets, [1e-6], SoftmaxLoss(), Preprocessing(True, True)
    )
    assert fits.converged.all()
    # It was 20,000, up to the limit of each step.
    assert len(products) < 5000
