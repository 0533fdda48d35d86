import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.scale import reading


@pytest.mark.slow
@pytest.mark.usefixtures("starts_ray")
def test_quick_run_prints_and_writes_every_table_and_target(tmp_path: Path) -> None:
    # The part that is left out loads a model seven times.
    parts = [word for part in ("read", "memory", "simulation", "dispatch") for word in ("--part", part)]
    result = CliRunner().invoke(main, ["scale", "--quick", *parts, "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    names = [[row.get("contender") for row in table["rows"]] for table in figures["tables"]]
    assert names == [[reading.OURS, reading.ALL, reading.RAW, reading.ZARR], [None], [None] * 4, [None]]
    assert all(row["CPU seconds"]["median"] > 0 for row in figures["tables"][0]["rows"])
    assert len(figures["targets"]) == 8
    assert all(target["what"] in result.output for target in figures["targets"])
