import numpy as np
import pytest
import torch

from gpu_probes.features.rows import Workspace
from gpu_probes.samples.folds import FoldPlan, plan_folds
from gpu_probes.samples.training_sets import Lots
from gpu_probes.solvers.moments import STRIP, lot_marginals, lot_moments
from gpu_probes.solvers.preprocessing import Frame, Preprocessing
from tests.helpers.blocks import block_of

LABELS = np.linspace(0.05, 0.95, 23)


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [4, STRIP + 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_rows", [23, 5])
@pytest.mark.parametrize("centred", [False, True])
def test_moments_of_a_fit_are_those_of_its_training_rows(
    n_features: int, weighted: bool, chunk_rows: int, centred: bool, device: str
):
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((23, n_features)), rng.standard_normal((23, 2))
    weights = rng.uniform(0, 2, 23) if weighted else np.ones(23)
    plan = plan_folds(LABELS, n_folds=5, seed=0)
    rows, sets = block_of(features, plan, device, weights if weighted else None, chunk_rows)
    lots = lot_moments(rows, torch.tensor(targets, device=device), sets, Preprocessing(centred, centred))
    for fit in range(6):
        kept, included = plan.fold_of_sample != fit, sets.lots[fit]
        X, y, w = features[kept], targets[kept], weights[kept][:, None]
        mean, target_mean = (w * X).sum(0) / w.sum(), (w * y).sum(0) / w.sum()
        if centred:
            X, y = X - mean, y - target_mean
        marginals = lots.marginals.of_fit(included)
        frame = Frame.of(marginals, lots.target_mean_of_fit(included), Preprocessing(centred, centred))
        ours = lots.of_fit(included, frame, Workspace())
        np.testing.assert_allclose(ours.gram[0].cpu().tril(), np.tril(X.T @ (w * X)), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours.cross[0].cpu(), X.T @ (w * y), rtol=1e-12, atol=1e-12)
        if centred:
            assert float(marginals.weight) == pytest.approx(w.sum())
            alone = lot_marginals(rows.chunks(), sets, Preprocessing(True, True), rows.origin).of_fit(included)
            for found in (marginals, alone):
                np.testing.assert_allclose(found.mean[0].cpu(), mean, rtol=1e-12, atol=1e-12)
                np.testing.assert_allclose(found.squares[0].cpu(), (w * X**2).sum(0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(frame.target_centre.cpu(), target_mean, rtol=1e-12, atol=1e-12)


def test_a_dominant_fold_does_not_cancel_the_others_away():
    features = np.array([[1e9], [1.0], [1.0]])
    rows, sets = block_of(features, FoldPlan(np.array([0, 1, 2]), 3))
    lots = lot_moments(rows, torch.tensor(features), sets, Preprocessing())
    included = sets.lots[0]
    frame = Frame.of(lots.marginals.of_fit(included), lots.target_mean_of_fit(included), Preprocessing())
    assert lots.of_fit(included, frame, Workspace()).gram.item() == 2.0


@pytest.mark.parametrize("chunk_rows", [40, 7])
def test_lots_far_apart_keep_their_digits(chunk_rows: int):
    rng = np.random.default_rng(0)
    plan = FoldPlan(np.arange(40) % 4, 4)
    # Multiples of a power of two, so that adding the distance loses nothing.
    near = np.round(rng.standard_normal((40, 5)) * 2**20) / 2**20
    far = near + 2.0**28 * (plan.fold_of_sample == 0)[:, None]
    weights = np.where(plan.fold_of_sample == 2, 0.0, 1.0)
    rows, sets = block_of(far, plan, weights=weights, chunk_rows=chunk_rows)
    lots = lot_marginals(rows.chunks(), sets, Preprocessing(True, True), rows.origin)
    only_far = Lots.of([0, 2], 4, torch.device("cpu"))
    for included, kept in ((only_far, [0]), (sets.lots[0], [1, 3])):
        expected = near[np.isin(plan.fold_of_sample, kept)]
        squares = np.square(expected - expected.mean(0)).sum(0)
        # The means of pieces are rounded at 2^28.
        np.testing.assert_allclose(lots.of_fit(included).squares[0], squares, rtol=2.0**28 * np.finfo(float).eps)
