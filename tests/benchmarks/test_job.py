import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.job.agreement import agreement_limits, differences
from benchmarks.job.suite import memory_limit
from benchmarks.shared.card import CardMemory, watch_cards
from benchmarks.shared.cells import make_cells
from benchmarks.shared.race import sweep_cells
from gpu_probes import Cell

pytestmark = pytest.mark.slow


def test_job_on_a_cpu(tmp_path: Path):
    json_path = tmp_path / "figures.json"
    arguments = ["job", "--quick", "--device", "cpu", "--folder", str(tmp_path), "--json", str(json_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(json_path.read_text())
    assert figures["setting"]["cells with a score"] == 6
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    times, differences = figures["tables"]
    assert all(row["seconds"]["low"] > 0 for row in times["rows"])
    assert [row["cell"] for row in differences["rows"]] == [f"layer {layer}, position -1" for layer in range(3)]
    assert [target["is_met"] for target in figures["targets"][1:]] == [True, True]


def test_a_device_that_is_not_there_is_said_before_anything_is_written(tmp_path: Path):
    result = CliRunner().invoke(main, ["job", "--quick", "--device", "cuda:99", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert "--device: device='cuda:99' is not available" in result.output
    assert not list(tmp_path.iterdir())


def test_fits_further_apart_than_their_certificates_allow_are_seen():
    cells = make_cells(120, 20, 2)
    result = sweep_cells(cells, (1.0, 10.0), "cpu")
    places = [Cell(0, -1), Cell(1, -1)]
    same = differences(result, result, places)
    assert all(limit.is_met for limit in agreement_limits(same))
    assert all(1e-9 <= one.allowed < 1e-6 for one in same)
    off = replace(result, train_decision=result.train_decision + 1e-5)
    assert [limit.is_met for limit in agreement_limits(differences(off, result, places))] == [False, True]
    other = replace(result, selected_alpha=11 - result.selected_alpha)
    assert not agreement_limits(differences(other, result, places))[0].is_met


def test_memory_of_a_card_that_is_foretold_too_high_or_too_low_is_seen():
    assert [memory_limit(CardMemory(100, taken)).is_met for taken in (70, 85, 115, 130)] == [False, True, True, False]
    assert CardMemory(2**30, 2**29).row() == {
        "foretold, MiB": "1024", "measured, MiB": "512", "measured / foretold": "0.50"
    }  # fmt: skip
    assert watch_cards([torch.device("cpu")], lambda: "found") == (None, "found")
