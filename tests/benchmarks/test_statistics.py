import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.statistics import suite
from benchmarks.statistics.cost import NESTED, PLAIN, SHUFFLED, Cost, Job, cost_limits
from benchmarks.statistics.simulation import Null, null_limits

pytestmark = pytest.mark.slow


def test_quick_run_prints_and_writes_every_part(tmp_path: Path):
    json_path = tmp_path / "figures.json"
    result = CliRunner().invoke(main, ["inference", "--quick", "--json", str(json_path)])
    assert result.exit_code == 0, result.output
    figures = json.loads(json_path.read_text())
    assert figures["setting"]["parts"] == ", ".join(suite.PARTS)
    assert all(table["title"] in result.output for table in figures["tables"])
    assert all(target["what"] in result.output for target in figures["targets"])
    met = {target["what"]: target["is_met"] for target in figures["targets"]}
    assert met["ROC-AUC of repeated rows held out apart"]


def test_a_test_that_lies_is_seen():
    rng = np.random.default_rng(0)
    optimistic = Null("numbers", rng.random(50) + 0.2, rng.random(50), rng.random(50) ** 3, ks_p=1e-6)
    nested, best, p_values = null_limits([optimistic])
    assert not nested.is_met
    assert best.is_met
    assert not p_values.is_met


def test_costs_are_ratios_within_each_round():
    job = Job(10, 5, 1, (1.0,), False, 1000)
    cost = Cost(job, {PLAIN: [1.0, 2.0], NESTED: [1.5, 3.0], SHUFFLED: [4.0, 8.0]})
    assert cost.ratio(NESTED).median == pytest.approx(1.5)
    nested, shuffled = cost_limits([cost])
    assert nested.is_met
    assert not shuffled.is_met
