import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.solvers.ridge import CERTIFICATE_LIMIT, fit_ridge
from gpu_probes.solvers.systems import Dual, Primal
from gpu_probes.terms import Solver
from tests.helpers.blocks import block_of, only_cell

ALPHAS = [1e-3, 1.0, 1e3]


def conditioned(n_samples: int, n_features: int, condition: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features with singular values from 1e3 down to 1e3 / condition, and labels from a known solution plus noise."""
    rng = np.random.default_rng(seed)
    rank = min(n_samples, n_features)
    left = np.linalg.qr(rng.standard_normal((n_samples, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((n_features, rank)))[0]
    features = left * (1e3 * np.logspace(0, -np.log10(condition), rank)) @ right.T
    return features, features @ rng.standard_normal(n_features) + rng.standard_normal(n_samples)


def fit(features: np.ndarray, labels: np.ndarray, alphas: list[float], folds: FoldPlan, device: str = "cpu"):
    rows, sets = block_of(features, folds, device)
    targets = torch.tensor(labels[:, None], device=device)
    space = (Dual if rows.n_samples < rows.n_features else Primal)(rows, targets, sets, Preprocessing())
    return only_cell(fit_ridge(space, alphas)[0])


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("shape", [(200, 40), (60, 60), (50, 120)], ids=str)
@pytest.mark.parametrize("condition", [1e1, 1e6])
def test_every_fold_and_alpha_equals_scikit_learn(shape: tuple[int, int], condition: float, device: str):
    features, labels = conditioned(*shape, condition)
    folds = plan_folds(labels, n_folds=5, seed=42)
    fits = fit(features, labels, ALPHAS, folds, device)
    assert fits.converged.all()
    assert fits.certificate.max() <= CERTIFICATE_LIMIT
    for k in range(folds.n_folds + 1):
        train = folds.fold_of_sample != k
        for a, alpha in enumerate(ALPHAS):
            reference = Ridge(alpha=alpha, fit_intercept=False, solver="svd").fit(features[train], labels[train])
            coef = fits.coef[k, a, 0].cpu().numpy()
            assert relative_error(coef, reference.coef_) < 1e-6
            if not train.all():
                assert relative_error(features[~train] @ coef, reference.predict(features[~train])) < 1e-6


@pytest.mark.parametrize(
    ("shape", "condition", "penalty", "solver"),
    [
        ((200, 40), 1e7, 1e-8, Solver.CORRECTED),
        ((40, 200), 1e7, 1e-7, Solver.CORRECTED),
        ((200, 40), 1e11, 1e-16, Solver.QR),
        ((40, 200), 1e11, 1e-16, Solver.QR),
    ],
)
def test_precision_steps_up_where_the_squared_matrix_loses_it(shape, condition, penalty, solver):
    features, labels = conditioned(*shape, condition)
    ours = fit(features, labels, [penalty], FoldPlan.without_folds(len(labels)))
    assert ours.solver.item() == solver
    assert ours.converged.all()
    reference = features @ Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(features, labels).coef_
    assert np.abs(ours.decision[0, 0, :, 0].numpy() - reference).max() < 1e-6 * labels.std()


def test_targets_are_columns_of_one_right_hand_side():
    features, labels = conditioned(80, 20, 1e2)
    targets = torch.tensor(np.stack([labels, labels[::-1] * 3.0], axis=1))
    folds = plan_folds(labels, n_folds=4, seed=0)
    rows, sets = block_of(features, folds)
    together = fit_ridge(Primal(rows, targets, sets, Preprocessing()), ALPHAS)
    for t in range(2):
        target = targets[:, t : t + 1].contiguous()
        alone = fit_ridge(Primal(rows, target, sets, Preprocessing()), ALPHAS)[0]
        torch.testing.assert_close(together[t].coef, alone.coef, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(100, 20), (20, 50)], ids=str)
def test_half_the_features_twice_with_half_the_alpha_is_the_same_fit(shape: tuple[int, int]):
    features, labels = conditioned(*shape, 1e2)
    folds = plan_folds(labels, n_folds=5, seed=1)
    once = fit(features, labels, [2.0], folds)
    twice = fit(np.hstack([features, features]) / 2, labels, [1.0], folds)
    np.testing.assert_allclose(
        np.hstack([features, features]) / 2 @ twice.coef[-1, 0, 0].numpy(),
        features @ once.coef[-1, 0, 0].numpy(),
        rtol=1e-8,
        atol=1e-8 * np.abs(labels).max(),
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:10],
        lambda x: np.hstack([x, x[:, :1]]),
        lambda x: np.hstack([x, np.zeros((len(x), 1))]),
        lambda x: np.hstack([x, x[:, :2].sum(1, keepdims=True)]),
    ],
    ids=["fewer rows than features", "duplicate feature", "zero feature", "collinear feature"],
)
def test_alpha_zero_without_a_unique_solution_is_nan_and_leaves_the_next_alpha_alone(spoil):
    features, _ = conditioned(60, 20, 1e1)
    features = spoil(features)
    labels = features @ np.ones(features.shape[1])
    fits = fit(features, labels, [0.0, 1.0], FoldPlan.without_folds(len(labels)))
    assert fits.coef[:, 0].isnan().all()
    assert not fits.converged[:, 0].any()
    assert fits.coef[:, 1].isfinite().all()


@pytest.mark.parametrize("seed", range(10))
def test_a_pivot_of_nothing_but_rounding_is_singular(seed: int):
    features, labels = conditioned(60, 20, 1e1, seed)
    mixed = features @ np.random.default_rng(seed).standard_normal(20)
    fits = fit(np.hstack([features, mixed[:, None]]), labels, [0.0], FoldPlan.without_folds(60))
    assert fits.coef.isnan().all()


def test_alpha_zero_is_least_squares_where_that_is_unique():
    features, labels = conditioned(60, 20, 1e3)
    fits = fit(features, labels, [0.0], FoldPlan.without_folds(60))
    np.testing.assert_allclose(fits.coef[0, 0, 0].numpy(), np.linalg.lstsq(features, labels, rcond=None)[0], rtol=1e-9)


def test_zero_labels_give_a_zero_probe():
    features, labels = conditioned(30, 5, 1e1)
    fits = fit(features, 0 * labels, [1.0], FoldPlan.without_folds(30))
    assert fits.converged.all()
    assert (fits.coef == 0).all()


def test_the_dual_is_the_primal_of_the_rotated_rows():
    features, labels = conditioned(30, 50, 1e3)
    folds = plan_folds(labels, n_folds=5, seed=1)
    _, _, right = np.linalg.svd(features, full_matrices=False)
    dual, primal = fit(features, labels, ALPHAS, folds), fit(features @ right.T, labels, ALPHAS, folds)
    np.testing.assert_allclose(dual.decision.numpy(), primal.decision.numpy(), atol=1e-7 * np.abs(labels).max())
    np.testing.assert_allclose(
        dual.coef.numpy() @ right.T, primal.coef.numpy(), atol=1e-6 * float(primal.coef.abs().max())
    )
