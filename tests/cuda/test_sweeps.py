"""Sweeps on a card: the CPU's results, in the memory that their plan foretells."""

from typing import Any

import numpy as np
import pytest
import torch

from gpu_probes import ArrayCellSource, SweepResult, sweep
from gpu_probes.search.devices import free_bytes
from gpu_probes.search.sweep import PlannedSweep, plan_sweep

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")]

DEVICE = "cuda"
ALPHAS = (0.1, 10.0, 1000.0)
# Rounding of a decision value: a sum of some sixty products, after a few thousand operations of a solver.
ROUNDING = 1e-9
# Of cuBLAS and cuSOLVER, for each of two streams: torch counts it, the plan does not.
WORKSPACES_NBYTES = 2**28


def numbers(tell: np.ndarray) -> np.ndarray:
    return tell


def two_classes(tell: np.ndarray) -> np.ndarray:
    return (tell > 0).astype(float)


def three_classes(tell: np.ndarray) -> np.ndarray:
    return np.digitize(tell, [-0.5, 0.5]).astype(float)


def rates(tell: np.ndarray) -> np.ndarray:
    return np.round(4 / (1 + np.exp(-tell))) / 4


PROBES = {
    "ridge": ({"alphas": ALPHAS}, numbers),
    "logistic": ({"alphas": ALPHAS}, two_classes),
    "softmax": ({"alphas": ALPHAS}, three_classes),
    "binomial": ({"probe": "binomial", "alphas": ALPHAS}, rates),
    "lda": ({"probe": "lda", "alphas": ALPHAS}, three_classes),
    "mass-mean": ({"probe": "mass_mean"}, two_classes),
    "covariance": ({"probe": "mass_mean"}, numbers),
}


def cells(n_samples: int, n_features: int) -> np.ndarray:
    shape = (n_samples, 3, 2, n_features)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) + np.float32(0.3)


def coef_tolerance(result: SweepResult) -> np.ndarray:
    """How far a cell's coefficients can be from the minimum, [position, layer].

    The objective is strongly convex with modulus alpha, so ``alpha / 2 |w - w*|^2`` is at most its excess over the
    minimum, which the certificate gives as a share of the objective at zero.
    """
    chosen = np.argmax(np.array(result.alphas) == result.selected_alpha[..., None], axis=-1)
    certificate = np.take_along_axis(result.certificate[:, :, -1], chosen[..., None], axis=-1)[..., 0]
    labels = result.train_labels
    n_classes = len(result.classes or ())
    at_zero = len(labels) * np.log(max(n_classes, 2)) if n_classes else max(np.square(labels).sum() / 2, len(labels))
    return np.sqrt(2 * certificate * at_zero / result.selected_alpha)


@pytest.mark.parametrize(
    ("shape", "standardize"),
    [((200, 20), False), ((50, 60), False), ((200, 20), True)],
    ids=["more rows", "more features", "standardized"],
)
@pytest.mark.parametrize("kind", PROBES)
def test_a_sweep_finds_what_it_finds_on_the_cpu(kind: str, shape: tuple[int, int], standardize: bool) -> None:
    options, labels_of = PROBES[kind]
    array = cells(shape[0] + 30, shape[1])
    rng = np.random.default_rng(1)
    tell = array[:, 1, 0, :5].sum(-1) / 2 - 0.75 + rng.standard_normal(len(array))
    labels = labels_of(tell)
    train, test = (ArrayCellSource(part) for part in (array[: shape[0]], array[shape[0] :]))
    found, expected = (
        sweep(
            *(train, labels[: shape[0]], test, labels[shape[0] :]),
            k_fold=True, permutations=5, standardize=standardize, device=device, **options,
        )
        for device in (DEVICE, "cpu")
    )  # fmt: skip
    assert (found.status == expected.status).all()
    np.testing.assert_array_equal(found.selected_alpha, expected.selected_alpha)
    # Scores depend on the order of decision values alone: no two of them are so near that rounding swaps them.
    for name in ("cv_score", "train_score", "test_score", "alpha_cv_score", "inner_score", "outer_score", "null_score"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-9, err_msg=name)
    size = np.linalg.norm(expected.coef, axis=-1)
    off = np.linalg.norm(found.coef - expected.coef, axis=-1)
    # With standardized features the certificate is of their coefficients, which are then divided by deviations near 1.
    allowed = 2 * (coef_tolerance(found) + coef_tolerance(expected))[..., None] + ROUNDING * size
    assert (off <= allowed).all()


def test_nothing_that_an_earlier_sweep_kept_makes_the_next_budget_smaller() -> None:
    before = free_bytes([torch.device(DEVICE)])
    kept = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    del kept  # torch keeps the memory for what comes next
    assert free_bytes([torch.device(DEVICE)]) >= before - 2**26


def plan(**options: Any) -> PlannedSweep:
    """Of 24 cells, which are one and the same on the host."""
    rows = np.random.default_rng(0).standard_normal((9600, 1, 1, 1024), dtype=np.float32)
    labels = rows[:, 0, 0, :5].sum(-1).astype(float)
    array = np.broadcast_to(rows, (9600, 24, 1, 1024))
    train, test = array[:8000], array[8000:]
    return plan_sweep(
        *(ArrayCellSource(train), {"y": labels[:8000]}, ArrayCellSource(test), {"y": labels[8000:]}),
        k_fold=True, nested_cv=False, device=DEVICE, **options,
    )  # fmt: skip


def peak_nbytes(planned: PlannedSweep) -> int:
    """Most memory of the card that tensors had at once while a sweep ran."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    planned.run()
    return torch.cuda.max_memory_allocated() - before


def foretold_nbytes(planned: PlannedSweep) -> int:
    return max(group.plan.predicted_bytes for group in planned.groups)


@pytest.mark.parametrize("alphas", [(1.0,), tuple(np.logspace(-2, 5, 10).tolist())], ids=["one alpha", "ten"])
def test_a_sweep_takes_the_memory_that_is_foretold(alphas: tuple[float, ...]) -> None:
    planned = plan(alphas=alphas)
    foretold, peak = foretold_nbytes(planned), peak_nbytes(planned)
    assert foretold > 2 * WORKSPACES_NBYTES, "too little to tell it from the libraries' own"
    assert foretold / 4 < peak < 1.2 * foretold + WORKSPACES_NBYTES


def test_a_sweep_stays_within_its_budget() -> None:
    free = plan(alphas=ALPHAS)
    budget = foretold_nbytes(free) // 4
    planned = plan(alphas=ALPHAS, budget_bytes=budget)
    assert foretold_nbytes(planned) <= budget
    assert peak_nbytes(planned) < budget + WORKSPACES_NBYTES
