"""Sweeps on a device that no machine need have: equal to the CPU's, and sparing with what a GPU is slow at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gpu_probes import ArrayCellSource, RidgeProbeCV, SweepResult, sweep, sweep_labels
from gpu_probes.search import planner
from tests.helpers.pretend_device import PretendDevice, pretended

pytestmark = pytest.mark.slow

TEST_ROWS = 30


@dataclass(frozen=True)
class Size:
    """Rows, features and cells."""

    n_samples: int = 60
    n_features: int = 8
    n_layers: int = 2
    n_positions: int = 1

    def draw(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Features [sample, layer, position, feature], test rows last, and numbers that some cells tell."""
        rng = np.random.default_rng(0)
        shape = (self.n_samples + TEST_ROWS, self.n_layers, self.n_positions, self.n_features)
        features = rng.standard_normal(shape).astype(dtype)
        numbers = features[:, 0, 0].astype(np.float64) @ rng.standard_normal(self.n_features)
        return features, numbers / np.std(numbers) + rng.standard_normal(len(numbers))


WIDE = Size(n_samples=40, n_features=70)
SEPARABLE = Size(n_samples=16, n_features=20)
LABELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "numbers": lambda numbers: numbers,
    "two": lambda numbers: (numbers > 0).astype(float),
    "three": lambda numbers: np.digitize(numbers, [-0.6, 0.6]).astype(float),
    "rates": lambda numbers: np.round(4 / (1 + np.exp(-numbers))) / 4,
}


@dataclass(frozen=True)
class Kind:
    """A kind of sweep."""

    label: str
    size: Size = Size()
    dtype: str = "float32"
    weighted: bool = False
    grouped: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, device: str, **more: Any) -> SweepResult:
        """Sweep its cells."""
        features, numbers = self.size.draw(self.dtype)
        labels = LABELS[self.label](numbers)
        axes = {"layers": tuple(range(self.size.n_layers)), "positions": tuple(range(-self.size.n_positions, 0))}
        n = self.size.n_samples
        if self.weighted:
            more["sample_weight"] = np.random.default_rng(1).uniform(0, 2, n)
        if self.grouped:
            more["groups"] = np.arange(n) // 3
        train, test = (ArrayCellSource(values, **axes) for values in (features[:n], features[n:]))
        return sweep(train, labels[:n], test, labels[n:], device=device, **{"k_fold": True, **self.options, **more})


def kind(label: str, size: Size = Size(), **options: Any) -> Kind:
    own = {name: options.pop(name) for name in ("dtype", "weighted", "grouped") if name in options}
    return Kind(label, size, options=options, **own)


GRID = [0.1, 1.0, 10.0]
FRAMED = {"fit_intercept": True, "standardize": True}
KINDS = {
    "ridge": kind("numbers", alphas=GRID),
    "ridge of float16": kind("numbers", alphas=GRID, dtype="float16"),
    "ridge of bfloat16": kind("numbers", alphas=GRID, dtype="bfloat16"),
    "ridge in the dual": kind("numbers", WIDE, alphas=GRID),
    "ridge, framed and weighted": kind("numbers", alphas="auto", weighted=True, **FRAMED),
    "ridge in the dual, framed and weighted": kind("numbers", WIDE, alphas="auto", weighted=True, **FRAMED),
    "ridge of hardly any penalty": kind("numbers", alphas=[0.0, 1e-9]),
    "ridge in the dual of hardly any penalty": kind("numbers", WIDE, alphas=[0.0, 1e-9]),
    "ridge, shuffled": kind("numbers", alphas=GRID, permutations=20),
    "ridge, shuffled within groups": kind("numbers", permutations=20, grouped=True),
    "ridge, nested": kind("numbers", alphas=GRID, nested_cv=True),
    "ridge of a small budget": kind("numbers", Size(n_samples=600), alphas=GRID, budget_bytes=1_500_000),
    "logistic": kind("two", alphas=GRID),
    "logistic in the span of the rows": kind("two", WIDE, alphas=GRID),
    "logistic, framed and weighted": kind("two", alphas=GRID, weighted=True, **FRAMED),
    "logistic, nearly separable": kind("two", SEPARABLE, alphas=[1e-4], fit_intercept=True),
    "logistic, shuffled": kind("two", permutations=20),
    "logistic, shuffles fitted likewise": kind("two", permutations=5, permutation_statistic="probe"),
    "logistic, nested": kind("two", alphas=GRID, nested_cv=True),
    "logistic of a small budget": kind("two", Size(n_samples=600), alphas=GRID, budget_bytes=2_500_000),
    "softmax": kind("three", alphas=GRID, **FRAMED),
    "softmax, nearly separable": kind("three", SEPARABLE, alphas=[1e-4]),
    "softmax, shuffled": kind("three", permutations=20),
    "binomial": kind("rates", alphas=GRID, probe="binomial", weighted=True),
    "lda": kind("two", alphas=GRID, probe="lda"),
    "lda of three classes": kind("three", WIDE, alphas=GRID, probe="lda", permutations=5),
    "mass mean": kind("two", probe="mass_mean", permutations=5),
    "mass mean of three classes": kind("three", probe="mass_mean", nested_cv=True),
    "mass mean of numbers": kind("numbers", probe="mass_mean"),
}


def numbers_of(result: SweepResult) -> dict[str, np.ndarray]:
    """Everything that a result holds in numbers."""
    arrays = {name: value for name, value in vars(result).items() if isinstance(value, np.ndarray)}
    return {name: value for name, value in arrays.items() if value.dtype.kind in "fiub"}


def assert_equal(found: SweepResult, expected: SweepResult, atol: float = 1e-7) -> None:
    """Equal but for what certificates allow: the loops of a GPU look less often, and multiply more at once."""
    assert (found.status == expected.status).all()
    ours, theirs = numbers_of(found), numbers_of(expected)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if name in ("certificate", "solver"):
            continue
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_sweep_is_the_cpus(name: str):
    with pretended(PretendDevice("cuda")) as device:
        found = KINDS[name].run("cuda")
    assert device.counts.kernels.total() > 100
    # The smaller the penalty, the further the coefficients may be off at the same excess of the objective.
    assert_equal(found, KINDS[name].run("cpu"), atol=1e-4 if "nearly separable" in name else 1e-7)


def test_several_labels_at_once_are_the_cpus():
    features, numbers = Size().draw("float32")
    source = ArrayCellSource(features)
    labels = {"a": numbers, "b": numbers[::-1].copy(), "c": (numbers > 0).astype(float)}
    options = {"k_fold": True, "alphas": GRID, "permutations": 5}
    with pretended(PretendDevice("cuda")):
        found = sweep_labels(source, labels, device="auto", **options)
    expected = sweep_labels(source, labels, device="cpu", **options)
    for label in labels:
        assert_equal(found[label], expected[label])


def test_estimators_are_the_cpus():
    features, numbers = Size().draw("float64")
    X = features[:, 0, 0]
    with pretended(PretendDevice("cuda")):
        found = RidgeProbeCV(alphas=GRID, device="cuda").fit(X, numbers)
    expected = RidgeProbeCV(alphas=GRID, device="cpu").fit(X, numbers)
    assert found.alpha_ == expected.alpha_
    np.testing.assert_allclose(found.predict(X), expected.predict(X), rtol=1e-9)


# Of one block of cells, however many and of however many rows: answers that the host waits for, copies to the device
# (of which most are for all blocks), kernels. Shuffles that are fitted likewise are a second fit.
BUDGETS = {
    "ridge": (30, 60, 3_500),
    "ridge, shuffled": (30, 60, 4_500),
    "logistic": (100, 60, 7_000),
    "logistic, shuffled": (100, 60, 7_000),
    "logistic, shuffles fitted likewise": (130, 60, 9_000),
    "softmax": (120, 60, 14_000),
}


def in_one_block(monkeypatch: pytest.MonkeyPatch, name: str, size: Size, **options: Any) -> tuple[int, int, int]:
    """Waits, uploads and kernels of a sweep whose cells are all in one block."""
    monkeypatch.setattr("gpu_probes.search.sweep.most_workers", lambda _: 1)
    monkeypatch.setattr(planner, "_BLOCKS_PER_WORKER", 1)
    base = KINDS[name]
    with pretended(PretendDevice("cuda")) as device:
        Kind(base.label, size, options={**base.options, **options}).run("cuda")
    counts = device.counts
    return counts.waits.total(), counts.uploads.total(), counts.kernels.total()


@pytest.mark.parametrize("name", BUDGETS)
def test_what_a_block_costs_beside_its_arithmetic_has_a_budget(name: str, monkeypatch: pytest.MonkeyPatch):
    sizes = [Size(), Size(n_layers=6, n_positions=4), Size(n_samples=2400)]
    costs = [in_one_block(monkeypatch, name, size) for size in sizes]
    if "shuffle" in name:
        costs += [in_one_block(monkeypatch, name, Size(), permutations=3 * KINDS[name].options["permutations"])]
    if name.startswith("ridge"):
        # Nothing but the steps of a loop depends on what the rows hold.
        assert len(set(costs)) == 1, costs
    for cost in costs:
        assert all(found <= allowed for found, allowed in zip(cost, BUDGETS[name], strict=True)), costs
