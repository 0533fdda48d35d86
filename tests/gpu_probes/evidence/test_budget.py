"""The budget covers all that a training fits and keeps: what does not fit is refused before the first cell is read."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpu_probes import (
    ArrayCellSource,
    BudgetError,
    JoinedCells,
    SweepOptions,
    check_statistics,
    plan_sweep,
    sweep,
)
from gpu_probes.display.wording import sizes
from gpu_probes.evidence.baselines import (
    Comparison,
    number_baseline,
    random_direction_baseline,
    random_labels_baseline,
    tfidf_baseline,
)
from gpu_probes.evidence.learning_curve import learning_curve
from gpu_probes.results.encoding import encode_json
from gpu_probes.results.saving import save_sweep
from gpu_probes.terms import Cell

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
N, D = 300, 24
ARRAY = RNG.standard_normal((N, 2, 1, D)) + 1.0
NUMBERS = ARRAY[:, 1, 0, 0] + RNG.standard_normal(N)
CLASSES = {n: np.digitize(NUMBERS, np.quantile(NUMBERS, np.arange(1, n) / n)) * 1.0 for n in (2, 9)}
PROMPTS = [f"word{row % 50} and word{row % 7}" for row in range(N)]
# 40,000 words, which take more than any cell.
WORDY = [" ".join(f"w{row * 140 + k}" for k in range(140)) for row in range(N)]


class Unread:
    """A source whose cells must not be read."""

    def __init__(self, source: ArrayCellSource) -> None:
        self.layers, self.positions = source.layers, source.positions
        self.n_samples, self.n_features = source.n_samples, source.n_features

    def cell_blocks(self, layer, position):
        raise AssertionError("a cell was read before everything was planned")


def check(source, labels, options: SweepOptions, prompts: list[str] | None) -> None:
    planned = plan_sweep(source, labels, source, labels, **vars(options))
    check_statistics(planned.workloads, planned.memory, prompts, prompts)


def least_budget(source, labels, options: SweepOptions, prompts: list[str] | None) -> int:
    """The smallest budget that is accepted, to a percent."""
    low, high = 1, 2**32
    while high > 1.01 * low + 1:
        middle = int((low * high) ** 0.5) if low > 1 else high // 2**8
        try:
            check(source, labels, SweepOptions(**vars(options) | {"budget_bytes": middle}), prompts)
            high = middle
        except BudgetError:
            low = middle
    return high


@pytest.mark.parametrize(
    ("labels", "prompts", "options"),
    [
        ({"y": NUMBERS}, PROMPTS, {"alphas": [1.0, 100.0]}),
        ({"y": NUMBERS}, WORDY, {}),
        ({"y": NUMBERS}, None, {"permutations": 40}),
        ({"y": NUMBERS}, None, {"nested_cv": False, "n_folds": 2}),
        ({"y": NUMBERS}, None, {"probe": "mass_mean"}),
        ({"y": NUMBERS, "z": -NUMBERS, "c": CLASSES[2]}, None, {}),
        ({"y": CLASSES[2]}, None, {"alphas": [1.0, 100.0]}),
        ({"y": CLASSES[9]}, None, {"nested_cv": False, "n_folds": 2}),
        ({"y": CLASSES[9]}, None, {"nested_cv": False, "n_folds": 2, "permutations": 40}),
        ({"y": CLASSES[9]}, None, {"probe": "lda", "n_folds": 2}),
        ({"y": CLASSES[9]}, None, {"probe": "mass_mean", "n_folds": 2}),
    ],
    ids=[
        "alphas",
        "words",
        "shuffles",
        "two folds",
        "mean",
        "labels",
        "two",
        "nine",
        "shuffles of nine",
        "lda",
        "mean of nine",
    ],
)
def test_what_is_accepted_is_finished_and_what_is_refused_is_refused_unread(labels, prompts, options):
    source = ArrayCellSource(ARRAY)
    alpha = {} if "alphas" in options or options.get("probe") == "mass_mean" else {"alpha": 10.0}
    given = SweepOptions(**{"k_fold": True, "device": "cpu"} | alpha | options)
    least = least_budget(Unread(source), labels, given, prompts)
    with pytest.raises(BudgetError, match=r"needs [\d.,]+ \wiB, the budget is [\d.,]+ \wiB; allow more"):
        check(Unread(source), labels, SweepOptions(**vars(given) | {"budget_bytes": least // 2}), prompts)
    given = SweepOptions(**vars(given) | {"budget_bytes": least})
    planned = plan_sweep(source, labels, source, labels, **vars(given))
    check_statistics(planned.workloads, planned.memory, prompts, prompts)
    left = SweepOptions(**vars(given) | {"budget_bytes": planned.memory.free_nbytes})
    for result in planned.run().values():
        fit_all(Comparison(result, source, source, left), prompts)


def fit_all(comparison: Comparison, prompts: list[str] | None) -> None:
    """What `infer` fits."""
    best = comparison.result.best
    assert best is not None
    learning_curve(comparison, best.cell, 0)
    number_baseline(comparison, "length", np.arange(N) % 7.0, np.arange(N) % 5.0)
    random_direction_baseline(comparison, best.cell, 0)
    random_labels_baseline(comparison, best.cell, 0)
    if prompts is not None:
        tfidf_baseline(comparison, prompts, prompts)


def test_a_joined_cell_is_as_large_as_its_parts():
    source = ArrayCellSource(np.concatenate([ARRAY] * 30, 3))
    joined = JoinedCells(source, [Cell(0, -1), Cell(1, -1)])
    given = SweepOptions(k_fold=True, device="cpu")
    small, large = (least_budget(Unread(one), {"y": NUMBERS}, given, None) for one in (source, joined))
    assert large > 1.5 * small


def test_labels_that_do_not_fit_together_are_fitted_in_parts():
    source = ArrayCellSource(ARRAY)
    labels = {str(k): RNG.permutation(NUMBERS) for k in range(10)}
    options = {"k_fold": True, "device": "cpu", "alphas": [1.0, 100.0]}
    planned = plan_sweep(source, labels, **options)
    one = plan_sweep(source, {"0": labels["0"]}, **options)
    budget = least_budget(source, {"0": labels["0"]}, SweepOptions(**options), None)
    parts = plan_sweep(source, labels, **options, budget_bytes=int(1.2 * budget))
    assert [len(one.groups), len(planned.groups)] == [1, 1]
    assert len(parts.groups) > 1
    expected, found = planned.run(), parts.run()
    assert list(found) == list(labels)
    for name in labels:
        np.testing.assert_allclose(found[name].cv_predictions, expected[name].cv_predictions, atol=1e-9)


def test_large_results_lie_in_a_file_without_a_name(tmp_path: Path):
    rng = np.random.default_rng(1)
    array = rng.standard_normal((2000, 40, 1, 3))
    labels = array[:, 3, 0, 0] + rng.standard_normal(2000)
    source = ArrayCellSource(array)
    options = {"k_fold": True, "device": "cpu", "spill_folder": tmp_path}
    kept = sweep(source, labels, source, labels, **options)
    spilled = sweep(source, labels, source, labels, **options, budget_bytes=3_000_000)
    assert _is_mapped(spilled.cv_decision)
    assert not _is_mapped(kept.cv_decision)
    for name in ("cv_decision", "train_decision", "test_decision", "nested_decision", "coef"):
        np.testing.assert_allclose(getattr(spilled, name), getattr(kept, name), atol=1e-9)
    assert not list(tmp_path.iterdir())
    save_sweep(spilled, tmp_path / "out")
    assert json.loads((tmp_path / "out/all_predictions.json").read_text())["predictions"]["pos_-1_layer_39"]


def _is_mapped(array: np.ndarray | None) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return array is not None


def test_results_that_no_disk_holds_are_refused_at_once():
    class Huge(Unread):
        n_samples, layers = 100_000, range(1000)

        def __init__(self) -> None:
            self.positions, self.n_features = (-2, -1), 2

    labels = np.arange(100_000) % 300.0
    options = {"k_fold": True, "device": "cpu", "task_type": "classification", "probe": "lda", "nested_cv": False}
    with pytest.raises(BudgetError, match=r"predictions of all cells need [\d.]+ GiB, .* has [\d.,]+ \w+ free"):
        sweep(Huge(), labels, **options, budget_bytes=2**34)


@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_pieces_is_the_same_text(indent: int | None):
    values = RNG.standard_normal((500, 100))
    tables = {"a": values, "b": values[:, 0], "empty": values[:0], "none": None, "text": 'é"', "rows": [1, 2.5]}
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in tables.items()}
    content, expected = {"cells": lambda: tables, "nothing": {}}, {"cells": plain, "nothing": {}}
    text = json.dumps(expected, indent=indent).encode() + b"\n"
    assert b"".join(encode_json(content, indent)) == text
    assert max(map(len, encode_json(content, indent))) < len(text) / 2
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(encode_json({"a": np.array([np.nan])}, indent))


@pytest.mark.parametrize(
    ("needed", "allowed", "texts"),
    [
        (13_841_204, 11_219_763, ("13.3 MiB", "10.6 MiB")),
        (10 * 2**30 + 1, 10 * 2**30, ("10.1 GiB", "10.0 GiB")),
        (2**20 * 1000 + 1, 107, ("1,000.1 MiB", "107 bytes")),
        (1001, 1000, ("1001 bytes", "1000 bytes")),
    ],
)
def test_two_sizes_never_look_the_same(needed: int, allowed: int, texts: tuple[str, str]):
    assert sizes(needed, allowed) == texts
