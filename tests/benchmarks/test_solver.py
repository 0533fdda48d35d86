import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import Ridge

from benchmarks.__main__ import main
from benchmarks.shared.cells import Activations, make_cells, make_hostile_cells
from benchmarks.shared.measure import Limit, Spread, Target
from benchmarks.shared.process import Usage
from benchmarks.shared.race import Race, geometric_mean, sweep_cells
from benchmarks.solver import outliers, suite
from benchmarks.solver.exactness import RIDGE_LIMIT, RidgeReference, logistic_excess, ridge_error
from benchmarks.solver.floor import Rates, floor_s, n_operations
from benchmarks.solver.memory import Load, Measured, memory_limit
from benchmarks.solver.rows import ManyRows, measure_many_rows, rows_target
from benchmarks.solver.scaling import Growth
from gpu_probes import SweepResult, sweep

pytestmark = pytest.mark.slow

GIB = 2**30


def test_quick_run_prints_and_writes_every_part(tmp_path: Path):
    json_path, work = tmp_path / "figures.json", tmp_path / "work"
    work.mkdir()
    result = CliRunner().invoke(main, ["solver", "--quick", "--folder", str(work), "--json", str(json_path)])
    assert result.exit_code == 0, result.output
    assert not list(work.iterdir())
    figures = json.loads(json_path.read_text())
    assert figures["setting"]["parts"] == ", ".join(suite.PARTS)
    assert all(table["title"] in result.output for table in figures["tables"])
    assert all(target["what"] in result.output for target in figures["targets"])
    met = {target["what"]: target["is_met"] for target in figures["targets"]}
    exact = [
        name
        for name in met
        if any(word in name for word in ("off an SVD", "objective", "predictions, sd", "with an outlier"))
    ]
    assert len(exact) == 8
    assert all(met[name] for name in [*exact, "20,000 rows: tasks of 2 that succeed"])


def test_one_part_alone(tmp_path: Path):
    result = CliRunner().invoke(main, ["solver", "--quick", "--part", "growth", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "slope: logistic, rows" in result.output
    assert "newton-cholesky" not in result.output


def test_peers_are_not_slowed_by_settings_for_another_processor(tmp_path: Path):
    json_path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "solver", "--quick", "--part", "growth", "--json", str(json_path)]
    slowing = {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_L2_SIZE": "64"}
    subprocess.run([*command, "--folder", str(tmp_path)], env=os.environ | slowing, check=True, capture_output=True)
    hardware = json.loads(json_path.read_text())["hardware"]
    libraries = ("numpy", "scipy", "torch")
    assert all(re.fullmatch(r".+, \d+ threads", hardware[f"BLAS of {library}"]) for library in libraries)
    assert "Prescott" not in hardware["BLAS of numpy"]


def test_errors_of_fits_are_seen():
    cells = make_cells(120, 20, 2)
    result = sweep_cells(cells, (1.0,), "cpu")
    assert ridge_error(result, cells) < RIDGE_LIMIT
    assert result.test_decision is not None
    off = replace(result, test_decision=result.test_decision + 1e-4)
    assert ridge_error(off, cells) == pytest.approx(1e-4 / cells.train_labels.std(), rel=1e-3)
    binary = cells.binary()
    fitted = sweep_cells(binary, (1.0,), "cpu")
    assert abs(logistic_excess(fitted, binary)) < 1e-10
    assert logistic_excess(replace(fitted, coef=1.1 * fitted.coef), binary) > 1e-4


@pytest.mark.parametrize("shape", [(60, 10), (20, 50)])
def test_the_reference_is_scikit_learns(shape: tuple[int, int]):
    cells = make_cells(*shape, 1)
    X, y = cells.train[:, 0, 0].astype(np.float64), cells.train_labels
    expected = Ridge(alpha=0.3, fit_intercept=False, solver="svd").fit(X, y).predict(X)
    np.testing.assert_allclose(RidgeReference(X, y).predict(X, 0.3), expected, atol=1e-9)


def test_labels_are_told_in_part_and_hostile_cells_are_hostile():
    cells = make_cells(400, 30, 2)
    assert 0.3 < sweep_cells(cells, (1.0,), "cpu").cv_score[0, 0] < 0.9
    hostile = make_hostile_cells(200, 30)
    X = hostile.train[:, 0, 0].astype(np.float64)
    assert np.array_equal(X[:, 3:6], X[:, 6:9])
    assert (X[:, 9:12] == X[0, 9:12]).all()
    rms = np.sqrt(np.square(X).mean(0))
    assert rms[0] > 300 * np.median(rms)
    singular = np.linalg.svd(X[:, :3], compute_uv=False)
    assert singular[0] > 1e5 * singular[-1]
    assert Activations(30).draw(5, [2, 3]).shape == (5, 2, 3, 30)


def test_outliers_in_any_row_are_scikit_learns_and_errors_are_seen(monkeypatch: pytest.MonkeyPatch):
    found = outliers.measure_outliers(120, 15, "cpu")
    assert [(one.deviations, one.row) for one in found] == [
        (deviations, row) for deviations in (1e5, 1e6, 1e8) for row in ("first", "middle")
    ]
    assert all(limit.is_met for limit in outliers.outliers_limits(found))
    assert max(one.ridge_certificate for one in found) <= 1e-14
    assert "1e+08" in str(outliers.outliers_table(found))

    def off(*arguments: Any, **options: Any) -> SweepResult:
        result = sweep(*arguments, **options)
        return replace(result, cv_decision=result.cv_decision + 1e-2)

    monkeypatch.setattr(outliers, "sweep", off)
    assert not any(limit.is_met for limit in outliers.outliers_limits(outliers.measure_outliers(120, 15, "cpu")))


def test_floor_is_half_a_product_and_the_factors():
    rates = Rates(gemm=1e9, cholesky=1e8)
    assert n_operations(1000, 100, 2) == pytest.approx(1000 * 100**2 + 2 * 6 * 100**3 / 3)
    assert floor_s(1000, 100, 2, rates) == pytest.approx(1000 * 100**2 / 1e9 + 2 * 6 * 100**3 / 3 / 1e8)
    assert n_operations(100, 1000, 1) == pytest.approx(1000 * 100**2 + (5 * 80**3 + 100**3) / 3)


def test_ratios_slopes_and_means():
    times = Race({"ours": [1.0, 2.0], "theirs": [3.0, 4.0], "slow": [10.0]})
    assert times.ratio("theirs") == Spread(2.5, 2.0, 3.0)
    assert times.ratio("slow") == Spread(10.0, 10.0, 10.0)
    assert geometric_mean([Spread(2, 1, 4), Spread(8, 4, 16)]) == Spread(
        pytest.approx(4), pytest.approx(2), pytest.approx(8)
    )
    assert Growth("cells", [[1.0, 2.0, 4.0], [1.0, 4.0, 16.0]]).slope.low == pytest.approx(1.0)
    assert Growth("cells", [[1.0, 4.0, 16.0]]).slope.median == pytest.approx(2.0)


def test_a_prediction_that_is_off_either_way_is_not_met():
    load = Load(10, 10, 1, (1.0,), True, GIB)
    for taken, is_met in ((119, True), (121, False), (79, False)):
        limit = memory_limit([Measured(load, 100, Usage(1000, 1000 + taken, 0, ""))])
        assert isinstance(limit, Limit)
        assert limit.is_met is is_met


def test_many_rows_that_take_too_much_are_not_met(tmp_path: Path):
    # Less than the libraries take: nothing can be done.
    many = ManyRows(2000, 30, 1, 2**27)
    fitted = measure_many_rows(many, tmp_path)
    target = rows_target(many, fitted)
    assert isinstance(target, Target)
    assert not target.is_met


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.00"), (12.345, "12.35"), (0.0123, "0.012"), (-3.2e-9, "-3e-09")])
def test_figures_keep_their_digits(value: float, text: str):
    assert str(Spread.of([value])).startswith(f"{text} (")
