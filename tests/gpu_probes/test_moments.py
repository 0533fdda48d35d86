import numpy as np
import pytest
import torch

from gpu_probes.folds import FoldPlan, plan_folds
from gpu_probes.moments import STRIP, lot_moments
from tests.gpu_probes.blocks import block_of

LABELS = np.linspace(0.05, 0.95, 23)


@pytest.mark.parametrize("n_features", [4, STRIP + 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_rows", [23, 5])
def test_moments_of_a_fit_are_those_of_its_training_rows(n_features: int, weighted: bool, chunk_rows: int, device: str):
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((23, n_features)), rng.standard_normal((23, 2))
    weights = rng.uniform(0, 2, 23) if weighted else np.ones(23)
    plan = plan_folds(LABELS, n_folds=5, seed=0)
    rows, sets = block_of(features, plan, device, weights if weighted else None, chunk_rows)
    lots = lot_moments(rows, torch.tensor(targets, device=device), sets)
    for fit in range(6):
        kept = plan.fold_of_sample != fit
        X, y, w = features[kept], targets[kept], weights[kept][:, None]
        ours, sums = lots.of_fit(sets.included[fit]), lots.marginals(sets.included[fit])
        assert float(ours.weight) == pytest.approx(w.sum())
        np.testing.assert_allclose(ours.gram[0].cpu().tril(), np.tril(X.T @ (w * X)), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.cross[0].cpu(), X.T @ (w * y), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(sums.features[0].cpu(), (w * X).sum(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(sums.squares[0].cpu(), (w * X**2).sum(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(sums.targets.cpu(), (w * y).sum(0), rtol=1e-12, atol=1e-12)


def test_a_dominant_fold_does_not_cancel_the_others_away():
    features = np.array([[1e9], [1.0], [1.0]])
    rows, sets = block_of(features, FoldPlan(np.array([0, 1, 2]), 3))
    assert lot_moments(rows, torch.tensor(features), sets).of_fit(sets.included[0]).gram.item() == 2.0
