from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from gpu_probes.errors import LabelError
from gpu_probes.scores.ranks import (
    is_flat,
    labels_rank,
    midranks,
    ranked,
    roc_auc,
    rounding_level,
    score,
    spearman,
    unit_ranks_of_places,
)

# Few distinct values make ties the rule.
tied = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))


@st.composite
def label_and_predictions(draw: st.DrawFn, labels: st.SearchStrategy[float]) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(2, 40))
    return draw(arrays(np.float64, n, elements=labels)), draw(arrays(np.float64, (3, n), elements=tied))


@pytest.mark.slow
@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=tied))
def test_midranks_are_scipys(values: np.ndarray):
    np.testing.assert_array_equal(midranks(torch.tensor(values)).numpy(), rankdata(values, axis=1))


@given(arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(2, 30)), elements=st.integers(0, 9)))
def test_ranks_of_places_are_those_of_values(places: np.ndarray):
    ours = unit_ranks_of_places(torch.from_numpy(places), 12).numpy()
    for found, row in zip(ours, places, strict=True):
        centred = rankdata(row) - (len(row) + 1) / 2
        if np.ptp(row) == 0:
            assert np.isnan(found).all()
        else:
            np.testing.assert_allclose(found, centred / np.linalg.norm(centred), atol=1e-15)


@pytest.mark.slow
@given(label_and_predictions(tied))
def test_spearman_is_scipys(drawn: tuple[np.ndarray, np.ndarray]):
    labels, predictions = drawn
    ours = spearman(torch.tensor(labels), torch.tensor(predictions)).numpy()
    for value, column in zip(ours, predictions, strict=True):
        if np.ptp(labels) == 0 or np.ptp(column) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(spearmanr(labels, column).statistic, abs=1e-12)


@pytest.mark.slow
@given(label_and_predictions(st.sampled_from([0.0, 1.0])))
def test_auc_is_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]):
    labels, predictions = drawn
    ours = roc_auc(torch.tensor(labels[:, None]), torch.tensor(predictions[:, :, None])).numpy()
    for value, column in zip(ours, predictions, strict=True):
        if np.ptp(labels) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(labels, column), abs=1e-12)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(3, 6))
def test_multiclass_auc_is_scikit_learns_one_vs_rest_macro(seed: int, n_classes: int):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 20)])
    probabilities = rng.dirichlet(np.ones(n_classes), len(labels))
    ours = roc_auc(torch.tensor(np.eye(n_classes)[labels]), torch.tensor(probabilities[None]))
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert float(ours) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("values", [[1.0, 2.0], [-1.0, 1.0], [0.0, 0.5]])
def test_targets_of_classes_are_zeros_and_ones(values: list[float]):
    with pytest.raises(LabelError, match="1 for rows of the class and 0 for others"):
        labels_rank("classification", torch.tensor(values, dtype=torch.float64)[:, None])


@pytest.mark.parametrize("spread", [1.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("n_classes", [3, 10])
def test_several_classes_are_ranked_by_exact_log_odds(n_classes: int, spread: float):
    """Against 60 digits: probabilities of a class round to 1 from 37 on."""
    decision = spread * np.random.default_rng(0).standard_normal((20, n_classes))
    found = ranked(torch.tensor(decision)).numpy()
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**9), 10**9
        for row, odds in zip(decision, found, strict=True):
            powers = [Decimal(float(value)).exp() for value in row]
            expected = [exact_odds(powers, k) for k in range(n_classes)]
            np.testing.assert_allclose(odds, expected, rtol=1e-13, atol=1e-13 * spread)


def exact_odds(powers: list[Decimal], k: int) -> float:
    """Log odds of a class, summed over the others."""
    return float((powers[k] / sum(powers[:k] + powers[k + 1 :])).ln())


def test_rounding_of_identical_rows_is_flat_and_a_true_spread_is_not():
    rng = np.random.default_rng(0)
    row, coef = torch.tensor(rng.standard_normal(500) * 100), torch.tensor(rng.standard_normal((1, 1, 1, 500)))
    same = row.repeat(40, 1)
    level = rounding_level(row.norm()[None], coef)
    noise = torch.tensor(rng.uniform(-1e-13, 1e-13, 40))
    decision = (same @ coef[0, 0, 0] * (1 + noise))[None, None, :, None]
    assert decision.unique().numel() > 1
    assert is_flat(decision, level).all()
    assert not is_flat(decision * torch.linspace(1, 1.001, 40)[None, None, :, None], level).any()


def test_nan_predictions_are_flat():
    decision = torch.full((1, 1, 4, 1), torch.nan, dtype=torch.float64)
    assert is_flat(decision, torch.zeros(1, 1, 1, dtype=torch.float64)).all()


def test_targets_of_their_own_for_each_column_score_as_one_by_one():
    rng = np.random.default_rng(0)
    targets, predictions = (torch.tensor(rng.integers(0, 2, (5, 40, 1)).astype(float)) for _ in range(2))
    for task_type in ("regression", "classification"):
        together = score(task_type, targets, predictions.expand(3, -1, -1, -1))
        for column in range(5):
            alone = score(task_type, targets[column], predictions[column])
            np.testing.assert_allclose(together[:, column], alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("task_type", "rows", "defined"),
    [
        ("regression", [[1.0], [1.0]], False),
        ("regression", [[1.0], [2.0]], True),
        ("classification", [[1.0], [1.0]], False),
        ("classification", [[0.0], [1.0]], True),
        ("classification", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], False),
        ("classification", [[1.0, 0.0], [0.0, 1.0]], True),
    ],
)
def test_labels_that_cannot_be_ranked_have_no_score(task_type: str, rows: list[list[float]], defined: bool):
    targets = torch.tensor(rows, dtype=torch.float64)
    assert labels_rank(task_type, targets) is defined
    predictions = torch.rand(1, *targets.shape, dtype=torch.float64)
    assert score(task_type, targets, predictions).isfinite().item() is defined
