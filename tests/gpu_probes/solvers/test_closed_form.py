"""LDA and mass-mean probes against their formulas and scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from gpu_probes import ArrayCellSource, LabelError, PenaltyError, sweep
from gpu_probes.errors import Status
from gpu_probes.samples.folds import FoldPlan
from gpu_probes.samples.groups import group_samples
from gpu_probes.samples.shuffles import Shuffles, draw_shuffles
from gpu_probes.scores.permutation import PermutationTest
from gpu_probes.solvers.closed_form import fit_covariance, fit_lda, fit_mass_mean
from gpu_probes.solvers.objective import ProbeFits
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.solvers.systems import Dual, Framed, Primal
from tests.helpers.blocks import block_of

N, N_FOLDS = 48, 4
FOLDS = FoldPlan(np.arange(N) % N_FOLDS, N_FOLDS)
Formula = Callable[[np.ndarray], np.ndarray]


def draw(n_features: int, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_classes, N)
    features = rng.standard_normal((N, n_features)) + 0.5 + labels[:, None] * rng.random(n_features)
    return features, np.eye(n_classes)[labels], rng.integers(1, 3, N).astype(float)


def in_frame(rows: np.ndarray, one_hot: np.ndarray, weights: np.ndarray, standardize: bool):
    """Shift and scale, class counts, class means, and what is left within the classes."""
    mean = weights @ rows / weights.sum()
    scale = np.sqrt(weights @ np.square(rows - mean) / weights.sum()) if standardize else 1.0
    shifted = (rows - mean) / scale
    counts = weights @ one_hot
    means = (one_hot * weights[:, None]).T @ shifted / counts[:, None]
    return (lambda x: (x - mean) / scale), counts, means, shifted - one_hot @ means


def lda_formula(rows, one_hot, weights, alpha: float, standardize: bool) -> Formula:
    frame, counts, means, within = in_frame(rows, one_hot, weights, standardize)
    scatter = (within * weights[:, None]).T @ within + alpha * np.eye(rows.shape[1])
    directions = weights.sum() * np.linalg.solve(scatter, means.T)
    offset = np.log(counts / counts.sum()) - 0.5 * np.einsum("cd,dc->c", means, directions)
    return lambda x: frame(x) @ directions + offset


def mass_mean_formula(rows, one_hot, weights, standardize: bool) -> Formula:
    frame, counts, means, within = in_frame(rows, one_hot, weights, standardize)
    along = within @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    spread = (weights @ np.square(along) / weights.sum()) @ (counts / counts.sum())
    return lambda x: (frame(x) @ means.T - 0.5 * np.square(means).sum(1)) / spread + np.log(counts / counts.sum())


def assert_is(fits: ProbeFits, fit: int, k: int, expected: np.ndarray, features: np.ndarray, atol: float):
    """Both the decision values and the raw coefficients; classes may share a constant."""
    from_coef = features @ fits.coef[0, fit, k].numpy().T + fits.intercept[0, fit, k].numpy()
    for ours in (fits.decision[0, fit, k].numpy(), from_coef):
        if ours.shape[1] == 1:
            np.testing.assert_allclose(ours, expected[:, 1:] - expected[:, :1], atol=atol)
        else:
            centred, wanted = (v - v.mean(1, keepdims=True) for v in (ours, expected))
            np.testing.assert_allclose(centred, wanted, atol=atol)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("n_features", "space"), [(6, Primal), (60, Primal), (60, Dual)])
def test_lda_is_its_formula_without_each_fold(n_features: int, space: type, n_classes: int, standardize: bool):
    features, one_hot, weights = draw(n_features, n_classes)
    rows, sets = block_of(features, FOLDS, weights=weights)
    fits = fit_lda(space(rows, torch.tensor(one_hot), sets, Preprocessing(True, standardize)), [1.0, 10.0])
    assert fits.converged.all()
    for fit in range(N_FOLDS + 1):
        train = FOLDS.fold_of_sample != fit
        for k, alpha in enumerate([1.0, 10.0]):
            expected = lda_formula(features[train], one_hot[train], weights[train], alpha, standardize)
            assert_is(fits, fit, k, expected(features), features, atol=1e-9)


@pytest.mark.parametrize(("apart", "alpha"), [(1.0, 1e-6), (1e2, 1e-2), (1e4, 1.0), (1e7, 1.0)])
@pytest.mark.parametrize(("n_features", "space"), [(8, Primal), (90, Dual)])
def test_lda_of_classes_far_apart_is_right_or_said_not_to_be(n_features: int, space: type, apart: float, alpha: float):
    rng, one_hot = np.random.default_rng(0), np.eye(3)[np.arange(N) % 3]
    features = rng.standard_normal((N, n_features)) + apart * one_hot @ rng.standard_normal((3, n_features))
    folds = FoldPlan.without_folds(N)
    rows, sets = block_of(features, folds)
    fits = fit_lda(space(rows, torch.tensor(one_hot), sets, Preprocessing(True)), [alpha])
    # By the rows' own singular values: nothing is squared, and nothing cancels.
    _, _, means, within = in_frame(features, one_hot, np.ones(N), False)
    _, singular, right = np.linalg.svd(within, full_matrices=True)
    spread = np.zeros(n_features)
    spread[: len(singular)] = singular
    expected = N * (right.T / (spread**2 + alpha)) @ right @ means.T
    off = np.abs(fits.coef[0, -1, 0].numpy() - expected.T).max() / np.abs(expected).max()
    assert bool(fits.converged[0, -1, 0]) == (apart <= 1e4)
    assert off < 1e-5 or not fits.converged[0, -1, 0]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_lda_without_a_penalty_is_scikit_learns(n_classes: int):
    features, one_hot, _ = draw(6, n_classes)
    rows, sets = block_of(features, FOLDS)
    fits = fit_lda(Primal(rows, torch.tensor(one_hot), sets, Preprocessing(True)), [0.0])
    # The solver that divides the scatter by the number of rows, as here.
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features, one_hot.argmax(1)).predict_proba(features)
    decision = fits.decision[0, -1, 0]
    ours = torch.sigmoid(decision) if n_classes == 2 else torch.softmax(decision, -1)
    np.testing.assert_allclose(ours.numpy(), theirs[:, 1:] if n_classes == 2 else theirs, atol=1e-9)


@pytest.mark.slow
def test_folds_with_all_rows_of_a_class_are_said_however_many_classes():
    """LAPACK may answer a large matrix of NaN with an error, and this for all matrices of a batch."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(300.0), 4)
    features = rng.standard_normal((1200, 2, 1, 8))
    folds = np.where(classes < 150, classes % 2, np.arange(1200) % 2).astype(int)
    result = sweep(ArrayCellSource(features), classes, probe="lda", k_fold=True, folds=folds, device="cpu")
    assert (result.status == Status.CONSTANT_FOLD).all()
    assert result.coef.shape == (1, 2, 300, 8)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_mass_mean_is_its_formula_without_each_fold(n_classes: int, standardize: bool):
    features, one_hot, weights = draw(6, n_classes)
    rows, sets = block_of(features, FOLDS, weights=weights, chunk_rows=20)
    space = Framed.of(rows, sets, Preprocessing(True, standardize))
    fits = fit_mass_mean(space, torch.tensor(one_hot), 2)
    for fit in range(N_FOLDS + 1):
        train = FOLDS.fold_of_sample != fit
        expected = mass_mean_formula(features[train], one_hot[train], weights[train], standardize)
        for k in range(2):
            assert_is(fits, fit, k, expected(features), features, atol=1e-11)


def test_covariance_direction_is_scaled_by_least_squares():
    features, _, weights = draw(6, 2)
    labels = features @ np.arange(6.0) + np.random.default_rng(1).standard_normal(N)
    rows, sets = block_of(features, FOLDS, weights=weights)
    fits = fit_covariance(Framed.of(rows, sets, Preprocessing(True)), torch.tensor(labels[:, None]), 1)
    mean, label_mean = (weights @ values / weights.sum() for values in (features, labels))
    direction = (weights[:, None] * (features - mean)).T @ (labels - label_mean)
    along = (features @ direction)[:, None]
    expected = LinearRegression().fit(along, labels, weights).predict(along)
    np.testing.assert_allclose(fits.decision[0, -1, 0, :, 0].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("probe", ["lda", "mass_mean"])
def test_in_a_sweep_with_nested_cv_and_permutations(probe: str):
    features, one_hot, _ = draw(6, 2)
    noise = np.random.default_rng(2).standard_normal((N, 1, 1, 6))
    source = ArrayCellSource(np.concatenate([noise, features[:, None, None]], 1))
    result = sweep(source, one_hot[:, 1], source, one_hot[:, 1], probe=probe, k_fold=True, permutations=30)
    assert result.probe == probe
    assert result.fit_intercept
    assert result.best is not None
    assert result.best.cell.layer == 1
    predictions = result.train_predictions[0, 1, :, 0]
    assert result.train_score[0, 1] == pytest.approx(roc_auc_score(one_hot[:, 1], predictions))
    np.testing.assert_allclose(result.test_predictions, result.train_predictions, atol=1e-12)
    assert 0.01 < predictions.min() < predictions.max() < 1
    assert isinstance(result.permutation, PermutationTest)
    formula = lda_formula if probe == "lda" else mass_mean_formula
    options = {"alpha": 1.0} if probe == "lda" else {}
    folds = FoldPlan(result.fold_of_sample, 5, stratified=True)
    shuffles = draw_shuffles(one_hot[:, 1], group_samples(N), folds, n_shuffles=30, seed=42)
    assert isinstance(shuffles, Shuffles)
    for number, order in enumerate(shuffles.order[:5]):
        scores, shuffled = [], one_hot[order]
        for fold in range(5):
            train, held_out = folds.fold_of_sample != fold, folds.fold_of_sample == fold
            decide = formula(features[train], shuffled[train], np.ones(train.sum()), standardize=False, **options)
            scores.append(roc_auc_score(shuffled[held_out, 1], decide(features[held_out]) @ [-1, 1]))
        assert result.null_score[0, 1, number] == pytest.approx(np.mean(scores))


def test_probes_that_do_not_go_with_the_labels():
    source = ArrayCellSource(np.random.default_rng(0).standard_normal((12, 1, 1, 3)))
    numbers, classes = np.linspace(0.1, 1, 12), np.arange(12) % 3
    with pytest.raises(LabelError, match="'lda' cannot be used for regression; use auto, ridge, mass_mean"):
        sweep(source, numbers, probe="lda")
    with pytest.raises(LabelError, match="'ridge' cannot be used for classification"):
        sweep(source, classes, probe="ridge")
    with pytest.raises(LabelError, match="permutation_statistic='probe' of lda is for two classes"):
        sweep(source, classes, probe="lda", k_fold=True, permutations=5, permutation_statistic="probe")
    with pytest.raises(PenaltyError, match="mass_mean has no alpha"):
        sweep(source, numbers, probe="mass_mean", k_fold=True, alphas=[1.0, 2.0])
